from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training.datasets.split import Clip, Split
from training.evaluation.evaluation import (
    bank_rows,
    dual_softmax_rows,
    exhaustive_rows,
    tie_warnings,
    two_stage_rows,
)
from training.evaluation.hubness import QueryBank, bank_statistics
from training.evaluation.metrics import multi_caption_metrics, retrieval_metrics

NUM_CLIPS = 12


def split_of(texts_per_clip: int) -> Split:
    places = tuple(clip for clip in range(NUM_CLIPS) for _ in range(texts_per_clip))
    return Split(
        "captions",
        "test",
        tuple(Clip(f"clip{clip}", Path(f"{clip}.mp4")) for clip in range(NUM_CLIPS)),
        tuple(f"text {number}" for number in range(len(places))),
        places,
    )


def scores_of(split: Split, seed: int, strength: float = 0.2) -> np.ndarray:
    scores = np.random.default_rng(seed).uniform(-0.2, 0.4, (len(split.texts), NUM_CLIPS))
    scores[np.arange(len(split.texts)), split.clip_of_text] += strength
    return scores.astype(np.float32)


@pytest.fixture(params=[1, 3], ids=["one text a clip", "three texts a clip"])
def split(request):
    return split_of(request.param)


def test_exhaustive_rows_go_both_ways(split):
    scores = scores_of(split, 0)
    to_video, to_text = exhaustive_rows(scores, split)
    several = split.has_several_texts_per_clip
    assert to_video.metrics == (
        multi_caption_metrics(scores, split.clip_of_text) if several else retrieval_metrics(scores)
    )
    assert to_text.metrics.num_queries == NUM_CLIPS
    assert ("best caption" in to_text.note) == several


def test_two_stage_rows_say_their_k_and_leave_out_shortlists_of_everything(split):
    coarse, total = scores_of(split, 1), scores_of(split, 2)
    rows = two_stage_rows(coarse, total, split, [500, 3, 3, NUM_CLIPS, 1])
    assert [row.parameters["num_candidates"] for row in rows] == [1, 3]
    assert all(str(row.parameters["num_candidates"]) in row.label for row in rows)
    assert rows[0].parameters["candidate_recall"] <= rows[1].parameters["candidate_recall"] < 100
    assert {row.direction for row in rows} == {"text to video"}
    assert all(row.servable for row in rows)


def test_dual_softmax_rows_are_not_servable_and_better_where_items_are_hubs(split):
    scores = 100 * scores_of(split, 3, strength=0.6)
    scores[:, 0] += 60
    before = exhaustive_rows(scores, split)
    after = dual_softmax_rows(scores, split)
    assert [row.direction for row in after] == ["text to video", "video to text"]
    assert not any(row.servable for row in after)
    assert after[0].metrics.recall_at_1 > before[0].metrics.recall_at_1


def test_bank_rows_name_their_bank_and_are_servable_without_test_queries(split):
    scores, statistics = scores_of(split, 4), bank_statistics([scores_of(split, 5, 0.0)])
    clean = QueryBank(("a",) * len(split.texts), "captions train", 50, 2)
    rows = bank_rows(scores, split, statistics, clean, ["query-bank", "nearest-neighbour"])
    assert [row.kind for row in rows] == ["query-bank", "nearest-neighbour"]
    for row in rows:
        assert row.servable and row.direction == "text to video"
        assert row.parameters["bank_source"] == "captions train" and str(clean) in row.note
        assert row.parameters["bank_size"] == len(split.texts)
    tainted = QueryBank(("a",), "mine.txt", 1, 0, holds_test_queries=True)
    (row,) = bank_rows(scores, split, statistics, tainted, ["query-bank"])
    assert not row.servable and "TEST QUERIES" in row.note


def test_ties_are_warned_of_with_their_bounds(split):
    assert tie_warnings(exhaustive_rows(scores_of(split, 6), split)) == []
    warnings = tie_warnings(exhaustive_rows(np.zeros((len(split.texts), NUM_CLIPS), np.float32), split))
    assert len(warnings) == 2
    assert f"{len(split.texts)} of {len(split.texts)} queries" in warnings[0]
    assert "between 0.0 and 100.0" in warnings[0]
