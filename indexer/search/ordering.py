"""The order of results: a rerank window ordered by the full score, and behind it the coarse order.

    coarse order   s7 s2 s9 s4 | s1 s3 s8 s5 s6 ...
    window of 4    s9 s7 s4 s2 |                      by the full score
    results        s9 s7 s4 s2   s1 s3 s8 s5 s6 ...

The window is the first `candidates` segments whatever page is asked for, so pages of any size cut one and the
same order. Behind it segments are looked up only as far as a page needs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from indexer.coarse.exact import SegmentSet
from indexer.coarse.index import CoarseIndex
from indexer.search.types import GroupBy, SearchQuery
from indexer.store.cancellation import raise_if_cancelled
from indexer.store.store import SearchedStore
from model.score_names import SCORE_NAMES

CoarseHits = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Products float32 [N], descending, and segment ids int64 [N]."""


@dataclass(frozen=True, eq=False)
class ScoredSegments:
    """N segments with their scores.

    segment_ids, video_keys: int64 [N]. total: float32 [N], what the order is by; NaN behind a rerank
    window, where the full score is not known yet. parts: float32 [N, 4], the four scores in the model's
    order, NaN where not computed.
    """

    segment_ids: NDArray[np.int64]
    video_keys: NDArray[np.int64]
    total: NDArray[np.float32]
    parts: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.segment_ids)

    def __getitem__(self, rows: NDArray[np.intp] | NDArray[np.bool_] | slice) -> Self:
        return type(self)(*(getattr(self, column.name)[rows] for column in fields(self)))

    def without(self, segment_ids: NDArray[np.int64]) -> Self:
        """The same less some segments."""
        return self[~np.isin(self.segment_ids, segment_ids)]

    def nearest(self, count: int) -> Self:
        """The `count` with the highest `video_sentence`, as the coarse index orders them; all where there are
        no more."""
        if len(self) <= count:
            return self
        products = self.parts[:, SCORE_NAMES.index("video_sentence")]
        return self[np.lexsort((self.segment_ids, -products))[:count]]

    def at_least(self, score: float | None) -> Self:
        """Those whose total is at least `score`; all for None."""
        # In float64: the score may be beyond what float32 holds.
        return self if score is None else self[self.total.astype(np.float64) >= score]

    @classmethod
    def none(cls) -> Self:
        """No segments."""
        ids = np.empty(0, np.int64)
        return cls(ids, ids, np.empty(0, np.float32), np.empty((0, len(SCORE_NAMES)), np.float32))

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """All of `parts` one after the other; at least one."""
        return cls(*(np.concatenate([getattr(p, column.name) for p in parts]) for column in fields(cls)))


def best(scored: ScoredSegments, group_by: GroupBy) -> ScoredSegments:
    """Best first, equal scores by ascending segment id; by `video`, only the best segment of each."""
    ranked = scored[np.lexsort((scored.segment_ids, -scored.total))]
    if group_by == "segment":
        return ranked
    _, first_positions = np.unique(ranked.video_keys, return_index=True)
    return ranked[np.sort(first_positions)]


def best_of_blocks(blocks: Iterable[ScoredSegments], keep: int, group_by: GroupBy) -> ScoredSegments:
    """The `keep` best results of many segments that come block by block, in bounded memory."""
    kept = ScoredSegments.none()
    for block in blocks:
        if 0 < keep == len(kept):
            # Below the last one that is kept nothing enters, and after a few blocks nearly all is: sorting is
            # for the rest. What ties with it may have a lower id.
            block = block[block.total >= kept.total[-1]]
            if not len(block):
                continue
        kept = best(ScoredSegments.cat([kept, block]), group_by)[:keep]
    return kept


class CoarseOrder:
    """The segments of an index in the coarse order of one query, found as far as they are asked for.

    vector: float32 [D], the coarse query. allowed: as in `CoarseIndex.search`. scale: of the scores.
    """

    def __init__(
        self,
        index: CoarseIndex,
        catalog: SearchedStore,
        vector: NDArray[np.float32],
        allowed: SegmentSet | None,
        scale: float,
    ) -> None:
        self._index = index
        self._catalog = catalog
        self._vector = vector
        self._allowed = allowed
        self._scale = np.float32(scale)

    def top(self, count: int) -> CoarseHits:
        """The first `count`, or all where there are fewer."""
        products, ids = self._index.search(self._vector[None], count, self._allowed)
        return products[0], ids[0]

    def scored(self, hits: CoarseHits) -> ScoredSegments:
        """The hits that still exist, with `video_sentence` as their total."""
        products, ids = hits
        by_id = np.argsort(ids)
        found, video_keys = self._catalog.owners_of_segments(ids)
        rows = by_id[np.searchsorted(ids, found, sorter=by_id)]
        total = products[rows] * self._scale
        parts = np.full((len(total), len(SCORE_NAMES)), np.nan, np.float32)
        parts[:, SCORE_NAMES.index("video_sentence")] = total
        return ScoredSegments(found, video_keys, total, parts)


def num_coarse_hits(query: SearchQuery, num_wanted: int) -> int:
    """What to ask the coarse index for first: the rerank window, or in `coarse` mode what is enough."""
    return query.candidates if query.mode == "rerank" else _deepen(query.candidates, num_wanted + 1)


def order_candidates(
    coarse: CoarseOrder,
    query: SearchQuery,
    first: CoarseHits,
    window: ScoredSegments,
    least_score: float | None,
    num_wanted: int,
) -> ScoredSegments:
    """Results best first, at least `num_wanted` or all there are.

    first: an answer of `coarse.top`, in `rerank` mode the window. window: its segments with their full scores
    in `rerank` mode, nothing in `coarse` mode. By `video`, a video has its result by its best segment in the
    window, or else by its first one behind it. A `least_score` ends the results with the window, behind which
    no full score is known.
    """
    head = best(window, query.group_by).at_least(least_score)
    hits, count = first, num_coarse_hits(query, num_wanted)
    if query.mode == "rerank":
        if least_score is not None or len(head) >= num_wanted or len(hits[1]) < count:
            return head
        count = _deepen(count, count + num_wanted - len(head) + 1)
        hits = coarse.top(count)
    while True:
        is_all = len(hits[1]) < count
        if not is_all:
            # Which of the segments that tie with the last one were found depends on the depth: drop them.
            settled = hits[0] > hits[0][-1]
            hits = hits[0][settled], hits[1][settled]
        scored = coarse.scored(hits).without(window.segment_ids)
        tail = best(scored, query.group_by)
        if query.group_by == "video":
            tail = tail[~np.isin(tail.video_keys, window.video_keys)]
        tail = tail.at_least(least_score)
        # Coarse scores only fall: what comes later than one that is too low is too low as well.
        is_end = is_all or len(scored.at_least(least_score)) < len(scored)
        if is_end or len(head) + len(tail) >= num_wanted:
            break
        # Many segments belong to few videos: look further, in ever longer strides.
        raise_if_cancelled()
        count *= 2
        hits = coarse.top(count)
    if query.mode == "rerank":
        unknown = np.full(len(tail), np.nan, np.float32)
        tail = replace(tail, total=unknown, parts=np.full_like(tail.parts, np.nan))
    return ScoredSegments.cat([head, tail])


def _deepen(count: int, least: int) -> int:
    """`count`, doubled until it is at least `least`.

    Few different depths, because an approximate index may answer differently to each.
    """
    while count < least:
        count *= 2
    return count
