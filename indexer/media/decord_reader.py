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
from av.packet import Packet
from av.video.stream import VideoStream

from indexer.media.probing import MediaInfo, MediaLimits, check_frame_size
from indexer.media.pyav_reader import DecodedFrame
from indexer.media.timeline import Timeline

_CONTAINERS: Final = frozenset({"mp4", "matroska"})
"""In MPEG-TS it was seen to return frames of another group of pictures; these two have an index to go by."""

_CODECS: Final = frozenset({"h264", "hevc", "mpeg4", "vp9"})
"""Of these, decord numbers frames as they are shown. VP8 has packets that show nothing; AV1 it cannot
read."""

_SAME_SECONDS: Final = 0.002
"""decord's times are float32 of rounded ticks."""


class KeyPictures:
    """Whether all key packets of an H.264 stream hold a whole picture (IDR), as decord takes for granted.

    With intra refresh the picture builds up over many frames after a key packet, which show nothing until
    then.
    """

    def __init__(self, codec: str, extradata: bytes | None) -> None:
        # The avcC box, ISO/IEC 14496-15 5.3.3.1: its fifth byte holds the size of a NAL unit's length.
        self._length_bytes = (extradata[4] & 3) + 1 if extradata and extradata[0] == 1 else 0
        self._looks = codec == "h264"
        self.all_whole = not self._looks or self._length_bytes > 0

    def look(self, packet: Packet[VideoStream]) -> None:
        """Take one more packet into account."""
        if self._looks and packet.is_keyframe and self.all_whole:
            self.all_whole = _is_whole_picture(bytes(packet), self._length_bytes)


def _is_whole_picture(payload: bytes, length_bytes: int) -> bool:
    position = 0
    while position + length_bytes < len(payload):
        start = position + length_bytes
        kind = payload[start] & 31  # nal_unit_type, ITU-T H.264 table 7-1
        if 1 <= kind <= 5:
            return kind == 5
        position = start + int.from_bytes(payload[position:start], "big")
    return False


def open_with_decord(path: Path, info: MediaInfo, timeline: Timeline, num_threads: int = 1) -> Any | None:
    """decord's reader of a file, or None where decord is absent, fails, or would number frames differently.

    Args:
        path: the trusted file that `info` and `timeline` were read from.
        info: its container and codec. H.264 needs `KeyPictures` as well.
        timeline: when each frame is shown.
        num_threads: decoding threads.
    """
    if info.container not in _CONTAINERS or info.codec not in _CODECS:
        return None
    if timeline.clock != "presentation" or timeline.num_hidden:
        return None
    if not len(timeline.key_ticks) or timeline.key_ticks[0] != timeline.ticks[0]:
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
