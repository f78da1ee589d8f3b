"""The coarse order of a query in tiers: the first `candidates` segments, the next so many, and so on.

Each tier is put in order by itself, so what comes first does not depend on how much is asked for. A tier is
known by the edges of its coarse scores, not by places in a list, so that it stays what it is while segments
come and go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from indexer.coarse_index import CoarseIndex
from indexer.search_cursor import RELATIVE_TOLERANCE, Edge, Place

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
