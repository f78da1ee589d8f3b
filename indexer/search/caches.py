"""The segments that filters match, kept from search to search."""

from __future__ import annotations

import threading
from collections import OrderedDict

from indexer.coarse.exact import SegmentSet
from indexer.store.filters import Filter
from indexer.store.records import Matches
from indexer.store.store import SearchedStore


class FilterCache:
    """The segments that the filters used last match. Safe to use from several threads.

    max_filters: how many filters are kept, at 8 bytes a matching segment and a bit for each segment.
    """

    def __init__(self, catalog: SearchedStore, max_filters: int = 16) -> None:
        self._catalog = catalog
        self._max_filters = max_filters
        self._lock = threading.Lock()
        self._kept: OrderedDict[Filter, tuple[Matches, SegmentSet]] = OrderedDict()

    def matching(self, chosen: Filter) -> SegmentSet:
        """The segments whose videos fulfil `chosen` now; the same object as long as nothing has changed.

        Raises IndexDamagedError.
        """
        with self._lock:
            former, segments = self._kept.get(chosen, (None, None))
        matches = self._catalog.matching(chosen, former)
        if segments is None or matches is not former:
            segments = SegmentSet(matches.segment_ids)
        with self._lock:
            newest = self._kept.get(chosen)
            # Another thread may have kept later matches meanwhile.
            if newest is None or newest[0].sequence <= matches.sequence:
                self._kept[chosen] = matches, segments
            self._kept.move_to_end(chosen)
            while len(self._kept) > self._max_filters:
                self._kept.popitem(last=False)
        return segments
