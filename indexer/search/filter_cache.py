"""Which segments a filter lets through, kept up to date with the catalog instead of being asked for anew."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from indexer.store.filters import Filter
from indexer.store.records import Matches
from indexer.store.sqlite.catalog import Catalog


class FilterMatches:
    """Remembers the segments of the filters used last. Safe to use from several threads.

    max_filters: how many are remembered, at 8 bytes a matching segment.
    """

    def __init__(self, catalog: Catalog, max_filters: int = 16) -> None:
        self._catalog = catalog
        self._max_filters = max_filters
        self._lock = threading.Lock()
        self._remembered: OrderedDict[Filter, Matches] = OrderedDict()

    def segment_ids(self, chosen: Filter) -> NDArray[np.int64]:
        """Ids of the segments whose videos fulfil `chosen` now: int64, ascending, not to be written to.

        Raises IndexDamagedError.
        """
        with self._lock:
            former = self._remembered.get(chosen)
        matches = self._catalog.matching(chosen, former)
        with self._lock:
            newest = self._remembered.get(chosen)
            # Another thread may have come further meanwhile.
            if newest is None or newest.sequence <= matches.sequence:
                self._remembered[chosen] = matches
            self._remembered.move_to_end(chosen)
            while len(self._remembered) > self._max_filters:
                self._remembered.popitem(last=False)
        return matches.segment_ids
