"""Near duplicates: of results that look the same the best one stays, and the others become its copies.

    results    a  b  a' c  b' a" d        (a' and a" look like a, b' like b)
    folded     a  b  c  d                 a has 2 copies, b has one

A result is compared with those before it that stayed, and is folded into the first of them with whose video
feature its own has a cosine of at least the threshold. So what becomes of a result depends on those before it
alone: pages of any size cut one and the same folded order, and none repeats what an earlier one folded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from indexer.features.reader import FeatureReader
from indexer.search.ordering import ScoredSegments
from indexer.search.types import MAX_COPIES, Copy
from indexer.store.cancellation import raise_if_cancelled
from indexer.store.store import SearchedStore

LOOK_AHEAD: Final = 1_000
"""So many results, where they are at hand, are looked through for copies of those on the page."""

_ROUNDING: Final = 1e-6
"""What the cosine of equal features may lack of 1 in float32: some roundings of a sum of D terms."""

_BLOCK_ROWS: Final = 256


@dataclass(frozen=True, eq=False)
class Copies:
    """What was folded into a result, best first. segment_ids: int64 [N]. similarities: float32 [N]."""

    segment_ids: NDArray[np.int64]
    similarities: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.segment_ids)


@dataclass(frozen=True, eq=False)
class Results:
    """Results best first, and what was folded into those that have copies, by their segment ids."""

    ordered: ScoredSegments
    copies: Mapping[int, Copies] = field(default_factory=dict)


def fold_results(
    order: Callable[[int], ScoredSegments],
    features: FeatureReader,
    num_wanted: int,
    threshold: float | None,
) -> Results:
    """The first `num_wanted` results that stay, or all that do.

    Args:
        order: Gives at least so many results, best first, or all that there are; more than it was asked for
            where they are known anyway. What it gives begins with what it gives where it is asked for fewer.
        features: Where video features are read.
        num_wanted: Results up to the end of the page.
        threshold: The least cosine of results that are one; None gives what `order` gives.

    Raises IndexDamagedError.
    """
    ordered, asked = order(num_wanted), num_wanted
    if threshold is None:
        return Results(ordered)
    depth = max(num_wanted, LOOK_AHEAD)
    while True:
        raise_if_cancelled()
        some, vectors = _with_features(ordered[:depth], features)
        leaders, cosines = leaders_of(vectors, threshold, num_wanted)
        stay = np.flatnonzero(leaders == np.arange(len(leaders)))
        if len(stay) >= num_wanted or (depth >= len(ordered) and len(ordered) < asked):
            return Results(some[stay], _copies(some.segment_ids, leaders, cosines))
        if depth >= len(ordered):
            # In ever longer strides, as many results may look the same.
            asked = 4 * len(ordered)
            ordered = order(asked)
        depth = 4 * depth


def leaders_of(
    vectors: NDArray[np.float32], threshold: float, most: int | None = None
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """What each row is folded into.

    Args:
        vectors: float32 [N, D], of unit length, best first.
        threshold: The least cosine of rows that are one.
        most: How many rows stay at most; None for all.

    Returns:
        For each row the number of the row that it is folded into, intp [N]: its own where it stays, -1 where
        it would stay but `most` rows before it do; and its cosine with that row, float32 [N].

    >>> leaders_of(np.array([[1, 0], [0, 1], [1, 0], [0.6, 0.8]], np.float32), 0.9)[0].tolist()
    [0, 1, 0, 3]
    """
    count, least = len(vectors), threshold - _ROUNDING
    most = count if most is None else most
    leaders, cosines = np.full(count, -1, np.intp), np.zeros(count, np.float32)
    stayed: list[int] = []
    for start in range(0, count, _BLOCK_ROWS):
        rows = np.arange(start, min(start + _BLOCK_ROWS, count))
        if stayed:
            products = vectors[rows] @ vectors[stayed].T
            is_near = products >= least
            near = np.flatnonzero(is_near.any(axis=1))
            first = is_near[near].argmax(axis=1)
            leaders[rows[near]] = np.array(stayed)[first]
            cosines[rows[near]] = products[near, first]
            rows = rows[leaders[rows] < 0]
        while len(rows) and len(stayed) < most:
            # Of what is near to no earlier one the first stays, and takes what is near to it of the block.
            products = vectors[rows] @ vectors[rows[0]]
            is_near = products >= least
            is_near[0] = True
            leaders[rows[is_near]], cosines[rows[is_near]] = rows[0], products[is_near]
            stayed.append(int(rows[0]))
            rows = rows[~is_near]
    return leaders, cosines


def read_copies(catalog: SearchedStore, results: Results, segment_ids: Sequence[int]) -> list[list[Copy]]:
    """Of each of these results what was folded into it and still exists, MAX_COPIES at most."""
    copies = [results.copies.get(segment_id) for segment_id in segment_ids]
    named = [one.segment_ids[:MAX_COPIES] for one in copies if one is not None]
    if not named:
        return [[] for _ in copies]
    records = catalog.segments_and_videos(np.concatenate(named))
    return [
        []
        if one is None
        else [
            Copy(records[segment_id][1].id, segment_id, similarity)
            for segment_id, similarity in zip(
                one.segment_ids[:MAX_COPIES].tolist(), one.similarities.tolist(), strict=False
            )
            if segment_id in records
        ]
        for one in copies
    ]


def _with_features(
    ordered: ScoredSegments, features: FeatureReader
) -> tuple[ScoredSegments, NDArray[np.float32]]:
    """Those that still exist, and their video features, float32 [N, D]."""
    found, vectors = features.video_features(ordered.segment_ids)
    ordered = ordered[np.isin(ordered.segment_ids, found)]
    return ordered, vectors[np.searchsorted(found, ordered.segment_ids)]


def _copies(
    segment_ids: NDArray[np.int64], leaders: NDArray[np.intp], cosines: NDArray[np.float32]
) -> dict[int, Copies]:
    folded = np.flatnonzero((leaders >= 0) & (leaders != np.arange(len(leaders))))
    return {
        int(segment_ids[leader]): Copies(segment_ids[rows], cosines[rows])
        for leader in np.unique(leaders[folded]).tolist()
        for rows in [folded[leaders[folded] == leader]]
    }
