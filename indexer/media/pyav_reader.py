"""Frames of a video by PyAV: exact, from the keyframe before, without decoding what is not wanted.

The file is read from front to back once. Only groups of pictures that hold a wanted frame go to the
decoder, and in H.264 and HEVC only the frames that others refer to, plus the wanted ones:

    packets    K . . . . . . K . . . . . . K . . . . . . K . . . .      K: key packet
    wanted           x                         x     x
    decoded    K . . x                     K . x . . x                  the second group is skipped

Frames are named by their numbers in the timeline: each packet gets that number in place of its time, and the
decoder hands it on to the frame, so that a clock that repeats itself confuses nothing.

No seeking is relied upon, but for one jump where the first wanted frame is far into the file, and what it
lands on is checked.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

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
from indexer.media.timeline import NO_TICK, Timeline
from indexer.media.view import View

_START: Final = -1
"""In place of a key packet's number: decoding starts at the first packet of the file."""

_FAR_SECONDS: Final = 30.0
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
        indices: ascending, distinct, of the timeline's frames.
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
        starts = _starts_of(timeline, indices)
        try:
            with _packets_of(path, wanted, starts[0], num_threads) as (stream, packets):
                yield from _read_by_time(stream, packets, wanted, starts)
                yield from wanted.leftovers()
        except _KeyPacketMisleadsError:
            with _packets_of(path, wanted, _START, num_threads) as (stream, packets):
                yield from _read_by_time(stream, packets, wanted, [_START] * len(indices))
                yield from wanted.leftovers()
    else:
        with _packets_of(path, wanted, _START, num_threads) as (stream, packets):
            yield from _read_by_count(stream, packets, wanted)
            yield from wanted.leftovers()


class _KeyPacketMisleadsError(Exception):
    """Decoding could not start at a packet that says so: the picture builds up slowly there (intra refresh),
    or it is damaged; or a jump led to other packets than those of the timeline. The file is then decoded from
    its start."""


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

    def offer(self, index: int, frame: VideoFrame) -> Iterator[DecodedFrame]:
        """Answer all wanted frames that this one, by its index in the timeline, determines. Frames come in
        ascending order."""
        while not self.done and index > self.index:
            yield self._answer(*(self.last or (index, frame)))
        self.last = (index, frame)
        if not self.done and index == self.index:
            yield self._answer(index, frame)

    def leftovers(self) -> Iterator[DecodedFrame]:
        """At the end of the file: what is still wanted is answered by the last frame decoded."""
        while not self.done:
            if self.last is None:
                raise UnsupportedMediaError("no frame could be decoded")
            yield self._answer(*self.last)

    def _answer(self, shown: int, frame: VideoFrame) -> DecodedFrame:
        assert self.view is not None
        check_frame_size(*self.view.size(frame), self.limits)
        index = self.index
        self.next += 1
        exact = shown == index and not frame.is_corrupt
        rgb = self.view.show(frame, self.min_side)
        return DecodedFrame(index, float(self.timeline.times[shown]), rgb, exact)


_Numbered: TypeAlias = "Iterator[tuple[int, Packet[VideoStream]]]"
"""Packets with their numbers in the file; the empty one at the end has the number of the one after the
last."""


@contextmanager
def _packets_of(
    path: Path, wanted: _Wanted, start: int, num_threads: int
) -> Iterator[tuple[VideoStream, _Numbered]]:
    """The video stream and its packets from the first, or from a key packet at or before the one numbered
    `start` where that is far into the file and the demuxer can jump there."""
    with ExitStack() as stack:
        container, stream = stack.enter_context(open_media(path, wanted.limits, num_threads))
        _only(container, stream)
        wanted.view = View(stream)
        if _is_far(wanted.timeline, start):
            packets = _jump(container, stream, wanted.timeline, start)
            if packets is not None:
                yield stream, packets
                return
            stack.close()
            container, stream = stack.enter_context(open_media(path, wanted.limits, num_threads))
            _only(container, stream)
            wanted.view = View(stream)
        yield stream, _numbered(demux_all(container, stream), wanted.timeline, 0)


def _numbered(packets: Iterator[Packet[VideoStream]], timeline: Timeline, first: int) -> _Numbered:
    """Number the packets from `first` on, and give each the number of its frame in place of its time.

    Raises _KeyPacketMisleadsError where they are not those of the timeline, after a jump.
    """
    number = first
    for packet in packets:
        if not packet.size:
            yield number, packet
        elif number < len(timeline.ticks):
            tick = NO_TICK if packet.pts is None else packet.pts
            if first and tick != timeline.ticks[number]:
                raise _KeyPacketMisleadsError
            packet.pts = int(timeline.frame_of_packet[number])
            yield number, packet
            number += 1


def _read_by_time(
    stream: VideoStream, packets: _Numbered, wanted: _Wanted, starts: Sequence[int]
) -> Iterator[DecodedFrame]:
    """starts: of each wanted frame, from which packet it is decoded, ascending; groups of pictures that hold
    nothing wanted are left out.

    Raises _KeyPacketMisleadsError before it would answer from a start that was none.
    """
    context, timeline = stream.codec_context, wanted.timeline
    wanted_frames = set(wanted.indices)
    first_frames = dict(zip(timeline.key_packets.tolist(), timeline.key_frames.tolist(), strict=True))
    # To leave out frames that no other may refer to changes nothing.
    may_leave_out = timeline.marks_unreferenced and context.thread_count == 1
    feeding, first_frame, must_start = starts[wanted.next] == _START, 0, False
    for number, packet in packets:
        if packet.size:
            start = starts[wanted.next]
            if start > number:
                feeding = False
            elif start == number and not feeding:
                context.flush_buffers()
                feeding, first_frame, must_start = True, first_frames[number], True
            if not feeding:
                continue
            if may_leave_out:
                discard: Literal["DEFAULT", "NONREF"] = "DEFAULT" if packet.pts in wanted_frames else "NONREF"
                if context.skip_frame != discard:
                    context.skip_frame = discard
        elif not feeding:
            return
        for frame in _decode(packet):
            if frame.pts is None or frame.pts < first_frame:
                continue  # Frames before a key packet that was jumped to lack what they refer to.
            if must_start and (frame.pts != first_frame or frame.is_corrupt):
                raise _KeyPacketMisleadsError
            must_start = False
            yield from wanted.offer(frame.pts, frame)
            if wanted.done:
                return


def _read_by_count(stream: VideoStream, packets: _Numbered, wanted: _Wanted) -> Iterator[DecodedFrame]:
    num_frames, number = len(wanted.timeline), 0
    for _, packet in packets:
        for frame in _decode(packet):
            if frame.pts is not None and not stream.codec_context.has_b_frames:
                number = frame.pts  # Frames come in the order of packets, of which some may show nothing.
            if number < num_frames:
                yield from wanted.offer(number, frame)
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


def _starts_of(timeline: Timeline, indices: Sequence[int]) -> list[int]:
    """The packet from which each of these frames is to be decoded: the last key packet that does not come
    after it, neither in the file nor as it is shown; _START where that is the first."""
    frames, first_packets = np.unique(timeline.frame_of_packet, return_index=True)
    starts = []
    for index in indices:
        packet = first_packets[np.searchsorted(frames, index)]
        position = int(np.searchsorted(timeline.key_packets, packet, side="right")) - 1
        while position > 0 and timeline.key_frames[position] > index:
            position -= 1  # It follows the key packet and is shown before it: it refers to what came before.
        starts.append(int(timeline.key_packets[position]) if position > 0 else _START)
    return starts if starts == sorted(starts) else [_START] * len(starts)


def _is_far(timeline: Timeline, start: int) -> bool:
    if start == _START or timeline.num_joins:  # Seeking by a clock that was reset is not possible.
        return False
    frame = timeline.key_frames[np.searchsorted(timeline.key_packets, start)]
    return bool(timeline.times[frame] > _FAR_SECONDS)


def _jump(container: InputContainer, stream: VideoStream, timeline: Timeline, start: int) -> _Numbered | None:
    """The packets from the one numbered `start` or an earlier key packet on; None where the demuxer cannot
    jump there."""
    try:
        container.seek(int(timeline.ticks[start]), stream=stream, backward=True)
        packets = demux_all(container, stream)
        first = next(packets)
    except (av.error.FFmpegError, StopIteration):
        return None
    if not first.is_keyframe or first.pts is None:
        return None
    found = timeline.key_packets[timeline.ticks[timeline.key_packets] == first.pts]
    if len(found) != 1 or found[0] > start:
        return None
    return _numbered(itertools.chain([first], packets), timeline, int(found[0]))


def _only(container: InputContainer, stream: VideoStream) -> None:
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all
