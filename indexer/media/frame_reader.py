"""Frames of a video at given times, by decord or PyAV: the same frames from both, as shown.

The frame at a time is the one a player shows then: the last that starts at or before it, counted from the
first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import av.error
import numpy as np
from av.packet import Packet
from av.video.stream import VideoStream
from numpy.typing import NDArray

from indexer.errors import UnsupportedMediaError
from indexer.media.decord_reader import open_with_decord, read_with_decord
from indexer.media.nal_units import H264Headers
from indexer.media.probing import (
    MediaInfo,
    MediaLimits,
    check_file,
    check_frame_size,
    open_media,
    recording_time,
)
from indexer.media.protection import PROTECTED_REASON, refuse_protected
from indexer.media.pyav_reader import DecodedFrame, read_with_pyav
from indexer.media.sampling import frame_indices_at
from indexer.media.timeline import Timeline, read_timeline
from indexer.media.truncation import check_end
from indexer.media.view import UPRIGHT, View, orientation_of, pixel_aspect, square_size

Backend = Literal["auto", "decord", "pyav"]

_TRIED_PACKETS = 256
"""So many packets may go by before the first frame: more than any decoder delays its output."""


class VideoFile:
    """One file, probed without trusting it, ready to give frames.

    Reads the packets once at construction; `info` and `timeline` say what is there.

    Raises:
        MediaError: the file cannot become a video.
    """

    def __init__(self, path: str | Path, limits: MediaLimits | None = None, num_threads: int = 1) -> None:
        self.path = Path(path).absolute()
        self.limits = limits or MediaLimits()
        self.num_threads = num_threads
        kind, status = check_file(self.path, self.limits)
        refuse_protected(self.path, kind)
        with open_media(self.path, self.limits) as (container, stream):
            codec = stream.codec_context.codec.canonical_name
            first = _FirstFrame(stream)
            headers = H264Headers(stream.codec_context.extradata) if codec == "h264" else None

            def look(packet: Packet[VideoStream]) -> None:
                if packet.is_keyframe and packet.has_sidedata("encryption_info"):
                    raise UnsupportedMediaError(PROTECTED_REASON)
                first.look(packet)

            timeline = read_timeline(container, stream, kind, self.limits, look, headers)
            timeline = check_end(self.path, kind, timeline, self.limits)
            check_frame_size(first.size.width, first.size.height, self.limits)
            self.timeline: Timeline = timeline
            self._suits_decord = first.is_plain and (headers is None or headers.all_keys_whole)
            self.info = MediaInfo(
                container=kind,
                codec=codec,
                width=first.size.width,
                height=first.size.height,
                rotation_degrees=-90 * first.orientation.quarter_turns % 360,
                frame_rate=timeline.frame_rate,
                duration_seconds=timeline.end_seconds,
                num_frames=len(timeline),
                size_bytes=status.st_size,
                has_audio=len(container.streams.audio) > 0,
                media_start_seconds=timeline.media_start_seconds,
                recorded_at=recording_time(container, stream, kind),
            )

    def frames_at(
        self, times_seconds: Sequence[float], backend: Backend = "pyav", min_side: int | None = None
    ) -> Iterator[DecodedFrame]:
        """The frame shown at each time, one by one. One that several times share is decoded once.

        Args:
            times_seconds: ascending, after the first frame.
            backend: `pyav`, and `auto`, read everything by PyAV, which is as fast as the others or faster
                (docs/decisions/0024). `decord`, for files that the operator trusts, lets decord read where it
                is sure to agree and PyAV the rest (AV1, AVI, damaged files).
            min_side: pixels of the shorter side that are enough, see `indexer.media.view.View.show`.
        """
        indices = frame_indices_at(self.timeline.times, times_seconds).tolist()
        frames = self._distinct_frames(sorted(set(indices)), backend, min_side)
        current: DecodedFrame | None = None
        for index in indices:
            while current is None or current.index < index:
                current = next(frames)
            yield current

    def open_decord(self) -> Any | None:
        """decord's reader of this file, or None where it is not sure to give the frames that PyAV gives."""
        if not self._suits_decord:
            return None
        return open_with_decord(self.path, self.info, self.timeline, self.num_threads)

    def _distinct_frames(
        self, indices: list[int], backend: Backend, min_side: int | None
    ) -> Iterator[DecodedFrame]:
        done = 0
        if backend == "decord":
            reader = self.open_decord()
            if reader is not None:
                for frame in read_with_decord(reader, self.timeline, indices, self.limits):
                    done += 1
                    yield frame
        # All of it, or what decord gave up at: PyAV conceals more damage.
        yield from read_with_pyav(
            self.path, self.timeline, indices[done:], self.limits, self.num_threads, min_side
        )


class _FirstFrame:
    """Decodes until one frame comes out: only a decoded frame says how it is to be shown."""

    def __init__(self, stream: VideoStream) -> None:
        self.size = square_size(stream.width, stream.height, pixel_aspect(stream))
        self.orientation = UPRIGHT
        self.is_plain = False
        self._view = View(stream)
        self._tried = 0

    def look(self, packet: Packet[VideoStream]) -> None:
        if self._tried >= _TRIED_PACKETS:
            return
        self._tried += 1
        with suppress(av.error.FFmpegError, ValueError):
            for frame in packet.decode():
                self.size = self._view.size(frame)
                self.orientation = orientation_of(frame)
                self.is_plain = self._view.is_plain(frame)
                self._tried = _TRIED_PACKETS
                break


def probe(path: str | Path, limits: MediaLimits | None = None) -> MediaInfo:
    """What a file is. Reads all its packets and decodes one frame; see `VideoFile`.

    Raises:
        MediaError: the file cannot become a video.
    """
    return VideoFile(path, limits).info


def read_frames(
    path: str | Path,
    times_seconds: Sequence[float],
    backend: Backend = "pyav",
    limits: MediaLimits | None = None,
) -> tuple[list[NDArray[np.uint8]], list[float]]:
    """Frames of a file at these times, in this process.

    Untrusted files belong in `indexer.media.decode_pool` instead.

    Args:
        path: the video.
        times_seconds: in any order, after the first frame.
        backend: see `VideoFile.frames_at`.
        limits: what is refused.

    Returns:
        RGB uint8 [H, W, 3] each, as shown, and the times at which those frames start.

    Raises:
        MediaError: the file cannot become a video.
    """
    order = np.argsort(times_seconds, kind="stable")
    ascending = [float(times_seconds[position]) for position in order]
    found = list(VideoFile(path, limits).frames_at(ascending, backend))
    asked = [found[position] for position in np.argsort(order)]
    return [frame.rgb for frame in asked], [frame.time_seconds for frame in asked]
