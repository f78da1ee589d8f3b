"""Scored segments, and the best of them: one for each video, or all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

from indexer.search_types import GroupBy


@dataclass(frozen=True, eq=False)
class ScoredSegments:
    """N segments with their scores.

    segment_ids, video_numbers: int64 [N]. total: float32 [N], what the order is by. parts: float32 [N, 4],
    the four scores in the model's order, NaN where not computed.
    """

    segment_ids: NDArray[np.int64]
    video_numbers: NDArray[np.int64]
    total: NDArray[np.float32]
    parts: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.segment_ids)

    def __getitem__(self, rows: NDArray[np.intp] | NDArray[np.bool_] | slice) -> Self:
        return type(self)(*(getattr(self, column.name)[rows] for column in fields(self)))

    def reach(self, least_score: float) -> NDArray[np.bool_]:
        """bool [N]: whose total is at least this, which may be beyond what float32 holds."""
        enough: NDArray[np.bool_] = self.total.astype(np.float64) >= least_score
        return enough

    @classmethod
    def none(cls) -> Self:
        """No segments."""
        ids = np.empty(0, np.int64)
        return cls(ids, ids, np.empty(0, np.float32), np.empty((0, 4), np.float32))

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """All of `parts`, one after the other; at least one."""
        return cls(*(np.concatenate([getattr(p, column.name) for p in parts]) for column in fields(cls)))


def best(scored: ScoredSegments, group_by: GroupBy) -> ScoredSegments:
    """Best first, equal scores by ascending segment id; by `video`, only the best segment of each."""
    ranked = scored[np.lexsort((scored.segment_ids, -scored.total))]
    if group_by == "segment":
        return ranked
    _, first_places = np.unique(ranked.video_numbers, return_index=True)
    return ranked[np.sort(first_places)]
