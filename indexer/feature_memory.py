"""Features of segments for scoring: from the catalog."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from indexer.catalog import Catalog
from indexer.catalog_records import SegmentFeatures


class FeatureMemory:
    """Features of the segments of a catalog, as they are now. Safe to use from several threads."""

    def __init__(self, catalog: Catalog, *, size_bytes: int = 0) -> None:
        """size_bytes: how much may be kept in memory; 0: nothing."""
        if size_bytes < 0:
            raise ValueError("size_bytes is at least 0")
        self._catalog = catalog

    def get(self, segment_ids: NDArray[np.int64]) -> SegmentFeatures:
        """Features of `segment_ids`, in the order asked; ids that do not exist (any more) are left out."""
        return self._catalog.segment_features(segment_ids)

    def blocks(self, block_size: int, allowed: NDArray[np.int64] | None = None) -> Iterator[SegmentFeatures]:
        """Features of all segments, or of `allowed`, in blocks of at most `block_size`, ids ascending.

        allowed: int64, ascending. What is added or deleted meanwhile may or may not come.
        """
        if allowed is None:
            yield from self._catalog.iterate_features(block_size)
            return
        for first in range(0, len(allowed), block_size):
            yield self.get(allowed[first : first + block_size])
