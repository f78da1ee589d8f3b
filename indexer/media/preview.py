"""A short silent clip of a video that every browser plays: H.264 in MP4, small, a few frames a second.

Runs in a child of the decode pool: the encoder sees what a hostile file decoded to.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from numpy.typing import NDArray

from indexer.errors import MediaLimitError, UnsupportedMediaError
from indexer.media.frame_reader import VideoFile
from indexer.media.probing import MediaLimits

CLIP_SECONDS: Final = 8.0
SHORTEST_CLIP_SECONDS: Final = 2.0
"""A moment at the very end of a video is shown with what comes before it."""

CLIP_FRAME_RATE: Final = 12
MAX_CLIP_SIDE: Final = 640
MIN_CLIP_SIDE: Final = 16
"""H.264 is made of blocks of this many pixels."""

MAX_CLIP_BYTES: Final = 4 << 20
MP4_START: Final = b"ftyp"
"""What bytes 4 to 8 of every clip are."""

_ENCODER: Final = "libx264"
_OPTIONS: Final = {
    "preset": "veryfast",
    "crf": "27",
    "profile": "main",
    "maxrate": "2M",  # Noise would fill megabytes.
    "bufsize": "2M",
}
SMPTE_170M: Final = 6
LIMITED_RANGE: Final = 1
"""Matrix and range of the conversion from RGB; declared in the file, so that colours come back."""


def make_clip(path: Path, time_seconds: float, limits: MediaLimits) -> bytes:
    """The clip that starts at a moment.

    It lasts CLIP_SECONDS, or up to the end of the video, and starts at the latest SHORTEST_CLIP_SECONDS
    before that end. Sides have at most MAX_CLIP_SIDE pixels; nothing is enlarged beyond MIN_CLIP_SIDE.

    Args:
        path: the video.
        time_seconds: after its first frame; 0 or more, any number beyond its end stands for the end.
        limits: what is refused.

    Returns:
        The bytes of an MP4 file, at most MAX_CLIP_BYTES.

    Raises:
        MediaError: the file cannot become a video, or its clip is too large.
    """
    file = VideoFile(path, limits)
    times = clip_times(file.timeline.end_seconds, time_seconds)
    clip = _encode(frame.rgb for frame in file.frames_at(times, min_side=MAX_CLIP_SIDE))
    if len(clip) > MAX_CLIP_BYTES:
        raise MediaLimitError(f"a clip of {len(clip)} bytes; at most {MAX_CLIP_BYTES} are allowed")
    return clip


def clip_times(end_seconds: float, time_seconds: float) -> list[float]:
    """When the frames of a clip are shown, in seconds of the video that ends at `end_seconds`; at least one.

    >>> clip_times(0.3, 0.1)
    [0.0, 0.08333333333333333, 0.16666666666666666, 0.25]
    """
    start = max(0.0, min(time_seconds, end_seconds - SHORTEST_CLIP_SECONDS))
    most = round(CLIP_SECONDS * CLIP_FRAME_RATE)
    times = [start + number / CLIP_FRAME_RATE for number in range(most)]
    return [time for time in times if time < end_seconds] or [start]


def clip_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) of the clip of a video of this size, both even, its shape kept as far as they can.

    >>> clip_size(1920, 1080), clip_size(1080, 1920), clip_size(65, 33), clip_size(3000, 60)
    ((640, 360), (360, 640), (64, 32), (640, 16))
    """
    scale = min(1.0, MAX_CLIP_SIDE / max(width, height))
    sides = (max(MIN_CLIP_SIDE, int(side * scale + 1e-6) // 2 * 2) for side in (width, height))
    return next(sides), next(sides)


def _encode(pictures: Iterator[NDArray[np.uint8]] | Sequence[NDArray[np.uint8]]) -> bytes:
    """RGB pictures [H, W, 3], of the size of the first or brought to it, as an MP4 file."""
    if _ENCODER not in av.codec.codecs_available:
        raise UnsupportedMediaError("this build of FFmpeg has no H.264 encoder")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(_ENCODER, rate=CLIP_FRAME_RATE, options=dict(_OPTIONS))
        context = stream.codec_context
        context.thread_count = 1
        for number, rgb in enumerate(pictures):
            if number == 0:
                stream.width, stream.height = clip_size(rgb.shape[1], rgb.shape[0])
                stream.pix_fmt = "yuv420p"
                context.colorspace, context.color_range = SMPTE_170M, LIMITED_RANGE
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(
                width=stream.width,
                height=stream.height,
                format="yuv420p",
                dst_colorspace=Colorspace.SMPTE170M,
                dst_color_range=ColorRange.MPEG,
                interpolation=Interpolation.AREA,
            )
            frame.pts, frame.time_base = number, Fraction(1, CLIP_FRAME_RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()
