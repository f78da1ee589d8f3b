"""Video records between dataclasses and rows of the catalog."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from indexer.catalog_records import VideoRecord
from indexer.errors import VideoNotFoundError

_COLUMNS = (
    "id, content_sha256, uri, title, metadata, duration_seconds, width, height, frame_rate, codec,"
    " size_bytes, partial, fraction_read, added_at, sequence"
)


def insert_video(connection: sqlite3.Connection, row: Mapping[str, Any]) -> int:
    """Store a row with a value for every column, `metadata` as JSON text; returns the video's number."""
    marks = ", ".join(f":{name}" for name in _COLUMNS.split(", "))
    number = connection.execute(f"INSERT INTO videos ({_COLUMNS}) VALUES ({marks})", dict(row)).lastrowid
    assert number is not None
    return number


def update_video(connection: sqlite3.Connection, number: int, values: Mapping[str, str | None]) -> None:
    """Set columns of a video, named by us, never by a client."""
    assignments = ", ".join(f"{name} = ?" for name in values)
    connection.execute(f"UPDATE videos SET {assignments} WHERE number = ?", (*values.values(), number))


def find_number(connection: sqlite3.Connection, video_id: str) -> int:
    """The catalog's own number of a video. Raises VideoNotFoundError."""
    row = connection.execute("SELECT number FROM videos WHERE id = ?", (video_id,)).fetchone()
    if row is None:
        raise VideoNotFoundError(video_id)
    return int(row[0])


def read_by_ids(connection: sqlite3.Connection, video_ids: Sequence[str]) -> dict[str, VideoRecord]:
    """Records of those of `video_ids` that exist, by id."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM videos WHERE id IN (SELECT value FROM json_each(?))",
        (json.dumps(list(video_ids)),),
    )
    return {row[0]: _record(row) for row in rows}


def read_by_sha256(connection: sqlite3.Connection, content_sha256: str) -> VideoRecord | None:
    """The record of the video with these bytes, or None."""
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM videos WHERE content_sha256 = ?", (content_sha256,)
    ).fetchone()
    return None if row is None else _record(row)


def read_page(connection: sqlite3.Connection, limit: int, after: int | None) -> list[VideoRecord]:
    """See `Catalog.list_videos`."""
    bound, values = ("", ()) if after is None else (" WHERE sequence < ?", (after,))
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM videos{bound} ORDER BY sequence DESC LIMIT ?", (*values, max(0, limit))
    )
    return [_record(row) for row in rows]


def _record(row: Sequence[Any]) -> VideoRecord:
    values = list(row)
    values[4] = json.loads(values[4])
    values[11] = bool(values[11])
    return VideoRecord(*values)
