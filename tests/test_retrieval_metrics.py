from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.metrics import retrieval_metrics

GOLDENS = Path(__file__).parent / "goldens"


@pytest.mark.parametrize("name", ["sim_square", "sim_ties"])
@pytest.mark.parametrize("direction", ["t2v", "v2t"])
def test_metrics_equal_the_official_ones_with_and_without_ties(name, direction):
    expected = json.loads((GOLDENS / "metrics.json").read_text())[name][direction]
    with np.load(GOLDENS / "metrics.npz") as stored:
        similarity = stored[name]
    ours = retrieval_metrics(similarity if direction == "t2v" else similarity.T)
    assert ours.recall_at_1 == pytest.approx(expected["R1"])
    assert ours.recall_at_5 == pytest.approx(expected["R5"])
    assert ours.recall_at_10 == pytest.approx(expected["R10"])
    assert ours.median_rank == expected["MedianR"] == expected["MR"]
    assert ours.mean_rank == pytest.approx(expected["MeanR"])


@given(st.permutations(range(12)), st.randoms(use_true_random=False))
def test_without_ties_the_rank_is_one_plus_the_number_of_better_items(columns, random):
    similarity = np.array([random.sample(range(1000), 12) for _ in columns], float)
    better = (similarity > np.diag(similarity)[:, None]).sum(axis=1)
    ours = retrieval_metrics(similarity)
    assert ours.mean_rank == pytest.approx(1 + better.mean())
    assert ours.recall_at_5 == pytest.approx(100 * (better < 5).mean())


@pytest.mark.parametrize("bad", [np.zeros((2, 3)), np.zeros((0, 0)), np.full((2, 2), np.nan)])
def test_a_matrix_that_is_not_square_and_finite_is_refused(bad):
    with pytest.raises(ValueError, match=r"square|finite"):
        retrieval_metrics(bad)
