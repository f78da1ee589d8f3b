"""When each frame of a video is shown, read from its packets without decoding them.

Containers often lack a frame count or a duration, or lie about them. The packets do not: reading through them
costs microseconds each, gives both readers the same clock, says where decoding may start (key packets) and
whether the file ends before what its header promises.

A clock value does not identify a frame, and a packet is not a frame. Frames are numbered in the order in
which they are shown. Recordings that were joined byte by byte start their clock again or jump ahead; the
times then continue:

    packets, by their clock   0 1 2 3 | 0 1 2 3      a joined recording: the clock goes back
    times                     0 1 2 3   4 5 6 7      the gap becomes one frame interval
    packets of fields         a a b b c c            two packets a frame
    frames                    0   1   2
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard
from av.video.stream import VideoStream
from numpy.typing import NDArray

from indexer.errors import MediaLimitError, TruncatedMediaError
from indexer.media.nal_units import H264Headers, HevcHeaders
from indexer.media.probing import TRANSPORT_CONTAINERS, MediaLimits, check_duration, demux_all

Clock = Literal["presentation", "count"]

JUMP_SECONDS: Final = 10.0
"""A clock that goes ahead by more, in every stream, was reset: `dts_delta_threshold` of ffmpeg, which
ignores such jumps of MPEG-TS and MPEG-PS too. ISO/IEC 13818-1, 2.7.4, allows 0.7 s between two pictures'
times."""

REORDER_SECONDS: Final = 1.0
"""A clock of decoding that goes back by more, or at a key packet, was reset; less is the disorder of
writers that give times of presentation alone."""

NO_FRAME: Final = -1
"""In `Timeline.frame_of_packet`: the packet is not to be shown."""

NO_TICK: Final = -(2**63)
"""A packet without a time."""

_WITH_OWN_TIMES: Final = frozenset({"h264", "hevc", "vvc"})
"""Codecs whose times FFmpeg does not reckon from the types of pictures (libavformat/demux.c,
`onein_oneout`)."""

_MOST_BETWEEN_REFERENCES: Final = 16

_MIN_FRAME_SECONDS = 0.001
_MISSING_SHARE = 0.05
_MISSING_SECONDS = 0.25
"""A file whose packets end earlier than promised by more than both counts as truncated, unless the file
proves whole; less is rounding, or sound that is a little longer."""


@dataclass(frozen=True, eq=False)
class Timeline:
    """The frames of one video stream.

    Attributes:
        times: float64 [N], N >= 1, when each frame starts, seconds after the first, ascending.
        end_seconds: when the last frame ends.
        frame_rate: frames a second, on average.
        frame_of_packet: int64 [P], the frame that each packet of the file belongs to, in the order of the
            file, empty packets left out. Where the clock is `count`, just the packet's own number.
        ticks: int64 [P], the presentation time of each packet in the stream's time base, or NO_TICK.
        key_packets: int64 [K], ascending: packets before which decoding may start.
        key_frames: int64 [K], the first frame that each of them leads to.
        clock: `presentation` where packets carry presentation times. `count` where they do not (AVI) and the
            n-th decoded frame is the n-th of the timeline.
        num_joins: places where the clock was reset.
        num_hidden: packets that the container says are not to be shown (cut away by an edit list).
        num_second_fields: packets that hold the second field of a frame.
        fraction_present: of what the header promises, 0 to 1; 1 where it promises nothing. Where the packets
            end in damage and the missing part has no known size, as if it were one packet.
        ends_in_damage: the packets end in damage.
        promised_end_seconds: when the video ends as the header says, after the first frame; 0 where it says
            nothing.
        media_start_seconds: when the first frame starts on the clock of a player of the file, 0 or more.
        marks_unreferenced: packets say truly whether any other frame may refer to theirs, so that a decoder
            may leave out those that say no.
    """

    times: NDArray[np.float64]
    end_seconds: float
    frame_rate: float
    frame_of_packet: NDArray[np.int64]
    ticks: NDArray[np.int64]
    key_packets: NDArray[np.int64]
    key_frames: NDArray[np.int64]
    clock: Clock
    num_joins: int = 0
    num_hidden: int = 0
    num_second_fields: int = 0
    fraction_present: float = 1.0
    ends_in_damage: bool = False
    promised_end_seconds: float = 0.0
    media_start_seconds: float = 0.0
    marks_unreferenced: bool = False

    def __len__(self) -> int:
        return len(self.times)


def read_timeline(
    container: InputContainer,
    stream: VideoStream,
    kind: str,
    limits: MediaLimits,
    on_packet: Callable[[Packet[Any]], None] = lambda packet: None,
    h264: H264Headers | None = None,
) -> Timeline:
    """Read all packets and find out when each frame is shown.

    Args:
        container: just opened.
        stream: its video.
        kind: the container, a key of `indexer.media.probing.DEMUXERS`.
        limits: what is refused.
        on_packet: called for each packet of the video stream.
        h264: reads the headers of an H.264 stream.

    Raises:
        TruncatedMediaError: there is not one frame.
        MediaLimitError: there are too many, or they last too long.
    """
    packets = _read_packets(container, stream, kind, limits, on_packet, h264)
    if not len(packets):
        raise TruncatedMediaError("the file ends before its first frame")
    tick_seconds = float(stream.time_base or 0) or 1 / 25
    rate = float(stream.guessed_rate or stream.average_rate or 0)
    frames = _frames_of(packets, kind, tick_seconds, rate)
    times = frames.times
    last = packets.last_duration * tick_seconds or frames.interval
    if packets.num_second_fields:  # What packets and header say may be said of fields.
        last = frames.interval
        rate = rate / 2 if rate * frames.interval > 1.5 else rate
    # Rounded to the microsecond, so that eight seconds do not become 7.999999999999999.
    end_seconds = round(float(times[-1]) + max(last, _MIN_FRAME_SECONDS), 6)
    check_duration(end_seconds, limits)
    first_seconds = frames.first_tick * tick_seconds
    promised, present = _promised_and_present(container, stream, kind, packets, first_seconds, end_seconds)
    fraction = 1.0
    # AVI counts its frames, so that one fewer is one lost.
    tolerated = tick_seconds / 2 if kind == "avi" else max(_MISSING_SECONDS, _MISSING_SHARE * promised)
    if promised - present > tolerated:
        fraction = max(0.0, present / promised)
    elif packets.ends_in_damage:
        fraction = len(packets) / (len(packets) + 1)
    return Timeline(
        times=times,
        end_seconds=end_seconds,
        frame_rate=rate or len(times) / end_seconds,
        frame_of_packet=frames.frame_of_packet,
        ticks=np.array(packets.ticks, dtype=np.int64),
        key_packets=frames.key_packets,
        key_frames=frames.key_frames,
        clock=frames.clock,
        num_joins=frames.num_joins,
        num_hidden=sum(packets.are_hidden),
        num_second_fields=packets.num_second_fields,
        fraction_present=fraction,
        ends_in_damage=packets.ends_in_damage,
        promised_end_seconds=max(0.0, end_seconds + promised - present) if promised else 0.0,
        media_start_seconds=round(max(0.0, first_seconds - player_zero_seconds(container, kind)), 6),
        marks_unreferenced=packets.mark_unreferenced,
    )


class _Packets:
    """What is kept of the packets of one video stream, in the order of the file, empty ones left out. Ticks
    are in the stream's time base."""

    def __init__(self, codec: str, hevc: HevcHeaders | None) -> None:
        # A film has hundreds of thousands of packets: lists would take five times the memory of arrays.
        self.ticks = array("q")
        self.decode_ticks = array("q")
        self.are_keys = array("b")
        self.are_hidden = array("b")
        self.are_second_fields = array("b")
        self.are_joins = array("b")  # The clock was reset before this packet.
        self._is_theora = codec == "theora"
        self._marks_always = codec == "h264"  # nal_ref_idc, ITU-T H.264 7.4.1
        self._hevc = hevc
        self.shows_last_reference_last = codec not in _WITH_OWN_TIMES
        self.num_second_fields = 0
        self.ends_in_damage = False
        self.last_duration = 0
        self.end_of_all_seconds = 0.0
        self._last_shown = NO_TICK

    def __len__(self) -> int:
        return len(self.ticks)

    @property
    def mark_unreferenced(self) -> bool:
        """See `Timeline.marks_unreferenced`."""
        return self._marks_always or (self._hevc is not None and not self._hevc.has_layers)

    def add(self, packet: Packet[Any], is_second_field: bool, is_join: bool) -> None:
        if self._hevc is not None:
            self._hevc.look(packet)
        pts, dts = packet.pts, packet.dts
        tick = NO_TICK if pts is None else pts
        self.ticks.append(tick)
        self.decode_ticks.append(tick if dts is None else dts)
        self.are_keys.append(packet.is_keyframe and not is_second_field)
        # A chained Ogg file repeats the headers of Theora, known by their first bit (Theora, 6.1).
        is_header = self._is_theora and bytes(memoryview(packet)[:1]) >= b"\x80"
        self.are_hidden.append(packet.is_discard or is_header)
        self.are_second_fields.append(is_second_field)
        self.are_joins.append(is_join)
        self.num_second_fields += is_second_field
        self.ends_in_damage = packet.is_corrupt
        if tick != NO_TICK and (tick >= self._last_shown or is_join):
            self._last_shown, self.last_duration = tick, packet.duration or 0


class _ClockWatch:
    """Finds where the clock of decoding was reset, before packets of the video stream.

    A picture may stand for long while sound goes on, so that a jump ahead is one only where no stream has
    packets in between, and only in containers whose clock is that of a broadcast.
    """

    def __init__(self, kind: str) -> None:
        self._may_jump = kind in TRANSPORT_CONTAINERS
        self._last: tuple[float, float] | None = None  # when the last packet is decoded and shown
        self._latest_of_all = -math.inf
        self._empty: tuple[float, float] = (0.0, 0.0)  # the last long interval without a packet of any stream

    def look_at_another(self, shown: float) -> None:
        """Take a packet into account that is shown or heard at this time."""
        if shown > self._latest_of_all:
            if shown > self._latest_of_all + JUMP_SECONDS:
                self._empty = (self._latest_of_all, shown)
            self._latest_of_all = shown

    def is_join(self, decoded: float, shown: float, is_key: bool) -> bool:
        """Whether the clock was reset before this packet of the video stream."""
        self.look_at_another(shown)
        last, self._last = self._last, (decoded, shown)
        if last is None:
            return False
        step = decoded - last[0]
        if step < 0:
            is_join = is_key or step < -REORDER_SECONDS
        elif step <= JUMP_SECONDS or not self._may_jump:
            return False
        else:
            empty_seconds = min(shown, self._empty[1]) - max(last[1], self._empty[0])
            is_join = empty_seconds > JUMP_SECONDS
        if is_join:
            self._latest_of_all, self._empty = shown, (0.0, 0.0)
        return is_join


def _read_packets(
    container: InputContainer,
    stream: VideoStream,
    kind: str,
    limits: MediaLimits,
    on_packet: Callable[[Packet[Any]], None],
    h264: H264Headers | None,
) -> _Packets:
    codec = stream.codec_context.name
    hevc = HevcHeaders(stream.codec_context.extradata) if codec == "hevc" else None
    packets, watch = _Packets(codec, hevc), _ClockWatch(kind)
    promised_by_stream = stream.duration is not None or "DURATION" in stream.metadata
    reads_sound = not promised_by_stream or kind in TRANSPORT_CONTAINERS
    for other in container.streams:
        # Sound matters only where the header promises a length of the whole file, which sound may be what
        # fills, and where it shows that the clock goes on.
        if other.index != stream.index and not (reads_sound and other.type == "audio"):
            other.discard = Discard.all
    scales: dict[
        int, float
    ] = {}  # Seconds of a tick; a Fraction for each packet would take most of the time.
    try:
        for num_of_all, packet in enumerate(demux_all(container), start=1):
            if num_of_all > limits.max_packets:
                raise MediaLimitError(f"more than {limits.max_packets} packets")
            index, pts, dts = packet.stream_index, packet.pts, packet.dts
            shown = dts if pts is None else pts
            if shown is None and not packet.size:
                continue  # The demuxer's end-of-stream marker, not a packet of the file.
            if index not in scales:
                scales[index] = float(packet.time_base or 0)
            scale, is_join = scales[index], False
            if shown is not None:
                end = (shown + (packet.duration or 0)) * scale
                packets.end_of_all_seconds = max(packets.end_of_all_seconds, end)
            if index != stream.index:
                if reads_sound and shown is not None:
                    watch.look_at_another(shown * scale)
                continue
            if shown is not None and dts is not None:
                is_join = watch.is_join(dts * scale, shown * scale, packet.is_keyframe)
            if packet.size:
                is_second = h264 is not None and h264.is_second_field(packet)
                packets.add(packet, is_second, is_join and not is_second)
            if len(packets) > limits.max_frames:
                raise MediaLimitError(f"more than {limits.max_frames} frames")
            on_packet(packet)
    except MemoryError:
        raise  # To stop here would make the video shorter.
    except av.error.FFmpegError:
        packets.ends_in_damage = True  # What came before it counts.
    return packets


@dataclass(frozen=True)
class _Frames:
    """The frames that packets hold; the fields are those of `Timeline`.

    first_tick: of the first frame. interval: seconds between two frames, typically.
    """

    times: NDArray[np.float64]
    frame_of_packet: NDArray[np.int64]
    key_packets: NDArray[np.int64]
    key_frames: NDArray[np.int64]
    clock: Clock
    num_joins: int
    first_tick: int
    interval: float


def _frames_of(packets: _Packets, kind: str, tick_seconds: float, rate: float) -> _Frames:
    ticks = np.array(packets.ticks, dtype=np.int64)
    are_second = np.array(packets.are_second_fields, dtype=bool)
    # A second field belongs to the frame of the packet before it, whatever its own time.
    firsts = np.flatnonzero(~are_second)
    packet_of_first = np.cumsum(~are_second) - 1
    ticks = ticks[firsts]
    are_shown = ~np.array(packets.are_hidden, dtype=bool)[firsts]
    if not are_shown.any():
        are_shown[:] = True
    are_keys = np.array(packets.are_keys, dtype=bool)[firsts]
    clock: Clock = "count" if kind == "avi" or (ticks == NO_TICK).any() else "presentation"
    decode_ticks = np.array(packets.decode_ticks, dtype=np.int64)[firsts]
    if clock == "count":
        ticks = decode_ticks
        are_shown[:] = True
    starts = np.flatnonzero(np.array(packets.are_joins, dtype=bool)[firsts])
    runs = np.split(np.arange(len(firsts)), starts[starts > 0])
    if packets.shows_last_reference_last and clock == "presentation":
        for run in runs[:-1]:
            _place_last_reference(ticks[run[0] : run[-1] + 1], decode_ticks[run])
    frame_of_first = np.full(len(firsts), NO_FRAME, dtype=np.int64)
    key_frame_of_first = np.zeros(len(firsts), dtype=np.int64)
    parts: list[NDArray[np.int64]] = []  # the ticks of the frames of each run, from its first
    num_frames, first_tick = 0, 0
    for run in runs:
        shown, places = np.unique(ticks[run][are_shown[run]], return_inverse=True)
        if not parts and len(shown):
            first_tick = int(shown[0])
        frame_of_first[run[are_shown[run]]] = num_frames + places
        key_frame_of_first[run] = num_frames + np.searchsorted(shown, ticks[run])
        num_frames += len(shown)
        if len(shown):
            parts.append(shown - shown[0])
    steps = np.concatenate([np.diff(part) for part in parts]) * tick_seconds
    interval = float(np.median(steps)) if len(steps) else 1 / (rate or 25.0)
    if clock == "count" and num_frames < len(firsts):
        # Decoding times are missing or repeated as well: nothing but the frame rate is left.
        times, interval, first_tick, parts = (
            np.arange(len(firsts)) / (rate or 25.0),
            1 / (rate or 25.0),
            0,
            parts[:1],
        )
    else:
        times = _continued(parts, tick_seconds, interval)
    if clock == "count":
        frame_of_first = np.arange(len(firsts))
    return _Frames(
        times=times,
        frame_of_packet=frame_of_first[packet_of_first],
        key_packets=firsts[are_keys],
        key_frames=key_frame_of_first[are_keys],
        clock=clock,
        num_joins=len(parts) - 1,
        first_tick=first_tick,
        interval=interval,
    )


def _place_last_reference(ticks: NDArray[np.int64], decode_ticks: NDArray[np.int64]) -> None:
    """Correct the time of the last picture that others refer to before a join, in place.

    Where the file has no time for it, FFmpeg takes that at which the next such picture is decoded, which here
    is one of another clock. It is shown after all others of its part.
    """
    late = np.flatnonzero(ticks > decode_ticks)
    if len(late) and len(ticks) - late[-1] <= _MOST_BETWEEN_REFERENCES:
        ticks[late[-1]] = decode_ticks[-1] + int(np.median(np.diff(decode_ticks)))


def _continued(parts: list[NDArray[np.int64]], tick_seconds: float, interval: float) -> NDArray[np.float64]:
    """Seconds of frames whose ticks begin at 0 in each part: each part follows the one before it."""
    times, start = [], 0.0
    for part in parts:
        times.append(start + part * tick_seconds)
        start = float(times[-1][-1]) + interval
    return np.concatenate(times)


def _promised_and_present(
    container: InputContainer,
    stream: VideoStream,
    kind: str,
    packets: _Packets,
    first_seconds: float,
    end_seconds: float,
) -> tuple[float, float]:
    """How many seconds the header promises, and how many are there, counted from the same start; (0, ...)
    where it promises nothing."""
    if kind == "avi":
        # FFmpeg shortens the duration of a cut AVI file to what is there, and keeps the promised count. Empty
        # chunks, which repeat a frame, take a tick each; FFmpeg gives no packets of them.
        tick_seconds = float(stream.time_base or 0)
        return stream.frames * tick_seconds, (max(packets.decode_ticks) + 1) * tick_seconds
    if kind in TRANSPORT_CONTAINERS:
        return 0.0, end_seconds  # What FFmpeg calls their duration is the clock of the last packets.
    if stream.duration is not None and stream.time_base is not None and kind != "matroska":
        # Of fragments FFmpeg gives the time at which the last ends.
        start = first_seconds if kind == "mp4" and not stream.frames else 0.0
        return float(stream.duration * stream.time_base), end_seconds + start
    if "DURATION" in stream.metadata:
        promised = _clock_seconds(stream.metadata["DURATION"])
        return promised, end_seconds + float((stream.start_time or 0) * (stream.time_base or 0))
    if container.duration is not None:
        # Matroska's duration is, as most writers have it, the time at which it ends.
        start = 0.0 if kind == "matroska" else (container.start_time or 0) / av.time_base
        end_of_all = max(packets.end_of_all_seconds, first_seconds + end_seconds)
        return container.duration / av.time_base, end_of_all - start
    return 0.0, end_seconds


def player_zero_seconds(container: InputContainer, kind: str) -> float:
    """Where the clock of a player of the file is 0, on the file's own clock.

    Chromium, which plays MP4 and Matroska (WebM), keeps their own clock; ffmpeg, mpv and VLC count what else
    there is from where its earliest stream begins (docs/decisions/0013).
    """
    return 0.0 if kind in ("mp4", "matroska") else (container.start_time or 0) / av.time_base


def _clock_seconds(text: str) -> float:
    """Seconds of Matroska's `00:00:10.333000000`; 0 for anything else."""
    try:
        hours, minutes, seconds = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return 0.0
