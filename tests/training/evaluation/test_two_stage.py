from __future__ import annotations

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import XClip, XClipConfig
from training.errors import EvaluationError
from training.evaluation.encoding import coarse_similarity, similarity
from training.evaluation.evaluation import choose_candidates, two_stage_metrics
from training.evaluation.metrics import multi_caption_metrics, retrieval_metrics

# Coarse integers, so that many scores are tied.
seeds, sizes = st.integers(0, 10_000), st.integers(1, 12)


def drawn(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 6, shape).astype(np.float32)


def ranking(coarse: np.ndarray, total: np.ndarray, num_candidates: int) -> list[int]:
    """Clips of one text in final order; of equal ones the earlier first."""
    by_coarse = sorted(range(len(coarse)), key=lambda clip: (-coarse[clip], clip))
    candidates = sorted(by_coarse[:num_candidates], key=lambda clip: (-total[clip], clip))
    return candidates + by_coarse[num_candidates:]


@settings(deadline=None)
@given(seeds, sizes, st.integers(1, 15))
def test_ranks_equal_a_loop_that_shortlists_and_sorts(seed, num_clips, num_candidates):
    num_texts = num_clips + 2
    coarse, total = drawn(seed, num_texts, num_clips), drawn(seed + 1, num_texts, num_clips)
    clip_of_text = sorted(np.random.default_rng(seed).integers(0, num_clips, num_texts).tolist())
    ours = two_stage_metrics(coarse, total, clip_of_text, num_candidates)
    ranks, found = [], 0
    for own, one_coarse, one_total in zip(clip_of_text, coarse, total, strict=True):
        order = ranking(one_coarse, one_total, num_candidates)
        ranks.append(order.index(own) + 1)
        found += ranks[-1] <= num_candidates
    assert ours.metrics.mean_rank == pytest.approx(np.mean(ranks))
    assert ours.metrics.recall_at_1 == pytest.approx(100 * np.mean(np.array(ranks) <= 1))
    assert ours.candidate_recall == pytest.approx(100 * found / num_texts)


@settings(deadline=None)
@given(seeds, sizes)
def test_a_shortlist_of_everything_is_exhaustive(seed, num_clips):
    coarse, total = drawn(seed, num_clips, num_clips), drawn(seed + 1, num_clips, num_clips)
    one_each = list(range(num_clips))
    for num_candidates in (num_clips, num_clips + 5):
        everything = two_stage_metrics(coarse, total, one_each, num_candidates)
        assert everything.metrics == retrieval_metrics(total)
        assert everything.candidate_recall == 100.0
    several = sorted(one_each + one_each)
    coarse, total = np.repeat(coarse, 2, axis=0), drawn(seed + 2, 2 * num_clips, num_clips)
    assert two_stage_metrics(coarse, total, several, num_clips).metrics == multi_caption_metrics(
        total, several
    )


@settings(deadline=None)
@given(seeds, st.integers(2, 12), st.integers(1, 11))
def test_a_missed_clip_ranks_beyond_the_shortlist_and_recall_at_1_needs_it_there(
    seed, num_clips, num_candidates
):
    coarse, total = drawn(seed, num_clips, num_clips), drawn(seed + 1, num_clips, num_clips)
    ours = two_stage_metrics(coarse, total, list(range(num_clips)), num_candidates)
    assert ours.metrics.optimistic.recall_at_1 <= ours.candidate_recall
    candidate = choose_candidates(coarse, num_candidates)
    assert (candidate.sum(axis=1) == min(num_candidates, num_clips)).all()
    worst_in = np.where(candidate, coarse, np.inf).min(axis=1)
    best_out = np.where(candidate, -np.inf, coarse).max(axis=1)
    assert (worst_in >= best_out).all()


def test_the_coarse_scores_order_clips_as_the_coarse_index_does():
    torch.manual_seed(0)
    model = XClip(XClipConfig.tiny()).eval()
    with torch.no_grad():
        model.matrices.global_matrix.add_(0.2 * torch.randn_like(model.matrices.global_matrix))
    text = model.encode_text([f"a {thing} runs" for thing in ("dog", "cat", "bird", "horse", "car")])
    pixels = torch.randint(0, 256, (9, model.config.num_frames, 32, 32, 3), dtype=torch.uint8)
    video = model.encode_video(model.normalize_pixels(pixels), torch.ones(9, model.config.num_frames))
    coarse = coarse_similarity(model, text, video)
    index = faiss.IndexFlatIP(model.config.embedding_dim)
    index.add(video.video.numpy())
    scores, places = index.search(model.coarse_query(text).numpy(), 9)
    np.testing.assert_array_equal(np.argsort(-coarse, axis=1, kind="stable"), places)
    np.testing.assert_allclose(-np.sort(-coarse, axis=1), scores, atol=1e-6)
    by_model = similarity(model, text, video, score="video_sentence") / model.logit_scale_exp
    np.testing.assert_allclose(coarse, by_model, atol=1e-6)


def test_scores_that_cannot_be_judged_are_refused():
    good = np.zeros((2, 2), np.float32)
    with pytest.raises(EvaluationError, match="at least one candidate"):
        two_stage_metrics(good, good, [0, 1], 0)
    with pytest.raises(EvaluationError, match="coarse scores"):
        two_stage_metrics(good[:1], good, [0, 1], 1)
    with pytest.raises(EvaluationError, match="finite"):
        two_stage_metrics(good, np.full((2, 2), np.inf), [0, 1], 1)
