"""Video records between dataclasses and rows of the catalog."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from indexer.errors import IndexDamagedError, VideoNotFoundError
from indexer.store.filters import Filter
from indexer.store.records import VideoRecord
from indexer.store.sqlite.row_checksums import checksum_of_row

_COLUMNS = (
    "id, content_sha256, uri, title, metadata, duration_seconds, width, height, frame_rate, codec,"
    " size_bytes, partial, fraction_read, trusted, added_at, sequence"
)


def insert_video(connection: sqlite3.Connection, row: Mapping[str, Any]) -> int:
    """Store a row with a value for every column, `metadata` as JSON text; returns the video's number."""
    values = [row[name] for name in _COLUMNS.split(", ")]
    marks = ", ".join("?" * (len(values) + 1))
    number = connection.execute(
        f"INSERT INTO videos ({_COLUMNS}, row_crc32) VALUES ({marks})", (*values, checksum_of_row(values))
    ).lastrowid
    assert number is not None
    return number


def update_video(connection: sqlite3.Connection, number: int, values: Mapping[str, str | None]) -> None:
    """Set columns of a video, named by us, never by a client. Raises IndexDamagedError."""
    # Checked before: the new checksum must not cover up that another column is not what was written.
    before = connection.execute(f"SELECT {_COLUMNS}, row_crc32 FROM videos WHERE number = ?", (number,))
    _record(before.fetchone())
    assignments = ", ".join(f"{name} = ?" for name in values)
    connection.execute(f"UPDATE videos SET {assignments} WHERE number = ?", (*values.values(), number))
    row = connection.execute(f"SELECT {_COLUMNS} FROM videos WHERE number = ?", (number,)).fetchone()
    connection.execute("UPDATE videos SET row_crc32 = ? WHERE number = ?", (checksum_of_row(row), number))


def find_number(connection: sqlite3.Connection, video_id: str) -> int:
    """The catalog's own number of a video. Raises VideoNotFoundError."""
    row = connection.execute("SELECT number FROM videos WHERE id = ?", (video_id,)).fetchone()
    if row is None:
        raise VideoNotFoundError(video_id)
    return int(row[0])


def read_by_ids(connection: sqlite3.Connection, video_ids: Sequence[str]) -> dict[str, VideoRecord]:
    """Records of those of `video_ids` that exist, by id."""
    rows = connection.execute(
        f"SELECT {_COLUMNS}, row_crc32 FROM videos WHERE id IN (SELECT value FROM json_each(?))",
        (json.dumps(list(video_ids)),),
    )
    return {row[0]: _record(row) for row in rows}


def read_by_sha256(connection: sqlite3.Connection, content_sha256: str) -> VideoRecord | None:
    """The record of the video with these bytes, or None."""
    row = connection.execute(
        f"SELECT {_COLUMNS}, row_crc32 FROM videos WHERE content_sha256 = ?", (content_sha256,)
    ).fetchone()
    return None if row is None else _record(row)


def read_page(
    connection: sqlite3.Connection, limit: int, after: int | None, chosen: Filter | None = None
) -> list[VideoRecord]:
    """See `Catalog.list_videos`."""
    rows = connection.execute(
        f"SELECT {_COLUMNS}, row_crc32 FROM videos WHERE sequence < ?"
        f" AND {'1' if chosen is None else chosen.sql} ORDER BY sequence DESC LIMIT ?",
        (2**63 - 1 if after is None else after, *(() if chosen is None else chosen.values), max(0, limit)),
    )
    return [_record(row) for row in rows]


def damaged_videos(connection: sqlite3.Connection) -> Iterator[tuple[int, str]]:
    """(number, what is wrong) of every video whose record is not what was written."""
    for number, *row in connection.execute(
        f"SELECT number, {_COLUMNS}, row_crc32 FROM videos ORDER BY number"
    ):
        try:
            _record(row)
        except (IndexDamagedError, ValueError):
            yield number, "its record is not what was written"


def _record(row: Sequence[Any]) -> VideoRecord:
    *values, checksum = row
    if checksum_of_row(values) != checksum:
        raise IndexDamagedError(
            "the catalog is damaged: the record of a video is not what was written; run verify to learn"
            " which, delete it and index it again, or restore a backup"
        )
    values[4] = json.loads(values[4])
    values[11] = bool(values[11])
    values[13] = bool(values[13])
    return VideoRecord(*values)
