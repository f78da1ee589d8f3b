"""Segments and their features between arrays and rows, the same in every store.

Stored little-endian without a header: video feature float32 [D], frame features float16 [F, D], frame times
float64 [num_frames]; each with a CRC-32 over itself and the numbers that say whose it is, because no database
would notice a flipped bit. Each segment has the fingerprint (32 bytes) that its features were made with:
those of another one are never given out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexer.errors import FingerprintMismatchError, IndexDamagedError
from indexer.store.checksums import checksum_of_blob
from indexer.store.records import SegmentFeatures, SegmentInfo, SegmentRecord, without_sign_of_zero

_BYTES: Final = (bytes, memoryview)

INFO_COLUMNS: Final = (
    "segments.id, videos.id, video_number, start_seconds, end_seconds, num_frames, frame_times,"
    " segments.row_crc32"
)
"""As `segment_info` reads them, of segments joined with their videos."""


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
        self._video_bytes = 4 * embedding_dim
        self._frames_bytes = 2 * num_frames * embedding_dim
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

    def features_of(self, rows: Iterable[Sequence[Any]], segment_ids: Sequence[int]) -> SegmentFeatures:
        """Features of segments, in the order asked; an id asked twice comes twice, one without a row not at
        all.

        rows: (id, video number, num_frames, fingerprint, video feature, its CRC-32, frame features, their
        CRC-32), in any order, each put into its place as it comes.
        Raises IndexDamagedError, FingerprintMismatchError.
        """
        places = {segment_id: place for place, segment_id in enumerate(dict.fromkeys(segment_ids))}
        count, size, frames_size = len(places), self._video_bytes, self._frames_bytes
        video = np.empty((count, self._embedding_dim), "<f4")
        frames = np.empty((count, self._num_frames, self._embedding_dim), "<f2")
        into_video, into_frames = _bytes_of(video), _bytes_of(frames)
        found: dict[int, Sequence[int]] = {}  # Id, video number and num_frames by place.
        for row in rows:
            if (place := places.get(row[0])) is not None:
                self._check(row)
                into_video[place * size : (place + 1) * size] = row[4]
                into_frames[place * frames_size : (place + 1) * frames_size] = row[6]
                found[place] = row[:3]
        wanted = [place for place in map(places.__getitem__, segment_ids) if place in found]
        numbers = np.array([found[place] for place in wanted], np.int64).reshape(-1, 3)
        ids, video_keys, num_frames = np.ascontiguousarray(numbers.T)
        if num_frames.max(initial=0) > self._num_frames:
            raise IndexDamagedError("the catalog is damaged: a segment has more frames than the model takes")
        if wanted != list(range(count)):
            video, frames = video[wanted], frames[wanted]
        return SegmentFeatures(ids, video_keys, video, frames, num_frames)

    def ids_and_video(self, rows: Sequence[Sequence[Any]]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids int64 [N] and video features float32 [N, D] of rows that begin as `features_of` says, in their
        order. Raises what it raises."""
        for row in rows:
            self._check(row[:6])
        joined = bytearray().join(row[4] for row in rows)
        video = np.frombuffer(joined, "<f4").reshape(len(rows), self._embedding_dim)
        return np.array([row[0] for row in rows], np.int64), video

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
        is_right = is_blob(row.video_feature, self._video_bytes)
        if (
            not is_right
            or checksum_of_blob(row.video_feature, *whose, fingerprint=made_with) != row.video_feature_crc32
        ):
            problems.append("its video feature")
        is_right = is_blob(row.frame_features, self._frames_bytes)
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

    def _check(self, row: Sequence[Any]) -> None:
        """Raise IndexDamagedError or FingerprintMismatchError unless the features in a row, or those of the
        video where it has no others, are what was written, by the model of the index."""
        segment_id, video_key, num_frames, made_with, video, video_crc32 = row[:6]
        # First: its checksum is over the other numbers too.
        found = checksum_of_blob(video, segment_id, video_key, num_frames, fingerprint=made_with)
        is_whole = found == video_crc32 and is_blob(video, self._video_bytes)
        if is_whole and len(row) > 6:
            found = checksum_of_blob(row[6], segment_id, fingerprint=made_with)
            is_whole = found == row[7] and is_blob(row[6], self._frames_bytes)
        if not is_whole:
            raise IndexDamagedError(
                f"the catalog is damaged: the features of segment {segment_id} do not match their checksum;"
                " delete its video and index it again, or restore a backup"
            )
        if made_with != self._fingerprint:
            raise FingerprintMismatchError(
                expected=self._fingerprint.hex(), found=made_with.hex(), segment_id=segment_id
            )


def _bytes_of(table: NDArray[Any]) -> memoryview:
    """The memory of an array, to be written to."""
    return table.reshape(-1).view(np.uint8).data


def segment_info(row: Sequence[Any]) -> SegmentInfo:
    """The segment in a row of INFO_COLUMNS. Raises IndexDamagedError."""
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
    return isinstance(value, _BYTES) and len(value) == size_bytes
