"""Retrieval metrics, equal to the official ones (github.com/xuguohai/X-CLIP, metrics.py)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RetrievalMetrics:
    """R@k in percent, 0 to 100; ranks count from 1."""

    recall_at_1: float
    recall_at_5: float
    recall_at_10: float
    median_rank: float
    mean_rank: float
    num_queries: int


def retrieval_metrics(similarity: NDArray[np.floating]) -> RetrievalMetrics:
    """Metrics of N queries (rows) over N items (columns), query i belonging to item i.

    similarity: float [N, N], finite. Raises ValueError on another shape or on NaN.
    Ties follow the official code: a query whose score is shared by several items contributes every rank at
    which that score stands, so the denominator grows. Without ties this is the usual definition.
    """
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1] or not len(similarity):
        raise ValueError(f"expected a square matrix, got {similarity.shape}")
    if not np.isfinite(similarity).all():
        raise ValueError("the similarities hold values that are not finite")
    diagonal = np.diag(similarity)[:, None]
    descending = -np.sort(-similarity, axis=1)
    ranks = np.nonzero(descending == diagonal)[1]  # from 0, several for a tied query
    return RetrievalMetrics(
        recall_at_1=100.0 * float((ranks < 1).mean()),
        recall_at_5=100.0 * float((ranks < 5).mean()),
        recall_at_10=100.0 * float((ranks < 10).mean()),
        median_rank=float(np.median(ranks)) + 1,
        mean_rank=float(ranks.mean()) + 1,
        num_queries=len(similarity),
    )
