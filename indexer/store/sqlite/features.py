"""Features of segments between arrays and rows of the catalog.

Stored little-endian without a header: video feature float32 [D], frame features float16 [F, D], frame times
float64 [num_frames]; each with a CRC-32 over itself and the numbers that say whose it is, because SQLite
itself would not notice a flipped bit. Each segment has the fingerprint (32 bytes) that its features were made
with: those of another one are never given out.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.errors import FingerprintMismatchError, IndexDamagedError
from indexer.store.records import SegmentFeatures, SegmentInfo, SegmentRecord, without_sign_of_zero
from indexer.store.sqlite.connections import Rows, checksum_of_blob

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

_INFO = """
SELECT segments.id, videos.id, video_number, start_seconds, end_seconds, num_frames, frame_times,
segments.row_crc32 FROM {source} LEFT JOIN videos ON videos.number = segments.video_number
"""


class FeatureRows:
    """Reads and writes segments of an index with F frames and D embedding dimensions, of one fingerprint (64
    hex digits)."""

    def __init__(self, num_frames: int, embedding_dim: int, fingerprint: str) -> None:
        self._num_frames = num_frames
        self._embedding_dim = embedding_dim
        self._fingerprint = bytes.fromhex(fingerprint)

    def insert(self, connection: sqlite3.Connection, video_key: int, segment: SegmentRecord) -> int:
        """Store a checked segment and return its id."""
        video = np.ascontiguousarray(segment.video_feature, "<f4").tobytes()
        frames = np.ascontiguousarray(segment.frame_features, "<f2").tobytes()
        times = np.ascontiguousarray(segment.frame_times, "<f8").tobytes()
        segment_id = _next_id(connection)
        whose = (segment_id, video_key, segment.num_frames)
        start, end = without_sign_of_zero(segment.start_seconds), without_sign_of_zero(segment.end_seconds)
        made_with = self._fingerprint
        connection.execute(
            "INSERT INTO segments (id, video_number, num_frames, start_seconds, end_seconds, frame_times,"
            " row_crc32, fingerprint, video_feature, video_feature_crc32)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *whose,
                start,
                end,
                times,
                checksum_of_blob(times, *whose, start, end),
                made_with,
                video,
                checksum_of_blob(video, *whose, fingerprint=made_with),
            ),
        )
        connection.execute(
            "INSERT INTO segment_frames (segment_id, frame_features, frame_features_crc32) VALUES (?, ?, ?)",
            (segment_id, frames, checksum_of_blob(frames, segment_id, fingerprint=made_with)),
        )
        return segment_id

    def rows_by_ids(self, connection: sqlite3.Connection, segment_ids: Sequence[int]) -> Rows:
        """Rows of those segments that exist, for `features_of`."""
        return _rows_by_ids(connection, _BY_IDS, segment_ids)

    def features_of(self, rows: Mapping[int, Sequence[Any]], segment_ids: Sequence[int]) -> SegmentFeatures:
        """Features of those segments that have a row, in the order asked; an id asked twice comes twice."""
        return self._features([rows[segment_id] for segment_id in segment_ids if segment_id in rows])

    def after(self, connection: sqlite3.Connection, segment_id: int, limit: int) -> SegmentFeatures:
        """Features of the next `limit` segments with an id above `segment_id`, ascending."""
        rows = connection.execute(_AFTER, (segment_id, limit)).fetchall()
        _check_order(segment_id, rows)
        return self._features(rows)

    def video_features_after(
        self, connection: sqlite3.Connection, segment_id: int, limit: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids int64 [N] and video features float32 [N, D] of the next segments, ascending."""
        rows = connection.execute(_VIDEO_AFTER, (segment_id, limit)).fetchall()
        _check_order(segment_id, rows)
        return np.array([row[0] for row in rows], np.int64), self._video(rows)

    def video_rows_by_ids(self, connection: sqlite3.Connection, segment_ids: Sequence[int]) -> Rows:
        """Rows of those segments that exist, for `video_features_of`."""
        return _rows_by_ids(connection, _VIDEO_BY_IDS, segment_ids)

    def video_features_of(
        self, rows: Mapping[int, Sequence[Any]]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids int64 [N], ascending, and video features float32 [N, D]."""
        in_order = [rows[segment_id] for segment_id in sorted(rows)]
        return np.array([row[0] for row in in_order], np.int64), self._video(in_order)

    def _features(self, rows: Sequence[Sequence[Any]]) -> SegmentFeatures:
        video = self._video(rows)  # First: its checksum is over the other numbers too.
        frames = self._join([((row[0],), row[3], row[6], row[7]) for row in rows], 2 * self._num_frames)
        num_frames = np.array([row[2] for row in rows], np.int64)
        if len(rows) and num_frames.max() > self._num_frames:
            raise IndexDamagedError("the catalog is damaged: a segment has more frames than the model takes")
        return SegmentFeatures(
            segment_ids=np.array([row[0] for row in rows], np.int64),
            video_keys=np.array([row[1] for row in rows], np.int64),
            video=video,
            frames=np.frombuffer(frames, "<f2").reshape(len(rows), self._num_frames, self._embedding_dim),
            num_frames=num_frames,
        )

    def _video(self, rows: Sequence[Sequence[Any]]) -> NDArray[np.float32]:
        """float32 [N, D] of rows that begin as `_VIDEO_FEATURES` says."""
        joined = self._join([(row[:3], row[3], row[4], row[5]) for row in rows], 4)
        return np.frombuffer(joined, "<f4").reshape(len(rows), self._embedding_dim)

    def _join(
        self, rows: Sequence[tuple[Sequence[int], bytes, bytes, int]], bytes_a_dimension: int
    ) -> bytearray:
        """One buffer of the blobs of rows (whose it is, fingerprint, blob, CRC-32); writable, for torch."""
        size_bytes = bytes_a_dimension * self._embedding_dim
        joined = bytearray()
        for whose, made_with, blob, checksum in rows:
            is_whole = checksum_of_blob(blob, *whose, fingerprint=made_with) == checksum
            if not is_whole or not _is_blob(blob, size_bytes):
                raise IndexDamagedError(
                    f"the catalog is damaged: the features of segment {whose[0]} do not match their checksum;"
                    " delete its video and index it again, or restore a backup"
                )
            if made_with != self._fingerprint:
                raise FingerprintMismatchError(
                    expected=self._fingerprint.hex(), found=made_with.hex(), segment_id=whose[0]
                )
            joined += blob
        return joined


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


def read_segment_infos(
    connection: sqlite3.Connection, *, segment_ids: Sequence[int] | None = None, video_id: str | None = None
) -> list[SegmentInfo]:
    """Segments without features: of `segment_ids` those that exist, in any order; or of a video, in its
    order."""
    if segment_ids is not None:
        query = _INFO.format(source=_ASKED)
        chunks = [
            json.dumps(segment_ids[first : first + MAX_IDS_PER_QUERY])
            for first in range(0, len(segment_ids), MAX_IDS_PER_QUERY)
        ]
        rows = [row for chunk in chunks for row in connection.execute(query, (chunk,))]
        _check_absent(connection, segment_ids, {row[0] for row in rows})
    else:
        query = _INFO.format(source="segments") + " WHERE videos.id = ? ORDER BY segments.id"
        rows = connection.execute(query, (video_id,)).fetchall()
    return [_segment_info(row) for row in rows]


def damaged_segments(
    connection: sqlite3.Connection, num_frames: int, embedding_dim: int, fingerprint: str
) -> Iterator[tuple[int, str]]:
    """(id, what is wrong) of every segment, "" where nothing is."""
    rows = connection.execute(
        "SELECT id, video_number, num_frames, start_seconds, end_seconds, frame_times, row_crc32,"
        " fingerprint, video_feature, video_feature_crc32, frame_features, frame_features_crc32 FROM segments"
        " JOIN segment_frames ON segment_id = id ORDER BY id"
    )
    for (
        segment_id,
        video_number,
        real,
        start,
        end,
        times,
        row_sum,
        made_with,
        video,
        video_sum,
        frames,
        frames_sum,
    ) in rows:
        whose = (segment_id, video_number, real)
        problems = []
        is_right = checksum_of_blob(times, *whose, start, end) == row_sum
        if not is_right or real > num_frames or not _is_blob(times, 8 * real):
            problems.append("its record")
        if (
            not _is_blob(video, 4 * embedding_dim)
            or checksum_of_blob(video, *whose, fingerprint=made_with) != video_sum
        ):
            problems.append("its video feature")
        is_right = _is_blob(frames, 2 * num_frames * embedding_dim)
        if not is_right or checksum_of_blob(frames, segment_id, fingerprint=made_with) != frames_sum:
            problems.append("its frame features")
        if problems:
            yield segment_id, f"checksum mismatch: {', '.join(problems)}"
        # Last: the checksums cover the fingerprint, so that here it is the one that was written.
        elif made_with.hex() != fingerprint:
            yield segment_id, f"its features have the fingerprint {made_with.hex()}, the index {fingerprint}"
        else:
            yield segment_id, ""


def _check_order(last: int, rows: Sequence[Sequence[Any]]) -> None:
    """Raise IndexDamagedError unless ids ascend from `last`: a damaged tree may give rows again and again."""
    for row in rows:
        if not row[0] > last:
            raise IndexDamagedError("the catalog is damaged: its segments are out of order; restore a backup")
        last = row[0]


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


def _is_blob(value: object, size_bytes: int) -> bool:
    """Whether a value of a row, which may be damaged, is what a BLOB column holds, of this size."""
    return isinstance(value, bytes) and len(value) == size_bytes


def _segment_info(row: Sequence[Any]) -> SegmentInfo:
    """The segment in the columns of _INFO."""
    segment_id, video_id, video_key, start_seconds, end_seconds, num_frames, frame_times, checksum = row
    whose = (segment_id, video_key, num_frames, start_seconds, end_seconds)
    is_whole = checksum_of_blob(frame_times, *whose) == checksum and _is_blob(frame_times, 8 * num_frames)
    if not is_whole or video_id is None:
        raise IndexDamagedError(
            f"the catalog is damaged: the record of segment {segment_id} does not match its checksum; "
            "delete its video and index it again, or restore a backup"
        )
    times = np.frombuffer(frame_times, "<f8")
    return SegmentInfo(segment_id, video_id, video_key, start_seconds, end_seconds, num_frames, times)
