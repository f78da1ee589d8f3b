"""Segments and their features in the tables of SQLite; what rows hold says `indexer.store.segment_rows`."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.errors import IndexDamagedError
from indexer.store.records import SegmentFeatures, SegmentInfo, SegmentRecord, VideoRecord
from indexer.store.segment_rows import INFO_COLUMNS, FeatureCodec, SegmentRow, check_order, segment_info
from indexer.store.sqlite.connections import Rows
from indexer.store.video_rows import SEGMENT_AND_VIDEO, segment_and_video

MAX_IDS_PER_QUERY = 2_000
"""Rows fetched together: bounds what SQLite and Python hold next to the arrays."""

_FEATURES = """
SELECT segments.id, video_number, num_frames, fingerprint, video_feature, video_feature_crc32, frame_features,
frame_features_crc32 FROM {source} LEFT JOIN segment_frames ON segment_frames.segment_id = segments.id
"""
_ASKED = "json_each(?) AS asked JOIN segments ON segments.id = asked.value"
_BY_IDS = _FEATURES.format(source=_ASKED)
_AFTER = _FEATURES.format(source="segments") + " WHERE segments.id > ? ORDER BY segments.id LIMIT ?"

_VIDEO_FEATURES = """
SELECT segments.id, video_number, num_frames, fingerprint, video_feature, video_feature_crc32 FROM {source}
"""
_VIDEO_BY_IDS = _VIDEO_FEATURES.format(source=_ASKED)
_VIDEO_AFTER = _VIDEO_FEATURES.format(source="segments") + " WHERE id > ? ORDER BY id LIMIT ?"

_OF_VIDEOS = " LEFT JOIN videos ON videos.number = segments.video_number"
_INFO_BY_IDS = f"SELECT {INFO_COLUMNS} FROM {_ASKED}{_OF_VIDEOS}"
_INFO_OF_VIDEO = f"SELECT {INFO_COLUMNS} FROM segments{_OF_VIDEOS} WHERE videos.id = ? ORDER BY segments.id"
_WITH_VIDEOS_BY_IDS = f"SELECT {SEGMENT_AND_VIDEO} FROM {_ASKED}{_OF_VIDEOS}"


class FeatureRows:
    """Reads and writes segments of an index with F frames and D embedding dimensions, of one fingerprint (64
    hex digits)."""

    def __init__(self, num_frames: int, embedding_dim: int, fingerprint: str) -> None:
        self._codec = FeatureCodec(num_frames, embedding_dim, fingerprint)

    def insert(self, connection: sqlite3.Connection, video_key: int, segment: SegmentRecord) -> int:
        """Store a checked segment and return its id."""
        row = self._codec.row(_next_id(connection), video_key, segment)
        *of_segment, frames, frames_crc32 = row
        connection.execute(
            "INSERT INTO segments (id, video_number, num_frames, start_seconds, end_seconds, frame_times,"
            " row_crc32, fingerprint, video_feature, video_feature_crc32)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            of_segment,
        )
        connection.execute(
            "INSERT INTO segment_frames (segment_id, frame_features, frame_features_crc32) VALUES (?, ?, ?)",
            (row.id, frames, frames_crc32),
        )
        return row.id

    def rows_by_ids(self, connection: sqlite3.Connection, segment_ids: Sequence[int]) -> Rows:
        """Rows of those segments that exist, for `features_of`."""
        return _rows_by_ids(connection, _BY_IDS, segment_ids)

    def features_of(self, rows: Mapping[int, Sequence[Any]], segment_ids: Sequence[int]) -> SegmentFeatures:
        """Features of those segments that have a row, in the order asked; an id asked twice comes twice."""
        return self._codec.features_of(rows.values(), segment_ids)

    def after(self, connection: sqlite3.Connection, segment_id: int, limit: int) -> SegmentFeatures:
        """Features of the next `limit` segments with an id above `segment_id`, ascending."""
        rows = connection.execute(_AFTER, (segment_id, limit)).fetchall()
        check_order(segment_id, rows)
        return self._codec.features_of(rows, [row[0] for row in rows])

    def video_features_after(
        self, connection: sqlite3.Connection, segment_id: int, limit: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids int64 [N] and video features float32 [N, D] of the next segments, ascending."""
        rows = connection.execute(_VIDEO_AFTER, (segment_id, limit)).fetchall()
        check_order(segment_id, rows)
        return self._codec.ids_and_video(rows)

    def video_rows_by_ids(self, connection: sqlite3.Connection, segment_ids: Sequence[int]) -> Rows:
        """Rows of those segments that exist, for `video_features_of`."""
        return _rows_by_ids(connection, _VIDEO_BY_IDS, segment_ids)

    def video_features_of(
        self, rows: Mapping[int, Sequence[Any]]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids int64 [N], ascending, and video features float32 [N, D]."""
        return self._codec.ids_and_video([rows[segment_id] for segment_id in sorted(rows)])

    def damaged(self, connection: sqlite3.Connection) -> Iterator[tuple[int, str]]:
        """(id, what is wrong) of every segment, "" where nothing is."""
        rows = connection.execute(
            f"SELECT {', '.join(SegmentRow._fields)} FROM segments"
            " JOIN segment_frames ON segment_id = id ORDER BY id"
        )
        for row in map(SegmentRow._make, rows):
            yield row.id, self._codec.problem(row)


def _rows_by_ids(connection: sqlite3.Connection, query: str, segment_ids: Sequence[int]) -> Rows:
    rows: Rows = {}
    for first in range(0, len(segment_ids), MAX_IDS_PER_QUERY):
        some = json.dumps(segment_ids[first : first + MAX_IDS_PER_QUERY])
        # Not ordered by SQLite, which would copy every blob through a sorter (and takes longer).
        rows.update((row[0], row) for row in connection.execute(query, (some,)))
    _check_absent(connection, segment_ids, rows)
    return rows


def _next_id(connection: sqlite3.Connection) -> int:
    """The id of the next segment, within a writing transaction: what AUTOINCREMENT would give."""
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'segments'").fetchone()
    return 1 if row is None else int(row[0]) + 1


def read_segment_infos(connection: sqlite3.Connection, segment_ids: Sequence[int]) -> list[SegmentInfo]:
    """Segments without features, those that exist, in any order."""
    return [segment_info(row) for row in _rows_by_ids(connection, _INFO_BY_IDS, segment_ids).values()]


def read_infos_of_video(connection: sqlite3.Connection, video_id: str) -> list[SegmentInfo]:
    """Segments of a video without features, in its order."""
    return [segment_info(row) for row in connection.execute(_INFO_OF_VIDEO, (video_id,))]


def read_segments_and_videos(
    connection: sqlite3.Connection, segment_ids: Sequence[int]
) -> dict[int, tuple[SegmentInfo, VideoRecord]]:
    """Segments that exist with the records of their videos, by segment id."""
    rows = _rows_by_ids(connection, _WITH_VIDEOS_BY_IDS, segment_ids)
    return {segment_id: segment_and_video(row) for segment_id, row in rows.items()}


def _check_absent(connection: sqlite3.Connection, asked: Sequence[int], found: Container[int]) -> None:
    """Raise IndexDamagedError where a segment that was asked for and not found has frame features.

    A damaged page can hide rows without being wrong in itself. Segments and their frames are in two trees and
    are deleted together: what is gone is gone from both.
    """
    absent = [segment_id for segment_id in asked if segment_id not in found]
    for first in range(0, len(absent), MAX_IDS_PER_QUERY):
        hidden = connection.execute(
            "SELECT segment_id FROM segment_frames WHERE segment_id IN (SELECT value FROM json_each(?))"
            " AND NOT EXISTS (SELECT 1 FROM segments WHERE id = segment_id) LIMIT 1",
            (json.dumps(absent[first : first + MAX_IDS_PER_QUERY]),),
        ).fetchone()
        if hidden is not None:
            raise IndexDamagedError(
                f"the catalog is damaged: segment {hidden[0]} has frame features but no record;"
                " restore a backup"
            )
