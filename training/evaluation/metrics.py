"""Retrieval metrics, equal to the official ones (github.com/xuguohai/X-CLIP, metrics.py).

A query's rank is counted from the scores around its own item's, without sorting: `num_better` items score
higher, `num_equal` score the same (its own item among them). So a matrix of Q queries and N items costs one
comparison a pair, in blocks of rows, and no second matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.errors import EvaluationError

MAX_BLOCK_ELEMENTS = 1 << 20
"""Scores compared in one block: a comparison takes a few MiB in addition to the matrix."""

DIRECTIONS = ("text_to_video", "video_to_text")
FIGURES = ("recall_at_1", "recall_at_5", "recall_at_10", "median_rank", "mean_rank")
"""What is reported of each direction: percent (three times), ranks from 1 (twice)."""

Rescore = Callable[[NDArray[np.floating]], NDArray[np.floating]]
"""A change of scores that needs one row at a time: float [rows, N] -> float [rows, N]."""


@dataclass(frozen=True)
class RankStatistics:
    """R@k in percent, 0 to 100; ranks count from 1. `rank_deviation`: the population's standard one."""

    recall_at_1: float
    recall_at_5: float
    recall_at_10: float
    median_rank: float
    mean_rank: float
    rank_deviation: float


@dataclass(frozen=True)
class RetrievalMetrics(RankStatistics):
    """The official figures of `num_queries` queries over `num_items` items, and what ties could hide.

    Attributes:
        num_tied_queries: Queries whose own item has the same score as another one.
        optimistic, pessimistic, averaged: The same figures if each tied query had the best, the worst or the
            middle one of the ranks that it shares. Without ties all three equal the official ones.
    """

    num_queries: int
    num_items: int
    num_tied_queries: int
    optimistic: RankStatistics
    pessimistic: RankStatistics
    averaged: RankStatistics


@dataclass(frozen=True, eq=False)
class RankCounts:
    """Where each of Q queries found its own item among N.

    Attributes:
        num_better, num_equal, num_equal_before: int64 [Q]: items that score higher; items of the same score,
            the own one included; those of them that stand in an earlier column.
        num_items: N.
    """

    num_better: NDArray[np.int64]
    num_equal: NDArray[np.int64]
    num_equal_before: NDArray[np.int64]
    num_items: int


def retrieval_metrics(similarity: NDArray[np.floating], rescore: Rescore | None = None) -> RetrievalMetrics:
    """Metrics of N queries (rows) over N items (columns), query i belonging to item i.

    Ties follow the official `compute_metrics`: a query whose score is shared by several items contributes
    every rank at which that score stands, so the denominator grows. Without ties this is the usual
    definition.

    Args:
        similarity: float [N, N], finite.
        rescore: Applied to blocks of rows before they are ranked.

    Raises:
        EvaluationError: Another shape or a value that is not finite.

    >>> metrics = retrieval_metrics(np.array([[0.9, 0.1], [0.8, 0.2]]))
    >>> metrics.recall_at_1, metrics.mean_rank
    (50.0, 1.5)
    """
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1] or not len(similarity):
        raise EvaluationError(f"expected a square matrix, got {similarity.shape}")
    return square_statistics(count_ranks(similarity, np.arange(len(similarity)), rescore))


def multi_caption_metrics(
    similarity: NDArray[np.floating], clip_of_text: Sequence[int], rescore: Rescore | None = None
) -> RetrievalMetrics:
    """Text to video where a clip has several texts: each text counts separately.

    Equal to the official `tensor_text_to_video_metrics` on texts grouped by clip and padded with -inf: one
    rank a text, the lower of two middle ranks as the median. Of tied items that code takes the order of an
    unstable sort; here it is the order of the columns.

    Args:
        similarity: float [T, V], finite.
        clip_of_text: For each text its clip.
    """
    require_one_clip_a_text(similarity, clip_of_text)
    return multi_caption_statistics(count_ranks(similarity, np.asarray(clip_of_text), rescore))


def video_to_text_similarity(
    similarity: NDArray[np.floating], clip_of_text: Sequence[int]
) -> NDArray[np.floating]:
    """float [V, V]: of each video (row) with each clip's best caption (column).

    Equal to the official `tensor_video_to_text_sim`: the maximum over a clip's captions, transposed.

    Args:
        similarity: float [T, V].
        clip_of_text: Ascending, every clip at least once.
    """
    require_one_clip_a_text(similarity, clip_of_text)
    clips = np.asarray(clip_of_text)
    starts = np.flatnonzero(np.diff(clips, prepend=-1))
    if (np.diff(clips) < 0).any() or len(starts) != similarity.shape[1]:
        raise EvaluationError("the texts are not grouped by clip, with at least one for each")
    best: NDArray[np.floating] = np.maximum.reduceat(similarity, starts, axis=0)
    return best.T


def require_one_clip_a_text(similarity: NDArray[np.floating], clip_of_text: Sequence[int]) -> None:
    """Raise EvaluationError unless `similarity` is [T, V] with T clips, each in 0..V-1, named."""
    if similarity.ndim != 2 or not similarity.size:
        raise EvaluationError(f"expected one row a text and one column a clip, got {similarity.shape}")
    if len(clip_of_text) != len(similarity):
        raise EvaluationError(f"{len(similarity)} rows of scores, but the clips of {len(clip_of_text)} texts")
    if min(clip_of_text) < 0 or max(clip_of_text) >= similarity.shape[1]:
        raise EvaluationError(f"a text names a clip outside 0..{similarity.shape[1] - 1}")


def require_finite(
    similarity: NDArray[np.floating], text_names: Sequence[str], clip_names: Sequence[str]
) -> None:
    """Raise EvaluationError that names the first text and clip whose score is NaN or infinite."""
    for first, rows in row_blocks(similarity):
        finite = np.isfinite(rows)
        if not finite.all():
            row, column = np.argwhere(~finite)[0]
            raise EvaluationError(
                f'the score of the text "{text_names[first + row]}" with the clip '
                f"{clip_names[column]} is {rows[row, column]}, not a finite number"
            )


def row_blocks(similarity: NDArray[np.floating]) -> Iterator[tuple[int, NDArray[np.floating]]]:
    """(first row, rows) of consecutive blocks of about MAX_BLOCK_ELEMENTS scores."""
    rows_per_block = max(1, MAX_BLOCK_ELEMENTS // similarity.shape[1])
    for first in range(0, len(similarity), rows_per_block):
        yield first, similarity[first : first + rows_per_block]


def count_ranks(
    similarity: NDArray[np.floating], own: NDArray[np.int64], rescore: Rescore | None = None
) -> RankCounts:
    """Where each query's own item stands.

    Args:
        similarity: float [Q, N], finite.
        own: int [Q], its column.

    Raises:
        EvaluationError: A score that is not finite; the message names row and column.
    """
    num_queries, num_items = similarity.shape
    counts = np.empty((3, num_queries), np.int64)
    columns = np.arange(num_items)
    for first, rows in row_blocks(similarity):
        scores = rows if rescore is None else rescore(rows)
        finite = np.isfinite(scores)
        if not finite.all():
            row, column = np.argwhere(~finite)[0]
            raise EvaluationError(
                f"the score of query {first + row} with item {column} is {scores[row, column]}, "
                "not a finite number"
            )
        block = slice(first, first + len(rows))
        own_columns = own[block, None]
        own_scores = np.take_along_axis(scores, own_columns, axis=1)
        equal = scores == own_scores
        counts[0, block] = (scores > own_scores).sum(axis=1)
        counts[1, block] = equal.sum(axis=1)
        counts[2, block] = (equal & (columns < own_columns)).sum(axis=1)
    return RankCounts(counts[0], counts[1], counts[2], num_items)


def square_statistics(counts: RankCounts) -> RetrievalMetrics:
    """The official rule for one text a clip: a tied query contributes every rank that it shares."""
    # How many queries hold rank r: +1 where each one's ranks begin, -1 after they end, summed up.
    changes = np.bincount(counts.num_better, minlength=counts.num_items + 1)
    changes -= np.bincount(counts.num_better + counts.num_equal, minlength=counts.num_items + 1)
    return _with_bounds(_of_histogram(np.cumsum(changes)[:-1]), counts)


def multi_caption_statistics(counts: RankCounts) -> RetrievalMetrics:
    """The official rule for several texts a clip: one rank a text, the median a rank that occurs."""
    ranks = counts.num_better + counts.num_equal_before
    histogram = np.bincount(ranks, minlength=counts.num_items)
    return _with_bounds(_of_histogram(histogram, lower_median=True), counts, lower_median=True)


def _with_bounds(
    official: RankStatistics, counts: RankCounts, *, lower_median: bool = False
) -> RetrievalMetrics:
    best, worst = counts.num_better, counts.num_better + counts.num_equal - 1
    return RetrievalMetrics(
        **vars(official),
        num_queries=len(best),
        num_items=counts.num_items,
        num_tied_queries=int((counts.num_equal > 1).sum()),
        optimistic=_of_histogram(np.bincount(best), lower_median=lower_median),
        pessimistic=_of_histogram(np.bincount(worst), lower_median=lower_median),
        # Middles of ranks may be halves: counted in steps of 0.5.
        averaged=_of_histogram(np.bincount(best + worst), step=0.5, lower_median=lower_median),
    )


def _of_histogram(
    histogram: NDArray[np.int64], *, step: float = 1.0, lower_median: bool = False
) -> RankStatistics:
    """Statistics of ranks of which `histogram[i]` are 1 + i x step."""
    total = int(histogram.sum())
    ranks = 1 + step * np.arange(len(histogram))
    cumulative = np.cumsum(histogram)
    low, high = (
        ranks[np.searchsorted(cumulative, middle, side="right")] for middle in ((total - 1) // 2, total // 2)
    )
    mean = float(ranks @ histogram) / total
    within_1, within_5, within_10 = (float(histogram[ranks <= k].sum()) * 100 / total for k in (1, 5, 10))
    return RankStatistics(
        recall_at_1=within_1,
        recall_at_5=within_5,
        recall_at_10=within_10,
        median_rank=float(low if lower_median else (low + high) / 2),
        mean_rank=mean,
        rank_deviation=float(np.sqrt(((ranks - mean) ** 2) @ histogram / total)),
    )
