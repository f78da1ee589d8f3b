"""Corrections of a similarity matrix against hubs, and the bank of queries that they learn from."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import training.evaluation.metrics
from training.datasets.split import Clip, Split
from training.errors import DatasetError, EvaluationError
from training.evaluation.hubness import (
    bank_statistics,
    dual_softmax,
    log_sum_exp_of_columns,
    make_bank,
    nearest_neighbour_normalization,
    query_bank_normalization,
)
from training.evaluation.metrics import retrieval_metrics


def drawn(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.3, 0.5, shape).astype(np.float32)


seeds = st.integers(0, 10_000)


@pytest.mark.parametrize("elements", [1, 1 << 20])
def test_dual_softmax_equals_a_loop_over_pairs(elements, monkeypatch):
    monkeypatch.setattr(training.evaluation.metrics, "MAX_BLOCK_ELEMENTS", elements)
    scores = 100 * drawn(0, 7, 5)
    ours = dual_softmax(scores, log_sum_exp_of_columns(scores))
    for text in range(7):
        for clip in range(5):
            share = math.exp(scores[text, clip]) / sum(math.exp(other) for other in scores[:, clip])
            assert ours[text, clip] == pytest.approx(float(scores[text, clip]) * share, rel=1e-6)


def test_dual_softmax_of_far_off_pairs_is_not_a_tie_at_zero():
    scores = (200 * np.eye(6) - 100 + drawn(1, 6, 6)).astype(np.float32)
    revised = dual_softmax(scores, log_sum_exp_of_columns(scores))
    assert len(np.unique(revised)) == revised.size
    assert (revised.astype(np.float32) == 0).any()  # what float32 would have made of them


def test_dual_softmax_takes_an_item_from_a_query_that_wants_it_less():
    # Both texts like the hub, clip 0, best; the second likes it far more.
    scores = np.array([[3.0, 2.9], [9.0, 1.0]], np.float32)
    assert scores.argmax(axis=1).tolist() == [0, 0]
    assert dual_softmax(scores, log_sum_exp_of_columns(scores)).argmax(axis=1).tolist() == [1, 0]


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(1, 9), st.integers(1, 9))
def test_query_bank_normalization_equals_a_loop_over_queries(seed, num_bank, block):
    similarity, bank = drawn(seed, 6, 5), drawn(seed + 1, num_bank, 5)
    blocks = (bank[first : first + block] for first in range(0, num_bank, block))
    ours = query_bank_normalization(similarity, bank_statistics(blocks))
    retrieved = {int(row.argmax()) for row in bank}
    for row, revised in zip(similarity, ours, strict=True):
        if int(row.argmax()) not in retrieved:
            np.testing.assert_array_equal(revised, row.astype(np.float64))
            continue
        for clip in range(5):
            sum_of_bank = sum(math.exp(20 * other) for other in bank[:, clip])
            assert math.exp(revised[clip]) == pytest.approx(math.exp(20 * row[clip]) / sum_of_bank, rel=1e-6)


def test_a_bank_query_may_retrieve_several_items():
    bank = np.array([[0.1, 0.5, 0.3, 0.2]])
    assert bank_statistics([bank], k=2).retrieved.tolist() == [False, True, True, False]
    assert bank_statistics([bank], k=9).retrieved.all()


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(1, 12), st.integers(1, 12), st.integers(1, 6))
def test_nearest_neighbour_normalization_equals_a_loop_over_items(seed, num_bank, block, neighbours):
    similarity, bank = drawn(seed, 4, 5), drawn(seed + 1, num_bank, 5)
    blocks = (bank[first : first + block] for first in range(0, num_bank, block))
    statistics = bank_statistics(blocks, num_neighbours=neighbours)
    assert statistics.num_neighbours == min(neighbours, num_bank)
    assert statistics.num_bank_queries == num_bank
    ours = nearest_neighbour_normalization(similarity, statistics, alpha=0.75)
    for clip in range(5):
        nearest = sorted((float(other) for other in bank[:, clip]), reverse=True)[:neighbours]
        expected = similarity[:, clip].astype(float) - 0.75 * sum(nearest) / len(nearest)
        np.testing.assert_allclose(ours[:, clip], expected, rtol=1e-9)


@pytest.mark.parametrize("normalize", [query_bank_normalization, nearest_neighbour_normalization])
def test_a_row_is_corrected_without_knowing_any_other_test_query(normalize):
    similarity, statistics = drawn(2, 6, 5), bank_statistics([drawn(3, 20, 5)])
    for text in range(6):
        alone = normalize(similarity[text : text + 1], statistics)
        np.testing.assert_array_equal(alone, normalize(similarity, statistics)[text : text + 1])


@pytest.mark.parametrize("normalize", [query_bank_normalization, nearest_neighbour_normalization])
def test_a_hub_that_the_bank_knows_is_held_down(normalize):
    num_clips = 30
    texts, bank = drawn(4, num_clips, num_clips) * 0.1, drawn(5, 200, num_clips) * 0.1
    texts += 0.3 * np.eye(num_clips, dtype=np.float32)
    for similarity in (texts, bank):
        similarity[:, 0] += 0.4  # a hub is nearest to everything
    before = retrieval_metrics(texts)
    after = retrieval_metrics(texts, lambda rows: normalize(rows, bank_statistics([bank])))
    assert before.recall_at_1 < 10
    assert after.recall_at_1 > 95


@pytest.mark.parametrize("blocks", [[], [np.zeros((0, 3))]])
def test_an_empty_bank_is_refused(blocks):
    with pytest.raises(EvaluationError, match="no query"):
        bank_statistics(blocks)


def test_a_bank_similarity_that_is_not_finite_is_refused():
    with pytest.raises(EvaluationError, match="finite"):
        bank_statistics([np.full((2, 2), np.nan)])


def rows(prefix: str, count: int) -> list[dict[str, object]]:
    return [
        {"path": f"{prefix}{number}.mp4", "captions": [f"{prefix} {number} runs", f"{prefix} {number} stops"]}
        for number in range(count)
    ]


@pytest.fixture
def directory(tmp_path):
    """Annotations alone: a bank needs no video."""
    for name, content in {"train": rows("dog", 6), "val": rows("cat", 2)}.items():
        lines = "".join(json.dumps(row) + "\n" for row in content)
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path


@pytest.fixture
def split():
    clips = (Clip("cat0.mp4", Path("cat0.mp4")), Clip("owl", Path("owl.mp4")))
    return Split("captions", "test", clips, ("Dog  3 runs", "an owl flies"), (0, 1))


def test_a_bank_of_another_split_leaves_out_texts_of_the_test(split, directory):
    bank = make_bank("train", split, directory)
    assert len(bank.texts) == 11 and "dog 3 runs" not in bank.texts and "dog 3 stops" in bank.texts
    assert (bank.num_available, bank.num_left_out, bank.holds_test_queries) == (12, 1, False)
    assert str(bank) == "11 of 12 texts of captions train"


def test_other_texts_of_a_test_clip_are_left_out_too(split, directory):
    assert make_bank("val", split, directory).texts == ("cat 1 runs", "cat 1 stops")


def test_a_large_source_is_drawn_from_by_a_seed(split, directory):
    drawn = make_bank("train", split, directory, size=4)
    assert len(drawn.texts) == len(set(drawn.texts)) == 4
    assert drawn == make_bank("train", split, directory, size=4)
    assert drawn.texts != make_bank("train", split, directory, size=4, seed=1).texts


def test_a_file_holds_one_text_a_line(split, directory, tmp_path):
    file = tmp_path / "queries.txt"
    file.write_text("a fish swims\n\nAN OWL FLIES\n", encoding="utf-8")
    bank = make_bank(str(file), split, directory)
    assert (bank.texts, bank.source, bank.num_left_out) == (("a fish swims",), "queries.txt", 1)


def test_the_split_that_is_evaluated_is_no_bank(split, directory, tmp_path):
    with pytest.raises(EvaluationError, match="captions test is what is evaluated"):
        make_bank("test", split, directory)
    file = tmp_path / "same.txt"
    file.write_text("\n".join(split.texts), encoding="utf-8")
    with pytest.raises(EvaluationError, match=r"every text of same\.txt"):
        make_bank(str(file), split, directory)


def test_test_queries_are_kept_only_where_asked_for_and_the_bank_says_so(split, directory, tmp_path):
    file = tmp_path / "same.txt"
    file.write_text("\n".join([*split.texts, "a fish"]), encoding="utf-8")
    bank = make_bank(str(file), split, directory, allow_test_queries=True)
    assert len(bank.texts) == 3 and bank.holds_test_queries and "TEST QUERIES" in str(bank)
    assert not make_bank("val", split, directory / "val.jsonl").holds_test_queries


def test_a_bank_that_is_not_there_or_empty_is_reported(split, directory, tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(EvaluationError, match="holds no text"):
        make_bank(str(tmp_path / "empty.txt"), split, directory)
    with pytest.raises(DatasetError, match=r"nothing\.txt"):
        make_bank("nothing.txt", split, directory)
    with pytest.raises(EvaluationError, match="at least one"):
        make_bank("train", split, directory, size=0)
