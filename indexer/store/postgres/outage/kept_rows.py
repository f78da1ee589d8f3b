"""A copy, on this machine's disk, of what results show: rows of segments and of their videos.

It is one SQLite file beside what else is derived from a generation. It follows the change log, and is only
read while the database does not answer (`stale_reads`, here). Rows keep their checksums. A file that cannot
be read is made again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from indexer.errors import ChangesForgottenError, IndexUnavailableError
from indexer.store.postgres.changes import read_changes, read_token
from indexer.store.postgres.connections import ROWS_AT_ONCE, Connections, StoreConnection
from indexer.store.records import SegmentInfo, StoreState, VideoRecord
from indexer.store.video_rows import COLUMNS, NUM_SEGMENT_COLUMNS, SEGMENT_AND_VIDEO, segment_and_video

logger = logging.getLogger(__name__)

FILE_NAME: Final = "rows.sqlite3"

_OF_VIDEO: Final = (*COLUMNS.split(", "), "row_crc32")
_OF_SEGMENT: Final = ("id", "start_seconds", "end_seconds", "num_frames", "frame_times", "row_crc32")
_SEGMENT: Final = [f"segments.{name}" for name in _OF_SEGMENT]
_SCHEMA: Final = f"""
CREATE TABLE IF NOT EXISTS state (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1), sequence INTEGER, token TEXT, num_videos INTEGER,
    num_segments INTEGER
);
CREATE TABLE IF NOT EXISTS videos (
    number INTEGER PRIMARY KEY, {", ".join(_OF_VIDEO)}
);
CREATE UNIQUE INDEX IF NOT EXISTS videos_by_id ON videos (id);
CREATE TABLE IF NOT EXISTS segments (
    id INTEGER PRIMARY KEY, video_number INTEGER, {", ".join(_OF_SEGMENT[1:])}
);
CREATE INDEX IF NOT EXISTS segments_by_video ON segments (video_number);
"""
_JOINED: Final = (
    f"SELECT {SEGMENT_AND_VIDEO} FROM segments JOIN videos ON videos.number = segments.video_number"
)


class KeptRows:
    """Of one generation of an index. Safe to use from several threads, and the file by several processes.

    folder: for what is derived from the generation, on this machine.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        self._lock = threading.Lock()
        self._connection = self._open()
        self._sequence = -1 if (state := self.state()) is None else state.sequence

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def state(self) -> StoreState | None:
        """The store as it was when the last change was taken in; None where nothing was copied yet."""
        with self._lock:
            row = self._connection.execute(
                "SELECT sequence, token, num_videos, num_segments FROM state"
            ).fetchone()
        return None if row is None else StoreState(*row)

    def segments_and_videos(
        self, segment_ids: Sequence[int] | NDArray[np.int64]
    ) -> dict[int, tuple[SegmentInfo, VideoRecord]]:
        """Those of these segments that are here. Raises IndexDamagedError."""
        with self._lock:
            rows = self._connection.execute(
                f"{_JOINED} WHERE segments.id IN (SELECT value FROM json_each(?))",
                (json.dumps(list(map(int, segment_ids))),),
            ).fetchall()
        return {row[0]: segment_and_video(row) for row in rows}

    def owners_of_segments(
        self, segment_ids: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids of those segments that are here, ascending, and the keys of their videos: int64 [N] each."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT id, video_number FROM segments WHERE id IN (SELECT value FROM json_each(?))"
                " ORDER BY id",
                (json.dumps(segment_ids.tolist()),),
            ).fetchall()
        table = np.array(rows, np.int64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    # Following

    def needs_update(self, sequence: int) -> bool:
        """Whether the store has changed. sequence: of its last change."""
        return self._sequence != sequence

    def update(self, connections: Connections) -> None:
        """Take in what has changed. Does nothing where the database does not answer."""
        with contextlib.suppress(IndexUnavailableError), connections.snapshot() as connection:
            sequence, token, *totals = connection.execute(
                "SELECT sequence, token, num_videos, num_segments FROM counters"
            ).fetchone() or (0, "", 0, 0)
            former = self.state()
            with self._writing() as target:
                changed = None if former is None else _changed_videos(connection, former)
                if changed is None:
                    target.execute("DELETE FROM segments")
                    target.execute("DELETE FROM videos")
                    blocks = _all_rows(connection)
                else:
                    _delete(target, changed)
                    blocks = _rows_of(connection, changed)
                for block in blocks:
                    _insert(target, block)
                target.execute(
                    "INSERT OR REPLACE INTO state VALUES (1, ?, ?, ?, ?)", (sequence, token, *totals)
                )
            self._sequence = sequence

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(self._open()) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except (
            sqlite3.DatabaseError,
            UnicodeDecodeError,
        ) as error:  # The latter of a damaged schema.
            logger.warning("%s is made again: %s", self._path, error)
            self._path.unlink(missing_ok=True)
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=60, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = OFF")  # What a crash breaks is made again.
            connection.executescript(_SCHEMA)
        except BaseException:
            connection.close()
            raise
        return connection


def _changed_videos(connection: StoreConnection, former: StoreState) -> list[str] | None:
    """Ids of the videos that have changed since; None where that is not known."""
    changed: dict[str, None] = {}
    sequence = former.sequence
    try:
        if read_token(connection, sequence) != former.token:
            return None  # Another history: a backup was restored.
        while changes := read_changes(connection, sequence, ROWS_AT_ONCE):
            changed.update((change.video_id, None) for change in changes)
            sequence = changes[-1].sequence
    except ChangesForgottenError:
        return None
    return list(changed)


def _all_rows(connection: StoreConnection) -> Iterator[list[tuple[Any, ...]]]:
    last = 0
    while rows := connection.execute(
        f"{_JOINED} WHERE segments.id > %s ORDER BY segments.id LIMIT %s", (last, ROWS_AT_ONCE), binary=True
    ).fetchall():
        last = rows[-1][0]
        yield rows


def _rows_of(connection: StoreConnection, video_ids: list[str]) -> Iterator[list[tuple[Any, ...]]]:
    for first in range(0, len(video_ids), ROWS_AT_ONCE):
        some = video_ids[first : first + ROWS_AT_ONCE]
        yield connection.execute(
            f"{_JOINED} WHERE videos.id = ANY(%s::text[])", (some,), binary=True
        ).fetchall()


def _delete(target: sqlite3.Connection, video_ids: list[str]) -> None:
    chosen = "(SELECT value FROM json_each(?))"
    given = (json.dumps(video_ids),)
    target.execute(
        f"DELETE FROM segments WHERE video_number IN (SELECT number FROM videos WHERE id IN {chosen})", given
    )
    target.execute(f"DELETE FROM videos WHERE id IN {chosen}", given)


def _insert(target: sqlite3.Connection, rows: list[tuple[Any, ...]]) -> None:
    """rows: of `_JOINED`."""
    videos = {row[2]: (row[2], *row[NUM_SEGMENT_COLUMNS:]) for row in rows}
    marks = ", ".join("?" * (len(_OF_VIDEO) + 1))
    target.executemany(f"INSERT OR REPLACE INTO videos VALUES ({marks})", videos.values())
    target.executemany(
        "INSERT OR REPLACE INTO segments VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            (segment_id, number, *rest)
            for segment_id, _, number, *rest in (row[:NUM_SEGMENT_COLUMNS] for row in rows)
        ],
    )
