"""Which moments of a video the network sees. Pure functions over times; nothing here opens a file.

The rule of this project, by time (one frame a second, at most F of them, long videos in equal segments):

    seconds        0    1    2    3    4 ...             59   60                  119  120
    segments      |------------- segment 0 ---------------|-------- segment 1 ---------|
    candidates     x    x    x    x    x ...             x    x                   x
    F = 4 of them  x                   x  ...            x    x  ...              x

A still picture is not sampled repeatedly. It gives at most F candidates of a segment, and a
segment in which no new picture starts repeats the one before, which then lasts until the next:

    pictures      a a a a b - - - - - - - - - - - - - - - - - - - c c c c      b stays, the clock jumps
    segments      |-------|-------|-------|-------|-------|-------|-------|
    kept          |---------------------------------------|---------------|

and the official one, by frame number with the truncated frame rate (29.97 counts as 29, so it drifts). For
constant whole frame rates and videos of one segment, both choose the same frames.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

Rule = Literal["time", "official"]
SliceMode = Literal["head", "tail", "uniform"]

TIME_TOLERANCE_SECONDS = 0.001
"""A frame that starts this little after a wanted time still counts as shown at it: Matroska keeps whole
milliseconds, so that a frame of 1.0 s may say 1.001 after the first frame's time was subtracted."""


@dataclass(frozen=True)
class Sampling:
    """How frames are chosen; part of an index's fingerprint.

    Attributes:
        num_frames: F, the most frames of one segment.
        frames_per_second: candidates per second, of which F are taken uniformly.
        max_segment_seconds: a longer video becomes equal segments of at most this length, but where a picture
            stays for longer; 0 keeps it whole.
        rule: `time`, or `official` (by frame number, whole videos only, as in the paper's benchmarks).

    Raises:
        ValueError: a value is out of its range.

    >>> [segment.times_seconds for segment in plan_segments(np.arange(8.0), 8.0, 1.0, Sampling(4))]
    [(0.0, 2.0, 4.0, 7.0)]
    """

    num_frames: int
    frames_per_second: float = 1.0
    max_segment_seconds: float = 60.0
    rule: Rule = "time"

    def __post_init__(self) -> None:
        if not isinstance(self.num_frames, int) or self.num_frames < 1:
            raise ValueError("num_frames is a whole number, at least 1")
        if not (math.isfinite(self.frames_per_second) and 0 < self.frames_per_second <= 1000):
            raise ValueError("frames_per_second is above 0 and at most 1000")
        if not (math.isfinite(self.max_segment_seconds) and self.max_segment_seconds >= 0):
            raise ValueError("max_segment_seconds is 0 or more")
        if 0 < self.max_segment_seconds < 1:
            raise ValueError("max_segment_seconds is 0 (never cut) or at least 1")
        if self.rule not in ("time", "official"):
            raise ValueError("rule is time or official")
        if self.rule == "official" and self.max_segment_seconds:
            raise ValueError("the official rule does not cut videos: it needs max_segment_seconds 0")
        if self.rule == "official" and self.frames_per_second != int(self.frames_per_second):
            raise ValueError("the official rule needs a whole number of frames_per_second")
        object.__setattr__(self, "frames_per_second", float(self.frames_per_second))
        object.__setattr__(self, "max_segment_seconds", float(self.max_segment_seconds))

    def to_json(self) -> str:
        """One line of JSON, the same for equal samplings."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The sampling that `to_json` wrote.

        Raises:
            ValueError: `text` is anything else.
        """
        values: Any = json.loads(text)
        names = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or not {"num_frames"} <= set(values) <= names:
            raise ValueError("not a sampling as to_json writes it")
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"not a sampling as to_json writes it: {error}") from None


@dataclass(frozen=True)
class PlannedSegment:
    """An interval of a video and the times, ascending, whose frames stand for it. All in seconds."""

    start_seconds: float
    end_seconds: float
    times_seconds: tuple[float, ...]


def plan_segments(
    frame_times: NDArray[np.float64], end_seconds: float, frame_rate: float, sampling: Sampling
) -> list[PlannedSegment]:
    """What to read from a video.

    Args:
        frame_times: float64 [N], N >= 1, when each frame starts, ascending, the first at 0.
        end_seconds: when the last frame ends.
        frame_rate: frames a second as the file says; only the official rule uses it.
        sampling: the rule, F, and where to cut.

    Raises:
        ValueError: the official rule has no answer (see `official_frame_positions`).
    """
    if sampling.rule == "official":
        rate = int(sampling.frames_per_second)
        positions = official_frame_positions(len(frame_times), frame_rate, rate)
        kept = slice_positions(len(positions), sampling.num_frames, "uniform")
        times = tuple(float(frame_times[positions[number]]) for number in kept)
        return [PlannedSegment(0.0, end_seconds, times)]
    planned: list[PlannedSegment] = []
    num_started = 0
    for start, end in segment_bounds(end_seconds, sampling.max_segment_seconds):
        before, num_started = num_started, int(np.searchsorted(frame_times, end - TIME_TOLERANCE_SECONDS))
        if planned and num_started == before:
            planned[-1] = replace(planned[-1], end_seconds=end)
        else:
            planned.append(PlannedSegment(start, end, tuple(sample_times(start, end, frame_times, sampling))))
    return planned


def segment_bounds(duration_seconds: float, max_segment_seconds: float) -> list[tuple[float, float]]:
    """(start, end) of equal segments of at most `max_segment_seconds` that tile the video; 0 gives one."""
    if max_segment_seconds == 0 or duration_seconds <= max_segment_seconds:
        return [(0.0, duration_seconds)]
    # A video that is longer by a rounding error is not cut in two.
    num_segments = max(1, math.ceil(duration_seconds / max_segment_seconds - 1e-6))
    bounds = [duration_seconds * number / num_segments for number in range(num_segments + 1)]
    return list(itertools.pairwise(bounds))


def sample_times(
    start_seconds: float, end_seconds: float, frame_times: NDArray[np.float64], sampling: Sampling
) -> list[float]:
    """The times of one segment, ascending, in seconds; at least one, the start.

    `frames_per_second` candidates from the start up to before the end, of each frame the first F, then F of
    them uniformly.

    Args:
        start_seconds: where the segment begins.
        end_seconds: where it ends.
        frame_times: float64 [N], N >= 1, when each frame of the video starts, ascending.
        sampling: the rate and F.

    >>> sample_times(0.0, 60.0, np.array([0.0, 1.0, 2.0]), Sampling(4))
    [0.0, 1.0, 3.0, 5.0]
    """
    # Counts in units of the sampling period; a candidate within the tolerance of the end is outside.
    length = (end_seconds - start_seconds - TIME_TOLERANCE_SECONDS) * sampling.frames_per_second
    times = start_seconds + np.arange(max(1, math.ceil(length))) / sampling.frames_per_second
    _, first_of_frame, frame_of_time = np.unique(
        frame_indices_at(frame_times, times), return_index=True, return_inverse=True
    )
    is_candidate = np.arange(len(times)) - first_of_frame[frame_of_time] < sampling.num_frames
    candidates = times[is_candidate].tolist()
    return [candidates[number] for number in slice_positions(len(candidates), sampling.num_frames, "uniform")]


def frame_indices_at(
    frame_times: NDArray[np.float64], times_seconds: Sequence[float] | NDArray[np.float64]
) -> NDArray[np.int64]:
    """Index of the frame shown at each time: the last that starts at or before it, the first where none does.

    Args:
        frame_times: float64 [N], N >= 1, ascending.
        times_seconds: T times, in any order.

    Returns:
        int64 [T].

    >>> frame_indices_at(np.array([0.0, 0.5, 1.0]), [0.0, 0.7, 99.0]).tolist()
    [0, 1, 2]
    """
    wanted = np.asarray(times_seconds, dtype=np.float64) + TIME_TOLERANCE_SECONDS
    return np.maximum(np.searchsorted(frame_times, wanted, side="right") - 1, 0)


def official_frame_positions(num_frames_in_file: int, frame_rate: float, rate: int = 1) -> list[int]:
    """Frame numbers that the official extractor reads: per second, `rate` of them, by the truncated rate.

    Source: github.com/xuguohai/X-CLIP, dataloaders/rawvideo_util.py. It reads seconds 0..ceil(count / fps)
    and stops at the first frame that is not there.

    Raises:
        ValueError: where the official code fails: int(frame_rate) is 0 or below `rate`.
    """
    whole_rate = int(frame_rate)
    if rate < 1 or whole_rate < rate:
        raise ValueError(f"the official rule cannot take {rate} frames a second from {frame_rate} a second")
    positions: list[int] = []
    for second in range(math.ceil(num_frames_in_file / whole_rate) + 1):
        for part in range(rate):
            position = second * whole_rate + part * (whole_rate // rate)
            if position >= num_frames_in_file:
                return positions
            positions.append(position)
    return positions


def slice_positions(num_available: int, num_frames: int, mode: SliceMode = "uniform") -> list[int]:
    """Which of `num_available` to keep so that at most `num_frames` remain.

    The official `slice_framepos` 0, 1, 2. `uniform` truncates: np.linspace(0, n - 1, F, dtype=int).

    >>> slice_positions(10, 4)
    [0, 3, 6, 9]
    """
    if num_available <= num_frames:
        return list(range(num_available))
    if mode == "head":
        return list(range(num_frames))
    if mode == "tail":
        return list(range(num_available - num_frames, num_available))
    return [int(position) for position in np.linspace(0, num_available - 1, num_frames, dtype=int)]
