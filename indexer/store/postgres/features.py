"""Segments and their features in PostgreSQL; what rows hold says `indexer.store.segment_rows`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from indexer.store.postgres.connections import Connections, Row, StoreConnection
from indexer.store.records import SegmentFeatures, SegmentInfo, SegmentRecord
from indexer.store.segment_rows import FeatureCodec, SegmentRow, check_order, segment_info

_FEATURES = (
    "SELECT segments.id, video_number, num_frames, fingerprint, video_feature, video_feature_crc32,"
    " frame_features, frame_features_crc32 FROM segments"
    " LEFT JOIN segment_frames ON segment_frames.segment_id = segments.id"
)
_VIDEO_FEATURES = (
    "SELECT segments.id, video_number, num_frames, fingerprint, video_feature, video_feature_crc32"
    " FROM segments"
)
_BY_IDS = " WHERE segments.id = ANY(%s::bigint[])"
_AFTER = " WHERE segments.id > %s ORDER BY segments.id LIMIT %s"

INFO = (
    "segments.id, videos.id, video_number, start_seconds, end_seconds, num_frames, frame_times,"
    " segments.row_crc32"
)
"""As `segment_info` reads it, of segments joined with their videos."""

_OF_SEGMENT = (
    "id, video_number, num_frames, start_seconds, end_seconds, frame_times, row_crc32, fingerprint,"
    " video_feature, video_feature_crc32"
)


class FeatureRows:
    """Reads and writes segments of an index with F frames and D embedding dimensions, of one fingerprint (64
    hex digits)."""

    def __init__(self, num_frames: int, embedding_dim: int, fingerprint: str) -> None:
        self._codec = FeatureCodec(num_frames, embedding_dim, fingerprint)

    def insert(
        self, connection: StoreConnection, first_id: int, video_key: int, segments: Sequence[SegmentRecord]
    ) -> list[int]:
        """Store the checked segments of a video under ids from `first_id` on, which are returned."""
        rows = [
            self._codec.row(first_id + position, video_key, segment)
            for position, segment in enumerate(segments)
        ]
        with connection.cursor() as cursor:
            cursor.executemany(
                f"INSERT INTO segments ({_OF_SEGMENT}) VALUES (%s, %s, %s, %s, %s, %b, %s, %b, %b, %s)",
                [row[:10] for row in rows],
            )
            cursor.executemany(
                "INSERT INTO segment_frames (segment_id, frame_features, frame_features_crc32)"
                " VALUES (%s, %b, %s)",
                [(row.id, row.frame_features, row.frame_features_crc32) for row in rows],
            )
        return [row.id for row in rows]

    def by_ids(self, connections: Connections, segment_ids: Sequence[int]) -> SegmentFeatures:
        """Features of those segments that exist, in the order asked; an id asked twice comes twice."""
        rows = connections.rows(_FEATURES + _BY_IDS, (list(segment_ids),), binary=True)
        return self._codec.features_of({row[0]: row for row in rows}, segment_ids)

    def none(self) -> SegmentFeatures:
        """Features of no segment."""
        return self._codec.features([])

    def video_by_ids(
        self, connections: Connections, segment_ids: Sequence[int]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids int64 [N], ascending, and video features float32 [N, D] of those that exist."""
        rows = connections.rows(
            f"{_VIDEO_FEATURES}{_BY_IDS} ORDER BY segments.id", (list(segment_ids),), binary=True
        )
        return self._codec.ids_and_video(rows)

    def after(self, connections: Connections, segment_id: int, limit: int) -> SegmentFeatures:
        """Features of the next `limit` segments with an id above `segment_id`, ascending."""
        return self._codec.features(_after(connections, _FEATURES, segment_id, limit))

    def video_after(
        self, connections: Connections, segment_id: int, limit: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids int64 [N] and video features float32 [N, D] of the next segments, ascending."""
        return self._codec.ids_and_video(_after(connections, _VIDEO_FEATURES, segment_id, limit))

    def damaged(self, connections: Connections) -> Iterator[tuple[int, str]]:
        """(id, what is wrong) of every segment, "" where nothing is."""
        last = 0
        names = ", ".join(SegmentRow._fields)
        while rows := connections.rows(
            f"SELECT {names} FROM segments LEFT JOIN segment_frames ON segment_id = id{_AFTER}",
            (last, 1000),
            binary=True,
        ):
            for row in map(SegmentRow._make, rows):
                yield row.id, self._codec.problem(row)
            last = rows[-1][0]


def _after(connections: Connections, statement: str, segment_id: int, limit: int) -> list[Row]:
    rows = connections.rows(statement + _AFTER, (segment_id, limit), binary=True)
    check_order(segment_id, rows)
    return rows


def segment_infos(
    connections: Connections, *, segment_ids: Sequence[int] | None = None, video_id: str | None = None
) -> list[SegmentInfo]:
    """Segments without features: of `segment_ids` those that exist, in any order; or of a video, in its
    order."""
    statement = f"SELECT {INFO} FROM segments LEFT JOIN videos ON videos.number = segments.video_number"
    if segment_ids is not None:
        rows = connections.rows(statement + _BY_IDS, (list(segment_ids),), binary=True)
    else:
        rows = connections.rows(
            f"{statement} WHERE videos.id = %s ORDER BY segments.id", (video_id,), binary=True
        )
    return [segment_info(row) for row in rows]
