"""Segments and their features between arrays and rows, the same in every store.

Stored little-endian without a header: video feature float32 [D], frame features float16 [F, D], frame times
float64 [num_frames]; each with a CRC-32 over itself and the numbers that say whose it is, because no database
would notice a flipped bit. Each segment has the fingerprint (32 bytes) that its features were made with:
those of another one are never given out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexer.errors import FingerprintMismatchError, IndexDamagedError
from indexer.store.checksums import checksum_of_blob
from indexer.store.records import SegmentFeatures, SegmentInfo, SegmentRecord, without_sign_of_zero


class SegmentRow(NamedTuple):
    """Columns of a segment, in the order of a `SELECT`."""

    id: int
    video_number: int
    num_frames: int
    start_seconds: float
    end_seconds: float
    frame_times: bytes
    row_crc32: int
    fingerprint: bytes
    video_feature: bytes
    video_feature_crc32: int
    frame_features: bytes
    frame_features_crc32: int


class FeatureCodec:
    """Makes rows of segments of an index with F frames and D embedding dimensions, of one fingerprint (64 hex
    digits), and reads them."""

    def __init__(self, num_frames: int, embedding_dim: int, fingerprint: str) -> None:
        self._num_frames = num_frames
        self._embedding_dim = embedding_dim
        self._fingerprint = bytes.fromhex(fingerprint)

    def row(self, segment_id: int, video_key: int, segment: SegmentRecord) -> SegmentRow:
        """A checked segment as it is stored."""
        video = np.ascontiguousarray(segment.video_feature, "<f4").tobytes()
        frames = np.ascontiguousarray(segment.frame_features, "<f2").tobytes()
        times = np.ascontiguousarray(segment.frame_times, "<f8").tobytes()
        whose = (segment_id, video_key, segment.num_frames)
        start, end = without_sign_of_zero(segment.start_seconds), without_sign_of_zero(segment.end_seconds)
        made_with = self._fingerprint
        return SegmentRow(
            *whose,
            start,
            end,
            times,
            checksum_of_blob(times, *whose, start, end),
            made_with,
            video,
            checksum_of_blob(video, *whose, fingerprint=made_with),
            frames,
            checksum_of_blob(frames, segment_id, fingerprint=made_with),
        )

    def features_of(self, rows: Mapping[int, Sequence[Any]], segment_ids: Sequence[int]) -> SegmentFeatures:
        """Features of those segments that have a row, in the order asked; an id asked twice comes twice."""
        return self.features([rows[segment_id] for segment_id in segment_ids if segment_id in rows])

    def features(self, rows: Sequence[Sequence[Any]]) -> SegmentFeatures:
        """Features of rows (id, video number, num_frames, fingerprint, video feature, its CRC-32, frame
        features, their CRC-32). Raises IndexDamagedError, FingerprintMismatchError."""
        video = self.video(rows)  # First: its checksum is over the other numbers too.
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

    def ids_and_video(self, rows: Sequence[Sequence[Any]]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids int64 [N] and video features float32 [N, D] of rows that begin as `features` says, in their
        order."""
        return np.array([row[0] for row in rows], np.int64), self.video(rows)

    def video(self, rows: Sequence[Sequence[Any]]) -> NDArray[np.float32]:
        """float32 [N, D] of rows that begin as `features` says."""
        joined = self._join([(row[:3], row[3], row[4], row[5]) for row in rows], 4)
        return np.frombuffer(joined, "<f4").reshape(len(rows), self._embedding_dim)

    def problem(self, row: SegmentRow) -> str:
        """What in a row is not what was written; "" where nothing is."""
        whose = row[:3]
        made_with = row.fingerprint
        problems = []
        is_right = (
            checksum_of_blob(row.frame_times, *whose, row.start_seconds, row.end_seconds) == row.row_crc32
        )
        if (
            not is_right
            or row.num_frames > self._num_frames
            or not is_blob(row.frame_times, 8 * row.num_frames)
        ):
            problems.append("its record")
        is_right = is_blob(row.video_feature, 4 * self._embedding_dim)
        if (
            not is_right
            or checksum_of_blob(row.video_feature, *whose, fingerprint=made_with) != row.video_feature_crc32
        ):
            problems.append("its video feature")
        is_right = is_blob(row.frame_features, 2 * self._num_frames * self._embedding_dim)
        if (
            not is_right
            or checksum_of_blob(row.frame_features, row.id, fingerprint=made_with) != row.frame_features_crc32
        ):
            problems.append("its frame features")
        if problems:
            return f"checksum mismatch: {', '.join(problems)}"
        # Last: the checksums cover the fingerprint, so that here it is the one that was written.
        if made_with != self._fingerprint:
            return f"its features have the fingerprint {made_with.hex()}, the index {self._fingerprint.hex()}"
        return ""

    def _join(
        self, rows: Sequence[tuple[Sequence[int], bytes, bytes, int]], bytes_a_dimension: int
    ) -> bytearray:
        """One buffer of the blobs of rows (whose it is, fingerprint, blob, CRC-32); writable, for torch."""
        size_bytes = bytes_a_dimension * self._embedding_dim
        joined = bytearray()
        for whose, made_with, blob, checksum in rows:
            is_whole = checksum_of_blob(blob, *whose, fingerprint=made_with) == checksum
            if not is_whole or not is_blob(blob, size_bytes):
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


def segment_info(row: Sequence[Any]) -> SegmentInfo:
    """The segment in a row (id, id of the video, number of the video, start_seconds, end_seconds, num_frames,
    frame_times, row_crc32). Raises IndexDamagedError."""
    segment_id, video_id, video_key, start_seconds, end_seconds, num_frames, frame_times, checksum = row
    whose = (segment_id, video_key, num_frames, start_seconds, end_seconds)
    is_whole = checksum_of_blob(frame_times, *whose) == checksum and is_blob(frame_times, 8 * num_frames)
    if not is_whole or video_id is None:
        raise IndexDamagedError(
            f"the catalog is damaged: the record of segment {segment_id} does not match its checksum; "
            "delete its video and index it again, or restore a backup"
        )
    times = np.frombuffer(frame_times, "<f8")
    return SegmentInfo(segment_id, video_id, video_key, start_seconds, end_seconds, num_frames, times)


def check_order(last: int, rows: Sequence[Sequence[Any]]) -> None:
    """Raise IndexDamagedError unless ids ascend from `last`: a damaged tree may give rows again and again."""
    for row in rows:
        if not row[0] > last:
            raise IndexDamagedError("the catalog is damaged: its segments are out of order; restore a backup")
        last = row[0]


def is_blob(value: object, size_bytes: int) -> bool:
    """Whether a value of a row, which may be damaged, is bytes of this size."""
    return isinstance(value, bytes) and len(value) == size_bytes
