"""When each frame of a video is shown, read from its packets without decoding them.

Containers often lack a frame count or a duration, or lie about them. The packets do not: reading through them
costs microseconds each, gives both readers the same clock, says where decoding may start (key packets) and
whether the file ends before what its header promises.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard
from av.video.stream import VideoStream
from numpy.typing import NDArray

from indexer.errors import MediaLimitError, TruncatedMediaError
from indexer.media.probing import MediaLimits, check_duration, demux_all

Clock = Literal["presentation", "count"]

_MIN_FRAME_SECONDS = 0.001
_MISSING_SHARE = 0.05
_MISSING_SECONDS = 0.25
"""A file whose packets end earlier than promised by more than both counts as truncated; less is rounding, or
sound that is a little longer."""


@dataclass(frozen=True, eq=False)
class Timeline:
    """The frames of one video stream.

    Attributes:
        times: float64 [N], N >= 1, when each frame starts, seconds after the first, ascending.
        ticks: int64 [N], the same in the stream's time base and not shifted.
        key_ticks: int64 [K], ascending: frames before which decoding may start.
        end_seconds: when the last frame ends.
        frame_rate: frames a second, on average.
        clock: `presentation` where packets carry presentation times. `count` where they do not (AVI) and the
            n-th decoded frame is the n-th of the timeline.
        fraction_present: of what the header promises, 0 to 1; 1 where it promises nothing. Where the packets
            end in damage and the missing part has no known size, as if it were one packet.
        num_hidden: packets that the container says are not to be shown (cut away by an edit list).
    """

    times: NDArray[np.float64]
    ticks: NDArray[np.int64]
    key_ticks: NDArray[np.int64]
    end_seconds: float
    frame_rate: float
    clock: Clock
    fraction_present: float
    num_hidden: int

    def __len__(self) -> int:
        return len(self.times)


def read_timeline(
    container: InputContainer,
    stream: VideoStream,
    kind: str,
    limits: MediaLimits,
    on_packet: Callable[[Packet[Any]], None] = lambda packet: None,
) -> Timeline:
    """Read all packets and find out when each frame is shown.

    Args:
        container: just opened.
        stream: its video.
        kind: the container, a key of `indexer.media.probing.DEMUXERS`.
        limits: what is refused.
        on_packet: called for each packet of the video stream.

    Raises:
        TruncatedMediaError: there is not one frame.
        MediaLimitError: there are too many, or they last too long.
    """
    packets = _read_packets(container, stream, limits, on_packet)
    if not packets.decode_ticks:
        raise TruncatedMediaError("the file ends before its first frame")
    tick_seconds = float(stream.time_base or 0) or 1 / 25
    rate = float(stream.guessed_rate or stream.average_rate or 0)
    clock: Clock = "count" if kind == "avi" or packets.num_without_time else "presentation"
    if clock == "presentation":
        ticks = np.unique(np.array(packets.shown_ticks or packets.hidden_ticks, dtype=np.int64))
        keys = np.unique(np.array(packets.key_ticks, dtype=np.int64))
    else:
        ticks = np.unique(np.array(packets.decode_ticks, dtype=np.int64))
        keys = ticks[:1]
    times = (ticks - ticks[0]) * tick_seconds
    if clock == "count" and len(ticks) < packets.num_packets:
        # Decoding times are missing or repeated as well: nothing but the frame rate is left.
        times = np.arange(packets.num_packets) / (rate or 25.0)
        ticks = np.arange(packets.num_packets, dtype=np.int64)
        keys = ticks[:1]
    gap = float(np.median(np.diff(times))) if len(times) > 1 else 1 / (rate or 25.0)
    last = packets.last_duration * tick_seconds or gap
    # Rounded to the microsecond, so that eight seconds do not become 7.999999999999999.
    end_seconds = round(float(times[-1]) + max(last, _MIN_FRAME_SECONDS), 6)
    check_duration(end_seconds, limits)
    return Timeline(
        times=times,
        ticks=ticks,
        key_ticks=keys,
        end_seconds=end_seconds,
        frame_rate=rate or len(times) / end_seconds,
        clock=clock,
        fraction_present=_fraction_present(container, stream, kind, packets, end_seconds),
        num_hidden=len(packets.hidden_ticks),
    )


class _Packets:
    """What is kept of the packets of one file. Ticks are in the video stream's time base."""

    def __init__(self) -> None:
        # A film has hundreds of thousands of packets: lists would take five times the memory of arrays.
        self.shown_ticks = array("q")
        self.hidden_ticks = array("q")
        self.key_ticks = array("q")
        self.decode_ticks = array("q")
        self.num_packets = 0
        self.num_of_all = 0  # of sound and the like too
        self.ends_in_damage = False
        self.num_slots = 0  # packets and empty ones, which repeat a frame (AVI)
        self.num_without_time = 0
        self.last_duration = 0
        self.last_shown: int | None = None
        self.end_of_all_seconds = 0.0

    def add(self, packet: Packet[Any]) -> None:
        self.num_slots += 1
        if not packet.size:
            return
        self.num_packets += 1
        self.ends_in_damage = packet.is_corrupt
        tick = packet.pts
        if packet.dts is not None or tick is not None:
            self.decode_ticks.append(packet.dts if packet.dts is not None else tick or 0)
        if tick is None:
            self.num_without_time += 1
            return
        if packet.is_discard:
            self.hidden_ticks.append(tick)
        else:
            self.shown_ticks.append(tick)
        if packet.is_keyframe:
            self.key_ticks.append(tick)
        if self.last_shown is None or tick >= self.last_shown:
            self.last_shown, self.last_duration = tick, packet.duration or 0


def _read_packets(
    container: InputContainer,
    stream: VideoStream,
    limits: MediaLimits,
    on_packet: Callable[[Packet[Any]], None],
) -> _Packets:
    packets = _Packets()
    promised_by_stream = stream.duration is not None or "DURATION" in stream.metadata
    for other in container.streams:
        # Sound matters only where the header promises a length of the whole file: sound may be what fills it.
        if other.index != stream.index and (promised_by_stream or other.type != "audio"):
            other.discard = Discard.all
    try:
        for packet in demux_all(container):
            packets.num_of_all += 1
            if packets.num_of_all > limits.max_packets:
                raise MediaLimitError(f"more than {limits.max_packets} packets")
            if packet.dts is None and packet.pts is None and not packet.size:
                continue  # The demuxer's end-of-stream marker, not a packet of the file.
            if packet.time_base and (packet.pts is not None or packet.dts is not None):
                shown = packet.pts if packet.pts is not None else packet.dts or 0
                end = float((shown + (packet.duration or 0)) * packet.time_base)
                packets.end_of_all_seconds = max(packets.end_of_all_seconds, end)
            if packet.stream_index != stream.index:
                continue
            packets.add(packet)
            if packets.num_packets > limits.max_frames:
                raise MediaLimitError(f"more than {limits.max_frames} frames")
            on_packet(packet)
    except MemoryError:
        raise  # To stop here would make the video shorter.
    except av.error.FFmpegError:
        packets.ends_in_damage = True  # What came before it counts.
    return packets


def _fraction_present(
    container: InputContainer, stream: VideoStream, kind: str, packets: _Packets, end_seconds: float
) -> float:
    promised, present, tolerated = 0.0, end_seconds, _MISSING_SECONDS
    if kind == "avi":
        # FFmpeg shortens the duration of a cut AVI file to what is there, and keeps the promised count.
        promised, present, tolerated = float(stream.frames), float(packets.num_slots), 0.0
    elif stream.duration is not None and stream.time_base is not None:
        promised = float(stream.duration * stream.time_base)
    elif "DURATION" in stream.metadata:
        promised = _clock_seconds(stream.metadata["DURATION"])
        present += float((stream.start_time or 0) * (stream.time_base or 0))
    elif container.duration is not None:
        promised = container.duration / av.time_base
        present = packets.end_of_all_seconds
        if kind != "matroska":  # Its duration is, as most writers have it, the time at which it ends.
            present -= (container.start_time or 0) / av.time_base
    if promised - present > max(tolerated, _MISSING_SHARE * promised):
        return max(0.0, present / promised)
    return packets.num_packets / (packets.num_packets + 1) if packets.ends_in_damage else 1.0


def _clock_seconds(text: str) -> float:
    """Seconds of Matroska's `00:00:10.333000000`; 0 for anything else."""
    try:
        hours, minutes, seconds = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return 0.0
