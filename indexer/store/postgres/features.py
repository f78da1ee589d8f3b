"""Segments and their features in PostgreSQL; what rows hold says `indexer.store.segment_rows`.

They may be read from a hot standby, where it is not behind. It replays what the primary committed a little
later: before features are read, the primary is asked for the number of its last change, and they are read
from the standby only where that has replayed it. So what is read is never older than what the primary would
have given.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from indexer.errors import IndexerError
from indexer.store.postgres.address import PostgresAddress
from indexer.store.postgres.connections import Connections, Row, Table, array_of
from indexer.store.records import SegmentFeatures, SegmentInfo
from indexer.store.segment_rows import FeatureCodec, SegmentRow, check_order, segment_info

logger = logging.getLogger(__name__)

RETRY_SECONDS: Final = 5.0
"""Pause after the standby could not be read."""

_Answer = TypeVar("_Answer")

_WITH = "SELECT segments.id, video_number, num_frames, fingerprint, video_feature_crc32, frame_features_crc32"
_FEATURES = f"{_WITH}, features FROM segments"
_BY_IDS = " WHERE segments.id = ANY(%s::bigint[])"
_AFTER = " WHERE segments.id > %s ORDER BY segments.id LIMIT %s"

INFO = (
    "segments.id, videos.id, video_number, start_seconds, end_seconds, num_frames, frame_times,"
    " segments.row_crc32"
)
"""As `segment_info` reads it, of segments joined with their videos."""

SEGMENTS: Final = Table(
    "segments",
    "id, video_number, num_frames, start_seconds, end_seconds, frame_times, row_crc32, fingerprint,"
    " video_feature_crc32, frame_features_crc32, features",
    ("int8", "int8", "int4", "float8", "float8", "bytea", "int8", "bytea", "int8", "int8", "bytea"),
)


def row_to_store(row: SegmentRow) -> Row:
    """What SEGMENTS stores of a segment: the features of its video and of its frames as one value, which the
    server finds sooner than two in two tables."""
    features = row.video_feature + row.frame_features
    return (*row[:8], row.video_feature_crc32, row.frame_features_crc32, features)


class FeatureRows:
    """Reads segments of an index with F frames and D embedding dimensions, of one fingerprint (64
    hex digits)."""

    def __init__(self, num_frames: int, embedding_dim: int, fingerprint: str) -> None:
        self.codec = FeatureCodec(num_frames, embedding_dim, fingerprint)
        self._video_bytes = 4 * embedding_dim
        # Of a value that is stored outside of its row, the server reads what is asked for.
        self._video_features = f"{_WITH}, substr(features, 1, {self._video_bytes}) FROM segments"

    def by_ids(self, connections: Connections, segment_ids: Sequence[int]) -> SegmentFeatures:
        """Features of those segments that exist, in the order asked; an id asked twice comes twice."""
        with connections.streaming(_FEATURES + _BY_IDS, (array_of(segment_ids),)) as rows:
            return self.codec.features_of(map(self._parted, rows), segment_ids)

    def none(self) -> SegmentFeatures:
        """Features of no segment."""
        return self.codec.features_of([], [])

    def video_by_ids(
        self, connections: Connections, segment_ids: Sequence[int]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids int64 [N], ascending, and video features float32 [N, D] of those that exist."""
        statement = f"{self._video_features}{_BY_IDS} ORDER BY segments.id"
        rows = connections.rows(statement, (array_of(segment_ids),), binary=True)
        return self.codec.ids_and_video(list(map(self._parted, rows)))

    def after(self, connections: Connections, segment_id: int, limit: int) -> SegmentFeatures:
        """Features of the next `limit` segments with an id above `segment_id`, ascending."""
        rows = _after(connections, _FEATURES, segment_id, limit)
        return self.codec.features_of(map(self._parted, rows), [row[0] for row in rows])

    def video_after(
        self, connections: Connections, segment_id: int, limit: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids int64 [N] and video features float32 [N, D] of the next segments, ascending."""
        rows = _after(connections, self._video_features, segment_id, limit)
        return self.codec.ids_and_video(list(map(self._parted, rows)))

    def damaged(self, connections: Connections) -> Iterator[tuple[int, str]]:
        """(id, what is wrong) of every segment, "" where nothing is."""
        last = 0
        while rows := connections.rows(
            f"SELECT {SEGMENTS.columns} FROM segments{_AFTER}", (last, 1000), binary=True
        ):
            for *values, video_crc32, frames_crc32, features in rows:
                video, frames = features[: self._video_bytes], features[self._video_bytes :]
                row = SegmentRow._make([*values, video, video_crc32, frames, frames_crc32])
                yield row.id, self.codec.problem(row)
            last = rows[-1][0]

    def _parted(self, row: Row) -> Row:
        """As the codec reads a row, of what _WITH and features give; those of frames may be left out."""
        *whose, video_crc32, frames_crc32, features = row
        parts = memoryview(features)
        video, frames = parts[: self._video_bytes], parts[self._video_bytes :]
        return (*whose, video, video_crc32, frames, frames_crc32)


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
        rows = connections.rows(statement + _BY_IDS, (array_of(segment_ids),), binary=True)
    else:
        rows = connections.rows(
            f"{statement} WHERE videos.id = %s ORDER BY segments.id", (video_id,), binary=True
        )
    return [segment_info(row) for row in rows]


class Replica:
    """The standby of one generation of an index. Safe to use from several threads.

    address: of the index at the standby. primary: connections to where all else is read.
    """

    def __init__(self, address: PostgresAddress, generation: int, primary: Connections) -> None:
        self._address = address
        self._generation = generation
        self._primary = primary
        self._lock = threading.Lock()
        self._connections: Connections | None = None
        self._not_before = 0.0
        self._replayed = -1
        self.num_reads = 0
        """How many times features were read here."""

    def close(self) -> None:
        """Close the connections to the standby."""
        with self._lock:
            if self._connections is not None:
                self._connections.close()

    def read(self, read: Callable[[Connections], _Answer], sequence: int) -> _Answer:
        """What `read` gives at the standby, or else at the primary. sequence: of the primary's last
        change."""
        if time.monotonic() >= self._not_before:
            try:
                if (connections := self._up_to_date(sequence)) is not None:
                    answer = read(connections)
                    self.num_reads += 1
                    return answer
            except IndexerError as error:
                self._not_before = time.monotonic() + RETRY_SECONDS
                logger.warning("features are read from the primary: %s", error)
        return read(self._primary)

    def _up_to_date(self, sequence: int) -> Connections | None:
        """Where the standby has replayed this change."""
        with self._lock:
            if self._connections is None:
                self._connections = Connections(self._address, self._generation)
            connections = self._connections
        connections.silence_limit_seconds = self._primary.silence_limit_seconds
        if self._replayed < sequence:
            ((self._replayed,),) = connections.rows("SELECT sequence FROM counters")
        return connections if self._replayed >= sequence else None
