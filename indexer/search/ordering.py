"""All results of a query in their order, from a place on, as far as a page needs.

The coarse order of a query in tiers: the first `candidates` segments, the next so many, and so on.

Each tier is put in order by itself, so what comes first does not depend on how much is asked for. A tier is
known by the edges of its coarse scores, not by places in a list, so that it stays what it is while segments
come and go.

Scored segments, and the best of them: one for each video, or all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from indexer.coarse.index import CoarseIndex
from indexer.search.search_cursor import RELATIVE_TOLERANCE, Edge, Place
from indexer.search.types import GroupBy
from indexer.store.sqlite.catalog import Catalog, segments_of_videos

Ordered = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Products float32 [N], descending, and segment ids int64 [N]."""

SPARE_CANDIDATES: Final = 32
"""Asked for beyond the wanted ones, for segments that came after the first page and are left out."""


class CoarseOrder:
    """The segments nearest to one query, in ever longer stretches from the top.

    query: float32 [D]. allowed: as in `CoarseIndex.search`. max_segment_id: segments above are left out.
    """

    def __init__(
        self,
        index: CoarseIndex,
        query: NDArray[np.float32],
        allowed: NDArray[np.int64] | None,
        max_segment_id: int,
    ) -> None:
        self._index = index
        self._query = query
        self._allowed = allowed
        self._max_segment_id = max_segment_id
        self.tolerance = RELATIVE_TOLERANCE * float(np.linalg.norm(query))

    def top(self, count: int, known: Ordered | None = None) -> Ordered:
        """At least the first `count`, or all where there are fewer.

        known: the answer to a search for `count + SPARE_CANDIDATES` that was made already.
        """
        asked = count + SPARE_CANDIDATES
        while True:
            if known is not None:
                products, ids = known
                known = None
            else:
                rows = self._index.search(self._query[None], asked, self._allowed)
                products, ids = rows[0][0], rows[1][0]
            is_all = len(ids) < asked
            in_time = ids <= self._max_segment_id
            if is_all or np.count_nonzero(in_time) >= count:
                return products[in_time], ids[in_time]
            asked *= 2


@dataclass(frozen=True, eq=False)
class Tier:
    """Candidates that are put in order together, with their edges.

    start: None for the first. num_candidates: segments up to its end, those of the tiers before too.
    """

    products: NDArray[np.float32]
    ids: NDArray[np.int64]
    start: Edge | None
    end: Edge | None
    num_candidates: int


class CandidateTiers:
    """Tiers of `size` candidates one after the other, from the top or from the tier of a `place` on.

    ids_before: segments of tiers before that place.
    """

    def __init__(self, order: CoarseOrder, size: int, place: Place | None) -> None:
        self._order = order
        self._size = size
        self._resumed = place
        self._end = None if place is None else place.tier_start
        self.num_candidates = 0 if place is None else place.num_candidates
        self.ids_before = np.empty(0, np.int64)

    def num_needed(self, num_tiers: int) -> int:
        """What `next` of so many tiers asks the coarse order for."""
        new_tiers = num_tiers - (self._resumed is not None)
        return self.num_candidates + new_tiers * self._size

    def next(self, num_tiers: int, known: Ordered | None = None) -> list[Tier]:
        """At most so many further tiers, fewer only where no candidates are left; the tier of the place is
        the first, if it is left with something. known: see `CoarseOrder.top`."""
        products, ids = self._order.top(self.num_needed(num_tiers), known)
        tolerance = self._order.tolerance
        tiers = []
        if self._resumed is not None:
            place, self._resumed = self._resumed, None
            if place.tier_start is not None:
                before = place.tier_start.covers(products, ids, tolerance)
                self.ids_before = ids[before]
                products, ids = products[~before], ids[~before]
            if place.tier_end is not None:
                inside = place.tier_end.covers(products, ids, tolerance)
                tiers.append(
                    Tier(products[inside], ids[inside], place.tier_start, place.tier_end, self.num_candidates)
                )
                self._end = place.tier_end
        if self._end is not None:
            rest = ~self._end.covers(products, ids, tolerance)
            products, ids = products[rest], ids[rest]
        for first in range(0, len(ids), self._size):
            if len(tiers) == num_tiers:
                break
            some = slice(first, first + self._size)
            start, self._end = self._end, Edge.behind(products[some], ids[some], tolerance, self._end)
            self.num_candidates += len(ids[some])
            tiers.append(Tier(products[some], ids[some], start, self._end, self.num_candidates))
        return tiers


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


MAX_CANDIDATES_AT_ONCE = 8192
"""More are scored for one page only where the page needs them: bounds what a cut by score makes us score."""

Score = Callable[[NDArray[np.int64], NDArray[np.float32]], ScoredSegments]
"""Segment ids and coarse products to scores, in the same order; segments that are gone are left out."""


@dataclass(frozen=True, eq=False)
class OrderedResults:
    """N results, best first.

    tier_numbers: int64 [N], places in `tiers`, ascending. tiers: empty where everything is one tier.
    place: behind which they begin. num_looked_at: segments that they were chosen from, those of the pages
    before too. tolerance: within which scores may be equal.
    """

    scored: ScoredSegments
    tier_numbers: NDArray[np.int64]
    tiers: Sequence[Tier]
    place: Place | None
    num_looked_at: int
    tolerance: float

    def __len__(self) -> int:
        return len(self.scored)

    def without(self, segment_ids: Sequence[int]) -> OrderedResults:
        """The same, less some segments."""
        rest = ~np.isin(self.scored.segment_ids, segment_ids)
        return replace(self, scored=self.scored[rest], tier_numbers=self.tier_numbers[rest])

    def place_behind(self, count: int) -> Place:
        """Where the next page begins, if the first `count` of these, at least 1, are given on this one."""
        number = int(self.tier_numbers[count - 1])
        given = self.scored[np.flatnonzero(self.tier_numbers[:count] == number)]
        former = self.place.last if self.place is not None and number == 0 else None
        last = Edge.behind(given.total, given.segment_ids, self.tolerance, former)
        num_results = count + (0 if self.place is None else self.place.num_results)
        if not self.tiers:
            return Place(None, None, last, 0, num_results)
        tier = self.tiers[number]
        return Place(tier.start, tier.end, last, tier.num_candidates, num_results)


def order_candidates(
    tiers: CandidateTiers,
    tier_size: int,
    score: Score,
    catalog: Catalog,
    *,
    num_wanted: int,
    group_by: GroupBy,
    least_score: float | None,
    place: Place | None,
    tolerance: float,
    known: Ordered | None = None,
) -> OrderedResults:
    """At least `num_wanted` results of the tiers where there are so many: each tier in the order of its
    scores, one tier after the other.

    By `video`, a video has its result in the first tier that holds a segment of it, by its best one there.
    With a `least_score` the first tier of which nothing reaches it is the end.
    known: the coarse answer that the first tiers are made of, see `CoarseOrder.top`.
    """
    all_tiers: list[Tier] = []
    results, numbers = [ScoredSegments.none()], [np.empty(0, np.int64)]
    seen_videos = np.empty(0, np.int64)
    num_found = 0
    num_tiers = first_num_tiers(num_wanted, tier_size)
    while num_found < num_wanted:
        some = tiers.next(num_tiers, known)
        known = None
        if not some:
            break
        scored, tier_numbers, is_end = _score_tiers(some, score, len(all_tiers), least_score)
        given = np.empty(0, np.int64)
        if place is not None and not all_tiers:
            in_first = tier_numbers == 0
            covered = in_first & place.last.covers(scored.total, scored.segment_ids, tolerance)
            given = np.unique(scored.video_numbers[covered])
            if group_by == "segment":
                scored, tier_numbers = scored[~covered], tier_numbers[~covered]
        if group_by == "video":
            scored, tier_numbers = _first_of_videos(scored, tier_numbers)
            before = _videos_of(catalog, tiers.ids_before, scored.video_numbers)
            new = ~np.isin(scored.video_numbers, np.concatenate([seen_videos, before, given]))
            seen_videos = np.union1d(seen_videos, scored.video_numbers)
            scored, tier_numbers = scored[new], tier_numbers[new]
        if least_score is not None:
            enough = scored.reach(least_score)
            scored, tier_numbers = scored[enough], tier_numbers[enough]
        all_tiers += some
        results.append(scored)
        numbers.append(tier_numbers)
        num_found += len(scored)
        if is_end or len(some) < num_tiers:
            break
        missing = first_num_tiers(num_wanted - num_found, tier_size)
        is_poor = 2 * len(scored) < sum(len(tier.ids) for tier in some)
        if is_poor and not (place is not None and len(all_tiers) == len(some)):
            # Many segments belong to few videos, or few are good enough: go on in longer strides.
            num_tiers = max(missing, min(2 * num_tiers, MAX_CANDIDATES_AT_ONCE // tier_size))
        else:
            num_tiers = missing
    return OrderedResults(
        ScoredSegments.cat(results),
        np.concatenate(numbers),
        all_tiers,
        place,
        tiers.num_candidates,
        tolerance,
    )


def first_num_tiers(num_wanted: int, tier_size: int) -> int:
    """Tiers that hold so many segments, at least 1."""
    return max(1, -(-num_wanted // tier_size))


def _score_tiers(
    tiers: Sequence[Tier], score: Score, first_number: int, least_score: float | None
) -> tuple[ScoredSegments, NDArray[np.int64], bool]:
    """Segments of the tiers by tier and score, the number of each one's tier, and whether they end with one
    that does not reach the least score."""
    ids = np.concatenate([tier.ids for tier in tiers])
    products = np.concatenate([tier.products for tier in tiers])
    scored = score(ids, products)
    by_id = np.argsort(ids)
    places = by_id[np.searchsorted(ids, scored.segment_ids, sorter=by_id)]
    ends = np.cumsum([len(tier.ids) for tier in tiers])
    numbers = first_number + np.searchsorted(ends, places, side="right")
    order = np.lexsort((scored.segment_ids, -scored.total, numbers))
    scored, numbers = scored[order], numbers[order]
    if least_score is None:
        return scored, numbers, False
    for number, tier in enumerate(tiers, start=first_number):
        if len(tier.ids) and not scored[numbers == number].reach(least_score).any():
            before = numbers < number
            return scored[before], numbers[before], True
    return scored, numbers, False


def _first_of_videos(
    scored: ScoredSegments, tier_numbers: NDArray[np.int64]
) -> tuple[ScoredSegments, NDArray[np.int64]]:
    """The first segment of each video."""
    _, places = np.unique(scored.video_numbers, return_index=True)
    places.sort()
    return scored[places], tier_numbers[places]


def _videos_of(
    catalog: Catalog, segment_ids: NDArray[np.int64], video_numbers: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Those of `video_numbers` that one of the segments belongs to."""
    if not len(segment_ids) or not len(video_numbers):
        return np.empty(0, np.int64)
    ids, numbers = segments_of_videos(catalog, video_numbers)
    found: NDArray[np.int64] = np.unique(numbers[np.isin(ids, segment_ids)])
    return found


class ExhaustiveOrder:
    """The best `keep` results of all segments behind a place, given block by block, in bounded memory.

    Blocks come by ascending segment id. The segments of one video follow each other: it is stored at once.
    """

    def __init__(self, keep: int, group_by: GroupBy, place: Place | None, tolerance: float) -> None:
        self._keep = keep
        self._group_by = group_by
        self._place = place
        self._tolerance = tolerance
        self._kept = ScoredSegments.none()
        self._given_videos = np.empty(0, np.int64)
        self._num_looked_at = 0

    def add(self, block: ScoredSegments) -> None:
        """Take in more segments."""
        self._num_looked_at += len(block)
        together = ScoredSegments.cat([self._kept, block])
        if self._place is not None:
            covered = self._place.last.covers(together.total, together.segment_ids, self._tolerance)
            if self._group_by == "segment":
                together = together[~covered]
            else:
                # Only the video that the last block ended with may come again.
                last = self._given_videos[-1:]
                given = np.concatenate([last, np.unique(together.video_numbers[covered])])
                together = together[~np.isin(together.video_numbers, given)]
                self._given_videos = np.unique(given)
        # A video that is given already and not known as such yet may hold one place: one more is kept.
        self._kept = best(together, self._group_by)[: self._keep + 1]

    def result(self, least_score: float | None) -> OrderedResults:
        """The best so far, best first."""
        scored = self._kept[: self._keep]
        if least_score is not None:
            scored = scored[scored.reach(least_score)]
        return OrderedResults(
            scored, np.zeros(len(scored), np.int64), (), self._place, self._num_looked_at, self._tolerance
        )
