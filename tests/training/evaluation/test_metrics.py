from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import training.evaluation.metrics
from training.errors import EvaluationError
from training.evaluation.metrics import (
    RankStatistics,
    multi_caption_metrics,
    require_finite,
    retrieval_metrics,
    video_to_text_similarity,
)

GOLDENS = Path(__file__).parents[2] / "goldens"


@pytest.fixture(scope="module")
def expected():
    return json.loads((GOLDENS / "metrics.json").read_text())


@pytest.fixture(scope="module")
def arrays():
    with np.load(GOLDENS / "metrics.npz") as stored:
        return dict(stored)


@pytest.fixture(params=[1, 60, 1 << 20], ids=lambda size: f"blocks of {size}")
def any_block_size(request, monkeypatch):
    monkeypatch.setattr(training.evaluation.metrics, "MAX_BLOCK_ELEMENTS", request.param)


def assert_official(ours: RankStatistics, official: dict[str, float]) -> None:
    # torch.float32 divides in the multi-caption code, hence 1e-6.
    assert ours.recall_at_1 == pytest.approx(official["R1"], rel=1e-6)
    assert ours.recall_at_5 == pytest.approx(official["R5"], rel=1e-6)
    assert ours.recall_at_10 == pytest.approx(official["R10"], rel=1e-6)
    assert ours.median_rank == official["MedianR"] == official["MR"]
    assert ours.mean_rank == pytest.approx(official["MeanR"], rel=1e-12)


@pytest.mark.usefixtures("any_block_size")
@pytest.mark.parametrize("name", ["sim_square", "sim_ties"])
@pytest.mark.parametrize("direction", ["t2v", "v2t"])
def test_metrics_equal_the_official_ones_with_and_without_ties(name, direction, expected, arrays):
    similarity = arrays[name]
    ours = retrieval_metrics(similarity if direction == "t2v" else similarity.T)
    assert_official(ours, expected[name][direction])
    tied = len(expected[name][direction]["cols"]) > len(similarity)
    assert (ours.num_tied_queries > 0) == tied


@pytest.mark.usefixtures("any_block_size")
def test_multi_caption_metrics_equal_the_official_ones(expected, arrays):
    similarity = arrays["multi_sim"]
    clip_of_text = np.repeat(np.arange(len(arrays["multi_counts"])), arrays["multi_counts"])
    text_to_video = multi_caption_metrics(similarity, clip_of_text.tolist())
    assert_official(text_to_video, expected["multi"]["t2v"])
    assert text_to_video.rank_deviation == pytest.approx(expected["multi"]["t2v"]["Std_Rank"])
    assert text_to_video.num_queries == len(similarity)

    by_video = video_to_text_similarity(similarity, clip_of_text.tolist())
    np.testing.assert_array_equal(by_video, arrays["multi_video_to_text_sim"])
    assert_official(retrieval_metrics(by_video), expected["multi"]["v2t"])


def ranks_of_one_query(row: np.ndarray, own: int) -> list[int]:
    """The positions, from 1, at which the own item's score stands in the sorted row."""
    return [position for position, score in enumerate(sorted(row, reverse=True), 1) if score == row[own]]


def assert_describes(ours: RankStatistics, ranks: list[float], median: float) -> None:
    for k in (1, 5, 10):
        share = 100 * sum(rank <= k for rank in ranks) / len(ranks)
        assert getattr(ours, f"recall_at_{k}") == pytest.approx(share)
    assert ours.median_rank == median
    assert ours.mean_rank == pytest.approx(np.mean(ranks))
    assert ours.rank_deviation == pytest.approx(np.std(ranks), abs=1e-9)


matrices = st.integers(1, 14).flatmap(
    lambda size: st.lists(
        st.lists(st.integers(-3, 3), min_size=size, max_size=size), min_size=size, max_size=size
    ).map(lambda rows: np.array(rows, np.float32))
)


@settings(deadline=None)
@given(matrices)
def test_square_metrics_equal_a_loop_over_queries_however_many_ties_there_are(similarity):
    ours = retrieval_metrics(similarity)
    each = [ranks_of_one_query(row, own) for own, row in enumerate(similarity)]
    ranks = [rank for shared in each for rank in shared]
    assert_describes(ours, ranks, np.median(ranks))
    for bound, one in ((ours.optimistic, min), (ours.pessimistic, max), (ours.averaged, np.mean)):
        chosen = [float(one(shared)) for shared in each]
        assert_describes(bound, chosen, np.median(chosen))
    assert ours.num_tied_queries == sum(len(shared) > 1 for shared in each)


@settings(deadline=None)
@given(matrices, st.data())
def test_multi_caption_metrics_equal_a_loop_over_texts(similarity, data):
    num_clips = similarity.shape[1]
    clip_of_text = sorted(
        data.draw(st.lists(st.integers(0, num_clips - 1), min_size=len(similarity), max_size=len(similarity)))
    )
    ours = multi_caption_metrics(similarity, clip_of_text)
    ranks = [
        1 + int((row > row[own]).sum()) + int((row[:own] == row[own]).sum())
        for row, own in zip(similarity, clip_of_text, strict=True)
    ]
    assert_describes(ours, ranks, sorted(ranks)[(len(ranks) - 1) // 2])


@settings(deadline=None)
@given(matrices)
def test_a_growing_function_of_the_scores_changes_no_metric(similarity):
    assert retrieval_metrics(np.exp(similarity.astype(np.float64))) == retrieval_metrics(similarity)
    assert retrieval_metrics(similarity, rescore=lambda rows: 2 * rows + 1) == retrieval_metrics(similarity)


@settings(deadline=None)
@given(matrices, st.randoms(use_true_random=False))
def test_the_order_of_texts_and_clips_changes_no_metric(similarity, random):
    order = random.sample(range(len(similarity)), len(similarity))
    assert retrieval_metrics(similarity[np.ix_(order, order)]) == retrieval_metrics(similarity)


def test_a_model_that_gives_every_pair_one_score_cannot_look_good():
    degenerate = retrieval_metrics(np.zeros((50, 50), np.float32))
    assert degenerate.recall_at_1 == pytest.approx(2.0)  # every query contributes every rank
    assert degenerate.num_tied_queries == 50
    assert degenerate.optimistic.recall_at_1 == 100.0
    assert degenerate.pessimistic.recall_at_10 == 0.0
    assert degenerate.averaged.mean_rank == 25.5
    several = multi_caption_metrics(np.zeros((100, 50), np.float32), [text // 2 for text in range(100)])
    assert several.recall_at_1 == pytest.approx(2.0)
    assert several.num_tied_queries == 100


@pytest.mark.parametrize(
    "bad", [np.zeros((2, 3)), np.zeros((0, 0)), np.full((2, 2), np.nan), np.diag([0, np.inf])]
)
def test_a_matrix_that_is_not_square_and_finite_is_refused(bad):
    with pytest.raises(EvaluationError, match=r"square|finite"):
        retrieval_metrics(bad)


def test_a_score_that_is_not_finite_is_reported_with_its_text_and_clip():
    similarity = np.zeros((3, 3), np.float32)
    similarity[2, 1] = np.nan
    with pytest.raises(EvaluationError, match=r'"a dog" with the clip video7 is nan'):
        require_finite(similarity, ["a cat", "a cow", "a dog"], ["video5", "video7", "video9"])


@pytest.mark.parametrize("clips", [[0, 1], [0, 1, 2], [0, 0, -1]])
def test_clips_that_do_not_fit_the_matrix_are_refused(clips):
    with pytest.raises(EvaluationError, match="clip"):
        multi_caption_metrics(np.zeros((3, 2)), clips)


@pytest.mark.parametrize("clips", [[0, 1, 0], [1, 1, 1]])
def test_texts_that_are_not_grouped_by_clip_have_no_best_caption(clips):
    with pytest.raises(EvaluationError, match="grouped"):
        video_to_text_similarity(np.zeros((3, 2)), clips)
