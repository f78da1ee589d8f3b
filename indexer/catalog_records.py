"""What the catalog takes and gives: videos, their segments, features by the block, changes.

Dimension letters: N segments, F frames, D embedding. Times of the clock are seconds since 1970, UTC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

ChangeKind = Literal["add", "update", "delete"]


@dataclass(frozen=True, eq=False)
class SegmentRecord:
    """A stretch of a video with one set of features.

    start_seconds, end_seconds: where it lies in the video; 0 <= start <= end.
    video_feature: float32 [D], unit length.
    frame_features: float16 [F, D]: all F, the encodings of padding frames included (a checkpoint that was
        trained with them is served with them).
    num_frames: how many of the F are real, 1 to F; the real ones come first.
    frame_times: float64 [num_frames], seconds from the start of the video, ascending.
    """

    start_seconds: float
    end_seconds: float
    video_feature: NDArray[np.float32]
    frame_features: NDArray[np.float16]
    num_frames: int
    frame_times: NDArray[np.float64]


@dataclass(frozen=True)
class VideoRecord:
    """A video as the catalog holds it.

    id: the client's or ours; unique. content_sha256: 64 hex digits over the bytes; unique.
    width, height: pixels, after rotation. partial: only the first `fraction_read` (0 to 1) could be read.
    trusted: the operator vouched for the file when it was indexed, see `indexer.manifest.VideoSource`.
    added_at: seconds since 1970. sequence: number of the change that added it; later videos have higher ones.
    """

    id: str
    content_sha256: str
    uri: str | None
    title: str | None
    metadata: Mapping[str, Any]
    duration_seconds: float
    width: int
    height: int
    frame_rate: float
    codec: str
    size_bytes: int
    partial: bool
    fraction_read: float
    trusted: bool
    added_at: float
    sequence: int


@dataclass(frozen=True)
class AddOutcome:
    """What became of an added video: its id, and whether it is new (false: the same bytes were there)."""

    video_id: str
    created: bool


@dataclass(frozen=True, eq=False)
class SegmentInfo:
    """A segment without its features. `video_number`: the catalog's own number of the video it belongs to."""

    segment_id: int
    video_id: str
    video_number: int
    start_seconds: float
    end_seconds: float
    num_frames: int
    frame_times: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SegmentFeatures:
    """Features of N segments, row by row.

    segment_ids, video_numbers: int64 [N]; rows of one video share its number.
    video: float32 [N, D]. frames: float16 [N, F, D]. num_frames: int64 [N], real frames, which come first.
    """

    segment_ids: NDArray[np.int64]
    video_numbers: NDArray[np.int64]
    video: NDArray[np.float32]
    frames: NDArray[np.float16]
    num_frames: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.segment_ids)

    @property
    def frame_mask(self) -> NDArray[np.bool_]:
        """bool [N, F], true for real frames."""
        return np.arange(self.frames.shape[1]) < self.num_frames[:, None]


@dataclass(frozen=True)
class Change:
    """One entry of the change log.

    sequence: increases by one with every change. kind: `add`, `update` (title, metadata or uri) or `delete`.
    segment_ids: of the video at that moment; empty for `update`.
    """

    sequence: int
    kind: ChangeKind
    video_id: str
    segment_ids: Sequence[int] = field(default=())
