"""Frames of a video by PyAV: exact, from the keyframe before, without decoding what is not wanted.

The file is read from front to back once. Only groups of pictures that hold a wanted frame go to the
decoder, and in H.264 only the frames that others refer to, plus the wanted ones:

    packets    K . . . . . . K . . . . . . K . . . . . . K . . . .      K: key packet
    wanted           x                         x     x
    decoded    K . . x                     K . x . . x                  the second group is skipped

No seeking is relied upon, but for one jump where the first wanted frame is far into the file, and what it
lands on is checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import av.error
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from indexer.errors import UnsupportedMediaError
from indexer.media.probing import MediaLimits, check_frame_size, demux_all, open_media
from indexer.media.timeline import Timeline
from indexer.media.view import View

_START: Final = -(2**63)
"""Stands for the first packet of the file, below every tick."""

_JUMP_SECONDS: Final = 30.0
"""Reading through this much of a file costs about as much as a jump and its check."""


@dataclass(frozen=True, eq=False)
class DecodedFrame:
    """What was decoded for a wanted frame.

    Attributes:
        index: of the wanted frame in the timeline.
        time_seconds: when the decoded one starts, after the first.
        rgb: uint8 [H, W, 3], as shown.
        exact: it is the wanted one and whole; else, in a damaged file, the nearest that could be decoded.
    """

    index: int
    time_seconds: float
    rgb: NDArray[np.uint8]
    exact: bool


def read_with_pyav(
    path: Path,
    timeline: Timeline,
    indices: Sequence[int],
    limits: MediaLimits,
    num_threads: int = 1,
    min_side: int | None = None,
) -> Iterator[DecodedFrame]:
    """The frames of these indices, one by one, in order.

    Args:
        path: the file that `timeline` was read from.
        timeline: when each frame is shown.
        indices: ascending, distinct, of `timeline.ticks`.
        limits: what is refused.
        num_threads: decoding threads.
        min_side: see `indexer.media.view.View.show`.

    Raises:
        MediaLimitError: a frame is larger than allowed.
        UnsupportedMediaError: nothing can be decoded.
    """
    if not indices:
        return
    wanted = _Wanted(timeline, indices, limits, min_side)
    if timeline.clock == "presentation":
        try:
            with _packets_of(path, timeline, wanted, limits, num_threads) as (stream, packets):
                yield from _read_by_time(stream, packets, wanted, timeline)
                yield from wanted.leftovers()
        except _KeyPacketMisleadsError:
            with _packets_of(path, None, wanted, limits, num_threads) as (stream, packets):
                yield from _read_by_time(stream, packets, wanted, None)
                yield from wanted.leftovers()
    else:
        with _packets_of(path, None, wanted, limits, num_threads) as (stream, packets):
            yield from _read_by_count(stream, packets, wanted)
            yield from wanted.leftovers()


class _KeyPacketMisleadsError(Exception):
    """Decoding could not start at a packet that says so: the picture builds up slowly there (intra refresh),
    or it is damaged. The file is then decoded from its start."""


class _Wanted:
    """The frames still to be answered, and the last one decoded."""

    def __init__(
        self, timeline: Timeline, indices: Sequence[int], limits: MediaLimits, min_side: int | None
    ) -> None:
        self.timeline = timeline
        self.indices = indices
        self.limits = limits
        self.min_side = min_side
        self.view: View | None = None  # of the stream that is read
        self.next = 0
        self.last: tuple[int, VideoFrame] | None = None

    @property
    def done(self) -> bool:
        return self.next == len(self.indices)

    @property
    def index(self) -> int:
        return self.indices[self.next]

    def offer(self, tick: int, frame: VideoFrame) -> Iterator[DecodedFrame]:
        """Answer all wanted frames that this one determines. Frames come in ascending order of ticks."""
        ticks = self.timeline.ticks
        while not self.done and tick > ticks[self.index]:
            yield self._answer(*(self.last or (tick, frame)))
        self.last = (tick, frame)
        if not self.done and tick == ticks[self.index]:
            yield self._answer(tick, frame)

    def leftovers(self) -> Iterator[DecodedFrame]:
        """At the end of the file: what is still wanted is answered by the last frame decoded."""
        while not self.done:
            if self.last is None:
                raise UnsupportedMediaError("not one frame could be decoded")
            yield self._answer(*self.last)

    def _answer(self, tick: int, frame: VideoFrame) -> DecodedFrame:
        assert self.view is not None
        check_frame_size(*self.view.size(frame), self.limits)
        index, ticks = self.index, self.timeline.ticks
        self.next += 1
        position = int(np.clip(np.searchsorted(ticks, tick, side="right") - 1, 0, len(ticks) - 1))
        exact = tick == int(ticks[index]) and not frame.is_corrupt
        rgb = self.view.show(frame, self.min_side)
        return DecodedFrame(index, float(self.timeline.times[position]), rgb, exact)


@contextmanager
def _packets_of(
    path: Path, timeline: Timeline | None, wanted: _Wanted, limits: MediaLimits, num_threads: int
) -> Iterator[tuple[VideoStream, Iterator[Packet[VideoStream]]]]:
    """The video stream and its packets: all of them, or, with a timeline, from where the first wanted
    needs."""
    with ExitStack() as stack:
        container, stream = stack.enter_context(open_media(path, limits, num_threads))
        _only(container, stream)
        wanted.view = View(stream)
        if timeline is not None and not wanted.done:
            key = _key_of(timeline, wanted.index)
            if _is_far(timeline, key):
                packets = _jump(container, stream, key)
                if packets is not None:
                    yield stream, packets
                    return
                stack.close()
                container, stream = stack.enter_context(open_media(path, limits, num_threads))
                _only(container, stream)
                wanted.view = View(stream)
        yield stream, demux_all(container, stream)


def _read_by_time(
    stream: VideoStream, packets: Iterator[Packet[VideoStream]], wanted: _Wanted, timeline: Timeline | None
) -> Iterator[DecodedFrame]:
    """timeline: leave out the groups of pictures that hold nothing wanted; None: decode all of them.

    Raises _KeyPacketMisleadsError before it would answer from a start that was none.
    """
    context = stream.codec_context
    ticks = wanted.timeline.ticks
    wanted_ticks = {int(ticks[index]) for index in wanted.indices}
    keys = [_START if timeline is None else _key_of(timeline, index) for index in wanted.indices]
    starts = set(keys)
    # H.264 says of each frame whether any other may refer to it (nal_ref_idc, ITU-T H.264 7.4.1), so leaving
    # the others out changes nothing. HEVC's flag speaks of one temporal layer only: not the same.
    may_leave_out = stream.codec_context.codec.canonical_name == "h264" and context.thread_count == 1
    key, first_tick, feeding, must_start = _START, _START, keys[wanted.next] == _START, False
    for packet in packets:
        if packet.size:
            tick = packet.pts if packet.pts is not None else _START
            if packet.is_keyframe and tick > key:
                key = tick
                if key in starts and not feeding:
                    context.flush_buffers()
                    feeding, first_tick, must_start = True, key, True
            if feeding and keys[wanted.next] > key:
                feeding = False
            if not feeding:
                continue
            if may_leave_out:
                discard: Literal["DEFAULT", "NONREF"] = "DEFAULT" if tick in wanted_ticks else "NONREF"
                if context.skip_frame != discard:
                    context.skip_frame = discard
        elif not feeding:
            return
        for frame in _decode(packet):
            if frame.pts is None or frame.pts < first_tick:
                continue  # Frames before a key packet that was jumped to lack what they refer to.
            if must_start and (frame.pts != first_tick or frame.is_corrupt):
                raise _KeyPacketMisleadsError
            must_start = False
            yield from wanted.offer(frame.pts, frame)
            if wanted.done:
                return


def _read_by_count(
    stream: VideoStream, packets: Iterator[Packet[VideoStream]], wanted: _Wanted
) -> Iterator[DecodedFrame]:
    ticks = wanted.timeline.ticks
    number = 0
    for packet in packets:
        for frame in _decode(packet):
            if number < len(ticks):
                yield from wanted.offer(int(ticks[number]), frame)
            number += 1
            if wanted.done:
                return


def _decode(packet: Packet[VideoStream]) -> list[VideoFrame]:
    """Frames that come out after this packet; none where it is damaged. An empty packet drains the
    decoder."""
    try:
        return packet.decode()
    except MemoryError:
        raise
    except (av.error.FFmpegError, ValueError):
        return []


def _key_of(timeline: Timeline, index: int) -> int:
    tick = int(timeline.ticks[index])
    position = int(np.searchsorted(timeline.key_ticks, tick, side="right")) - 1
    return int(timeline.key_ticks[position]) if position > 0 else _START


def _is_far(timeline: Timeline, key: int) -> bool:
    if key == _START:
        return False
    return bool(timeline.times[np.searchsorted(timeline.ticks, key)] > _JUMP_SECONDS)


def _jump(container: InputContainer, stream: VideoStream, key: int) -> Iterator[Packet[VideoStream]] | None:
    """The packets from `key` or an earlier key packet on; None where the demuxer cannot jump there."""
    try:
        container.seek(key, stream=stream, backward=True)
        packets = demux_all(container, stream)
        first = next(packets)
    except (av.error.FFmpegError, StopIteration):
        return None
    if not first.is_keyframe or first.pts is None or first.pts > key:
        return None

    def from_first() -> Iterator[Packet[VideoStream]]:
        yield first
        yield from packets

    return from_first()


def _only(container: InputContainer, stream: VideoStream) -> None:
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all
