"""Which segments belong to which videos, without reading anything else of them."""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from indexer.catalog import Catalog

Owners = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Segment ids int64 [N], ascending, and the catalog's number of each one's video."""


def segments_of_videos(catalog: Catalog, video_numbers: NDArray[np.int64]) -> Owners:
    """All segments of these videos."""
    return _read(catalog, "video_number", video_numbers)


def owners_of_segments(catalog: Catalog, segment_ids: NDArray[np.int64]) -> Owners:
    """Those of these segments that exist."""
    return _read(catalog, "id", segment_ids)


def _read(catalog: Catalog, column: str, values: NDArray[np.int64]) -> Owners:
    with catalog.connections.reading() as connection:
        rows = connection.execute(
            "SELECT id, video_number FROM segments"
            f" WHERE {column} IN (SELECT value FROM json_each(?)) ORDER BY id",
            (json.dumps(values.tolist()),),
        ).fetchall()
    table = np.array(rows, np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]
