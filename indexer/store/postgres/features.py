"""Segments and their features in PostgreSQL; what rows hold says `indexer.store.segment_rows`.

They may be read from a hot standby, where it is not behind. It replays what the primary committed a little
later: before features are read, the primary is asked for the number of its last change, and they are read
from the standby only where that has replayed it. So what is read is never older than what the primary would
have given.
"""

from __future__ import annotations

import logging
import math
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from indexer.errors import IndexerError
from indexer.store.checksums import NO_CHECKSUM
from indexer.store.postgres.address import PostgresAddress
from indexer.store.postgres.connections import Connections, Row, Table, array_of
from indexer.store.records import SegmentFeatures, SegmentInfo
from indexer.store.segment_rows import INFO_COLUMNS, FeatureCodec, SegmentRow, check_order, segment_info

logger = logging.getLogger(__name__)

RETRY_SECONDS: Final = 5.0
"""Pause after the standby could not be read."""

_Answer = TypeVar("_Answer")

SEGMENTS: Final = Table(
    "segments",
    "id, video_number, num_frames, start_seconds, end_seconds, frame_times, row_crc32",
    ("int8", "int8", "int4", "float8", "float8", "bytea", "int8"),
)

FEATURES: Final = Table("features", "segment_id, part, bytes", ("int8", "int2", "bytea"))

_HEAD: Final = struct.Struct("<qiII32s")
"""In front of a segment's features: the number of its video, num_frames, the CRC-32 of the video's features
and of the frames', and the fingerprint."""

_PARTS: Final = f"SELECT {FEATURES.columns} FROM features WHERE "
_OF_SEGMENTS: Final = "segment_id = ANY(%s::bigint[])"
_IN_ORDER: Final = " ORDER BY segment_id, part"

MOST_PART_BYTES: Final = 8_000
"""Of a row of FEATURES, which has to fit into a page of 8,192."""


class FeatureRows:
    """Reads and makes rows of segments of an index with F frames and D embedding dimensions, of one
    fingerprint (64 hex digits).

    All that is stored of a segment's features is one value, cut into parts of equal size. The first part
    holds the feature of the video, with D up to some 1,900.
    """

    def __init__(self, num_frames: int, embedding_dim: int, fingerprint: str) -> None:
        self.codec = FeatureCodec(num_frames, embedding_dim, fingerprint)
        self._video_end = _HEAD.size + 4 * embedding_dim
        num_bytes = self._video_end + 2 * num_frames * embedding_dim
        self._num_parts = math.ceil(num_bytes / MOST_PART_BYTES)
        self._part_bytes = math.ceil(num_bytes / self._num_parts)
        self._num_video_parts = math.ceil(self._video_end / self._part_bytes)
        self._of_videos = (
            f"SELECT segment_id, part, substr(bytes, 1, {self._video_end}) FROM features"
            f" WHERE part < {self._num_video_parts} AND "
        )

    def rows_to_store(self, row: SegmentRow) -> tuple[Row, list[Row]]:
        """What SEGMENTS stores of a segment, and what FEATURES does."""
        head = _HEAD.pack(*row[1:3], row.video_feature_crc32, row.frame_features_crc32, row.fingerprint)
        value, size = head + row.video_feature + row.frame_features, self._part_bytes
        parts = [value[start : start + size] for start in range(0, len(value), size)]
        return row[:7], [(row.id, number, part) for number, part in enumerate(parts)]

    def by_ids(self, connections: Connections, segment_ids: Sequence[int]) -> SegmentFeatures:
        """Features of those segments that exist, in the order asked; an id asked twice comes twice."""
        with connections.streaming(_PARTS + _OF_SEGMENTS, (array_of(segment_ids),)) as rows:
            return self.codec.features_of(self._joined(rows, self._num_parts), segment_ids)

    def none(self) -> SegmentFeatures:
        """Features of no segment."""
        return self.codec.features_of([], [])

    def video_by_ids(
        self, connections: Connections, segment_ids: Sequence[int]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids int64 [N], ascending, and video features float32 [N, D] of those that exist."""
        statement = self._of_videos + _OF_SEGMENTS + _IN_ORDER
        rows = connections.rows(statement, (array_of(segment_ids),), binary=True)
        return self.codec.ids_and_video(list(self._joined(rows, self._num_video_parts)))

    def after(self, connections: Connections, segment_id: int, limit: int) -> SegmentFeatures:
        """Features of the next `limit` segments with an id above `segment_id`, ascending."""
        rows = self._after(connections, _PARTS, segment_id, limit, self._num_parts)
        return self.codec.features_of(rows, [row[0] for row in rows])

    def video_after(
        self, connections: Connections, segment_id: int, limit: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids int64 [N] and video features float32 [N, D] of the next segments, ascending."""
        rows = self._after(connections, self._of_videos, segment_id, limit, self._num_video_parts)
        return self.codec.ids_and_video(rows)

    def damaged(self, connections: Connections) -> Iterator[tuple[int, str]]:
        """(id, what is wrong) of every segment, "" where nothing is. connections: of one moment."""
        last = 0
        segments = f"SELECT {SEGMENTS.columns} FROM segments WHERE id > %s ORDER BY id LIMIT 1000"
        features = f"{_PARTS}segment_id BETWEEN %s AND %s{_IN_ORDER}"
        while rows := connections.rows(segments, (last,), binary=True):
            read = connections.rows(features, (rows[0][0], rows[-1][0]), binary=True)
            stored = {row[0]: row for row in self._joined(read, self._num_parts)}
            for row in rows:
                whose, whole = row[:3], stored.get(row[0], self._opened(row[0], b""))
                made_with, video, video_crc32, frames, frames_crc32 = whole[3:]
                if whole[:3] != whose:
                    video_crc32 = NO_CHECKSUM
                of_segment = SegmentRow._make([*row, made_with, video, video_crc32, frames, frames_crc32])
                yield of_segment.id, self.codec.problem(of_segment)
            last = rows[-1][0]

    def _after(
        self, connections: Connections, statement: str, segment_id: int, limit: int, num_parts: int
    ) -> list[Row]:
        rows = connections.rows(
            f"{statement}segment_id > %s{_IN_ORDER} LIMIT %s",
            (segment_id, limit * num_parts),
            binary=True,
        )
        joined = list(self._joined(rows, num_parts))
        check_order(segment_id, joined)
        return joined

    def _joined(self, rows: Iterable[Row], num_parts: int) -> Iterator[Row]:
        """Rows as the codec reads them, of parts in any order, each as soon as its parts are all there; of
        those that are not, the codec finds that they are damaged."""
        waiting: dict[int, dict[int, bytes]] = {}
        for segment_id, number, part in rows:
            parts = waiting.setdefault(segment_id, {})
            parts[number] = part
            if len(parts) == num_parts:
                del waiting[segment_id]
                yield self._opened(segment_id, _in_order(parts, num_parts))
        for segment_id, parts in waiting.items():
            yield self._opened(segment_id, _in_order(parts, num_parts))

    def _opened(self, segment_id: int, value: bytes) -> Row:
        """As the codec reads a row; value: what is stored of a segment, or its beginning."""
        if len(value) < _HEAD.size:
            value = bytes(_HEAD.size)
        video_number, num_frames, video_crc32, frames_crc32, made_with = _HEAD.unpack_from(value)
        features = memoryview(value)
        video, frames = features[_HEAD.size : self._video_end], features[self._video_end :]
        return (segment_id, video_number, num_frames, made_with, video, video_crc32, frames, frames_crc32)


def _in_order(parts: dict[int, bytes], num_parts: int) -> bytes:
    return b"".join([parts.get(number, b"") for number in range(num_parts)])


def segment_infos(
    connections: Connections, *, segment_ids: Sequence[int] | None = None, video_id: str | None = None
) -> list[SegmentInfo]:
    """Segments without features: of `segment_ids` those that exist, in any order; or of a video, in its
    order."""
    joined = "segments LEFT JOIN videos ON videos.number = segments.video_number"
    statement = f"SELECT {INFO_COLUMNS} FROM {joined} WHERE "
    if segment_ids is not None:
        asked = (array_of(segment_ids),)
        rows = connections.rows(f"{statement}segments.id = ANY(%s::bigint[])", asked, binary=True)
    else:
        rows = connections.rows(f"{statement}videos.id = %s ORDER BY segments.id", (video_id,), binary=True)
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
