from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import training.evaluation.metrics
from training.errors import EvaluationError
from training.evaluation.hubness import (
    bank_statistics,
    dual_softmax,
    log_sum_exp_of_columns,
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
