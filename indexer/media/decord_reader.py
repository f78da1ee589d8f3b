"""Frames of a video by decord, where it is sure to give the ones that PyAV would.

decord 0.6 carries an FFmpeg of 2018 and obeys whatever a file names, so it only sees files that the operator
trusts and that `indexer.media.probing` has identified. It addresses frames by number; its numbers are used
only where they mean the same frames as the timeline that was read from the packets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from indexer.media.probing import MediaInfo, MediaLimits, check_frame_size
from indexer.media.pyav_reader import DecodedFrame
from indexer.media.timeline import Timeline

_CONTAINERS: Final = frozenset({"mp4", "matroska"})
"""In MPEG-TS it was seen to return frames of another group of pictures; these two have an index to go by."""

_CODECS: Final = frozenset({"h264", "mpeg4", "vp9"})
"""Of these, decord numbers frames as they are shown. VP8 has packets that show nothing; AV1 it cannot read;
of HEVC with open groups of pictures, which is x265's default, it gives others after a jump."""

_SAME_SECONDS: Final = 0.002
"""decord's times are float32 of rounded ticks."""


def open_with_decord(path: Path, info: MediaInfo, timeline: Timeline, num_threads: int = 1) -> Any | None:
    """decord's reader of a file, or None where decord is absent, fails, or would number frames differently.

    Args:
        path: the trusted file that `info` and `timeline` were read from.
        info: its container and codec. All key packets of H.264 must hold whole pictures (`H264Headers`).
        timeline: when each frame is shown.
        num_threads: decoding threads.
    """
    if info.container not in _CONTAINERS or info.codec not in _CODECS:
        return None
    # It takes each packet for a frame, and seeks by the values of one clock.
    if timeline.clock != "presentation" or timeline.num_joins:
        return None
    if timeline.num_hidden or len(timeline.frame_of_packet) != len(timeline):
        return None
    if not len(timeline.key_packets) or timeline.key_packets[0] or timeline.key_frames[0]:
        return None
    try:
        import decord
    except (ImportError, OSError):
        return None
    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(str(path.absolute()), ctx=decord.cpu(0), num_threads=num_threads)
        if len(reader) != len(timeline):
            return None
        starts = np.asarray(reader.get_frame_timestamp(range(len(reader))), dtype=np.float64)[:, 0]
    except Exception:  # DECORDError derives from nothing narrower.
        return None
    if not np.allclose(starts - starts[0], timeline.times, rtol=1e-6, atol=_SAME_SECONDS):
        return None
    return reader


def read_with_decord(
    reader: Any, timeline: Timeline, indices: Sequence[int], limits: MediaLimits
) -> Iterator[DecodedFrame]:
    """The frames of these indices, one by one, in order; ends early where decord meets damage.

    Args:
        reader: from `open_with_decord`.
        timeline: of the same file.
        indices: ascending, of the timeline.
        limits: what is refused.

    Raises:
        MediaLimitError: a frame is larger than allowed.
    """
    for index in indices:
        try:
            rgb = reader[index].asnumpy()  # [H, W, 3], turned upright by decord itself
        except Exception:
            return
        check_frame_size(rgb.shape[1], rgb.shape[0], limits)
        yield DecodedFrame(index, float(timeline.times[index]), rgb, exact=True)
