"""Which segments a filter lets through, kept up to date with the catalog instead of being asked for anew."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from indexer.errors import ChangesForgottenError, IndexDamagedError
from indexer.store.filters import Filter
from indexer.store.records import Change
from indexer.store.sqlite.catalog import Catalog
from indexer.store.sqlite.changes import last_sequence, read_changes, read_token
from indexer.store.sqlite.integrity import is_checked
from indexer.store.sqlite.video_rows import damaged_videos

MAX_CHANGES_TO_FOLLOW: Final = 10_000
"""Where more has changed since a filter was last used, all videos are asked again."""


@dataclass(frozen=True, eq=False)
class _Matches:
    """segment_ids: int64, ascending, as the catalog was after the change `sequence` (with that `token`)."""

    sequence: int
    token: str | None
    segment_ids: NDArray[np.int64]


class FilterMatches:
    """Remembers the segments of the filters used last. Safe to use from several threads.

    max_filters: how many are remembered, at 8 bytes a matching segment.
    """

    def __init__(self, catalog: Catalog, max_filters: int = 16) -> None:
        self._catalog = catalog
        self._max_filters = max_filters
        self._lock = threading.Lock()
        self._remembered: OrderedDict[Filter, _Matches] = OrderedDict()
        self._must_check = is_checked(catalog.path)

    def segment_ids(self, chosen: Filter) -> NDArray[np.int64]:
        """Ids of the segments whose videos fulfil `chosen` now: int64, ascending, not to be written to.

        Raises IndexDamagedError. A damaged record might fulfil a filter, or not, without ever being read
        again: of a catalog that is small enough all are checked before the first answer.
        """
        with self._lock:
            former = self._remembered.get(chosen)
        with self._catalog.connections.snapshot() as connection:
            if self._must_check:
                _check_videos(connection)
                self._must_check = False
            matches = _follow(connection, chosen, former) if former else _ask(connection, chosen)
        with self._lock:
            newest = self._remembered.get(chosen)
            # Another thread may have come further meanwhile.
            if newest is None or newest.sequence <= matches.sequence:
                self._remembered[chosen] = matches
            self._remembered.move_to_end(chosen)
            while len(self._remembered) > self._max_filters:
                self._remembered.popitem(last=False)
        return matches.segment_ids


def _check_videos(connection: sqlite3.Connection) -> None:
    for number, problem in damaged_videos(connection):
        raise IndexDamagedError(
            f"the catalog is damaged: video number {number}: {problem}; run verify, delete it and index it"
            " again, or restore a backup"
        )


def _ask(connection: sqlite3.Connection, chosen: Filter) -> _Matches:
    """From all videos."""
    sequence = last_sequence(connection)
    rows = connection.execute(
        "SELECT segments.id FROM segments JOIN videos ON videos.number = segments.video_number"
        f" WHERE {chosen.sql}",
        chosen.values,
    )
    ids = np.fromiter((segment_id for (segment_id,) in rows), np.int64)
    ids.sort()
    return _Matches(sequence, read_token(connection, sequence), ids)


def _follow(connection: sqlite3.Connection, chosen: Filter, former: _Matches) -> _Matches:
    """From what is remembered and the videos that have changed since."""
    sequence = last_sequence(connection)
    if sequence == former.sequence and read_token(connection, sequence) == former.token:
        return former
    try:
        changes = read_changes(connection, former.sequence, MAX_CHANGES_TO_FOLLOW)
        known = read_token(connection, former.sequence) == former.token
    except ChangesForgottenError:
        return _ask(connection, chosen)
    if not known or not changes or changes[-1].sequence < sequence:
        return _ask(connection, chosen)
    touched = _segments_of(connection, changes)
    ids = former.segment_ids[~np.isin(former.segment_ids, touched)]
    ids = np.union1d(ids, _matching_among(connection, chosen, changes))
    return _Matches(sequence, read_token(connection, sequence), ids)


def _segments_of(connection: sqlite3.Connection, changes: Sequence[Change]) -> NDArray[np.int64]:
    """Segments that changed videos have now or had when they were deleted."""
    ids = [segment_id for change in changes for segment_id in change.segment_ids]
    rows = connection.execute(
        "SELECT segments.id FROM segments JOIN videos ON videos.number = segments.video_number"
        " WHERE videos.id IN (SELECT value FROM json_each(?))",
        (_video_ids(changes),),
    )
    return np.array([*ids, *(segment_id for (segment_id,) in rows)], np.int64)


def _matching_among(
    connection: sqlite3.Connection, chosen: Filter, changes: Sequence[Change]
) -> NDArray[np.int64]:
    rows = connection.execute(
        "SELECT segments.id FROM segments JOIN videos ON videos.number = segments.video_number"
        f" WHERE videos.id IN (SELECT value FROM json_each(?)) AND {chosen.sql}",
        (_video_ids(changes), *chosen.values),
    )
    return np.array([segment_id for (segment_id,) in rows], np.int64)


def _video_ids(changes: Sequence[Change]) -> str:
    return json.dumps(sorted({change.video_id for change in changes if change.kind != "delete"}))
