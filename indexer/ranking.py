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


def num_groups(scored: ScoredSegments, group_by: GroupBy) -> int:
    """How many results these segments can make."""
    return len(scored) if group_by == "segment" else len(np.unique(scored.video_numbers))


class RunningBest:
    """The best `keep` results of any number of segments, given block by block, in bounded memory.

    Dropping a video is final only for the segments seen so far: a later segment of it stands for it by its
    own, higher score.
    """

    def __init__(self, keep: int, group_by: GroupBy) -> None:
        self._keep = keep
        self._group_by = group_by
        self._kept = ScoredSegments.none()

    def add(self, block: ScoredSegments) -> None:
        """Take in more segments."""
        self._kept = best(ScoredSegments.cat([self._kept, block]), self._group_by)[: self._keep]

    def result(self) -> ScoredSegments:
        """The best so far, best first."""
        return self._kept
