"""What a shortlist costs: candidates by the coarse score, reranked by the full one, as a search does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.errors import EvaluationError
from training.metrics import (
    RankCounts,
    RetrievalMetrics,
    multi_caption_statistics,
    require_one_clip_a_text,
    row_blocks,
    square_statistics,
)


@dataclass(frozen=True)
class TwoStageResult:
    """Text to video through `num_candidates` candidates a text.

    candidate_recall: percent of texts whose own clip is among their candidates; no reranking can find more.
    """

    num_candidates: int
    candidate_recall: float
    metrics: RetrievalMetrics


def two_stage_metrics(
    coarse: NDArray[np.floating],
    total: NDArray[np.floating],
    clip_of_text: Sequence[int],
    num_candidates: int,
) -> TwoStageResult:
    """Metrics of the ranking with a text's candidates first, by total, and then all others, by coarse.

    coarse, total: float [T, V], finite. num_candidates: K >= 1; with K >= V this is the exhaustive ranking.
    A text whose clip is no candidate has the clip's coarse rank, which is beyond K. Where the K-th coarse
    score is tied, earlier columns are taken. Ties in the final ranking count as in the exhaustive protocol.
    """
    require_one_clip_a_text(total, clip_of_text)
    if coarse.shape != total.shape:
        raise EvaluationError(f"coarse scores {coarse.shape} for totals {total.shape}")
    if num_candidates < 1:
        raise EvaluationError(f"a shortlist needs at least one candidate, not {num_candidates}")
    if not np.isfinite(coarse).all() or not np.isfinite(total).all():
        raise EvaluationError("a score is not a finite number")
    own = np.asarray(clip_of_text)
    num_texts, num_clips = total.shape
    counts = np.empty((3, num_texts), np.int64)
    found = np.empty(num_texts, bool)
    columns = np.arange(num_clips)
    for first, rows in row_blocks(total):
        block = slice(first, first + len(rows))
        own_columns = own[block, None]
        candidate = choose_candidates(coarse[block], num_candidates)
        found[block] = np.take_along_axis(candidate, own_columns, axis=1)[:, 0]
        # Whoever is beside the own clip in the ranking, and by what they are ordered there.
        beside = candidate == found[block, None]
        scores = np.where(found[block, None], rows, coarse[block])
        own_scores = np.take_along_axis(scores, own_columns, axis=1)
        equal = (scores == own_scores) & beside
        before = np.where(found[block], 0, min(num_candidates, num_clips))
        counts[0, block] = ((scores > own_scores) & beside).sum(axis=1) + before
        counts[1, block] = equal.sum(axis=1)
        counts[2, block] = (equal & (columns < own_columns)).sum(axis=1)
    ranks = RankCounts(counts[0], counts[1], counts[2], num_clips)
    one_text_a_clip = num_texts == num_clips and bool((own == columns).all())
    metrics = square_statistics(ranks) if one_text_a_clip else multi_caption_statistics(ranks)
    return TwoStageResult(num_candidates, float(found.sum()) * 100 / num_texts, metrics)


def choose_candidates(coarse: NDArray[np.floating], num_candidates: int) -> NDArray[np.bool_]:
    """bool [rows, V]: the `num_candidates` highest of each row; of equal ones the earlier columns."""
    num_clips = coarse.shape[1]
    if num_candidates >= num_clips:
        return np.ones(coarse.shape, bool)
    place = num_clips - num_candidates
    threshold = np.partition(coarse, place, axis=1)[:, place, None]
    above, at = coarse > threshold, coarse == threshold
    places_left = num_candidates - above.sum(axis=1, keepdims=True)
    chosen: NDArray[np.bool_] = above | (at & (at.cumsum(axis=1) <= places_left))
    return chosen
