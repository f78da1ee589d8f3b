"""Sampling: the official rule from its own outputs, ours by properties, and that both agree."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.media.sampling import (
    Sampling,
    frame_indices_at,
    official_frame_positions,
    plan_segments,
    sample_times,
    segment_bounds,
    slice_positions,
)

GOLDENS = json.loads((Path(__file__).parents[2] / "goldens" / "sampling.json").read_text())


def _name(golden: dict) -> str:
    return f"{golden['frame_count']} frames, {golden['fps']} fps, {golden['feature_framerate']} a second"


@pytest.mark.parametrize("golden", GOLDENS, ids=_name)
def test_the_official_rule_reads_the_frames_that_the_official_code_read(golden: dict) -> None:
    arguments = golden["frame_count"], golden["fps"], golden["feature_framerate"]
    if "error" in golden:
        with pytest.raises(ValueError, match="the official rule cannot take"):
            official_frame_positions(*arguments)
        return
    positions = official_frame_positions(*arguments)
    assert positions == golden["read_frames"]
    for name, expected in golden["sliced"].items():
        mode, num_frames = name.rsplit("_", 1)
        kept = slice_positions(len(positions), int(num_frames), mode)
        assert [positions[number] for number in kept] == expected


@given(num_frames=st.integers(1, 4000), frame_rate=st.integers(1, 120), kept=st.integers(1, 40))
def test_for_whole_frame_rates_the_rule_by_time_chooses_the_official_frames(
    num_frames: int, frame_rate: int, kept: int
) -> None:
    frame_times = np.arange(num_frames) / frame_rate
    end = num_frames / frame_rate
    by_time = plan_segments(frame_times, end, frame_rate, Sampling(kept, max_segment_seconds=0))
    official = plan_segments(
        frame_times, end, frame_rate, Sampling(kept, max_segment_seconds=0, rule="official")
    )
    assert len(by_time) == len(official) == 1
    np.testing.assert_array_equal(
        frame_indices_at(frame_times, by_time[0].times_seconds),
        frame_indices_at(frame_times, official[0].times_seconds),
    )


@given(
    duration=st.floats(0, 40_000),
    max_segment=st.one_of(st.just(0.0), st.floats(1, 600)),
    num_frames=st.integers(1, 32),
    rate=st.floats(0.1, 10),
)
def test_segments_tile_the_video_and_hold_their_times(
    duration: float, max_segment: float, num_frames: int, rate: float
) -> None:
    sampling = Sampling(num_frames, frames_per_second=rate, max_segment_seconds=max_segment)
    bounds = segment_bounds(duration, max_segment)
    assert bounds[0][0] == 0
    assert bounds[-1][1] == pytest.approx(duration)
    for (_, end), (next_start, _) in itertools.pairwise(bounds):
        assert end == next_start
    lengths = [end - start for start, end in bounds]
    assert max(lengths) == pytest.approx(min(lengths), abs=1e-6)
    if max_segment:
        assert max(lengths) <= max_segment * (1 + 1e-5) + 1e-6
    else:
        assert len(bounds) == 1
    for start, end in bounds[:3]:
        frame_times = np.arange(0, duration + 1, 0.25)
        times = sample_times(start, end, frame_times, sampling)
        assert 1 <= len(times) <= num_frames
        assert times[0] == start
        assert times == sorted(set(times))
        assert len(times) == 1 or times[-1] < end


@given(
    steps=st.lists(st.floats(0.002, 5), max_size=50),
    wanted=st.lists(st.floats(0, 300), min_size=1, max_size=20),
)
def test_the_frame_at_a_time_is_the_last_that_started(steps: list[float], wanted: list[float]) -> None:
    frame_times = np.concatenate([[0.0], np.cumsum(steps)])
    for time, index in zip(wanted, frame_indices_at(frame_times, wanted), strict=True):
        assert frame_times[index] <= time + 0.001
        assert index == len(frame_times) - 1 or frame_times[index + 1] > time


@given(
    available=st.integers(0, 5000),
    num_frames=st.integers(1, 64),
    mode=st.sampled_from(["head", "tail", "uniform"]),
)
def test_slices_are_ascending_distinct_and_as_many_as_asked(
    available: int, num_frames: int, mode: str
) -> None:
    kept = slice_positions(available, num_frames, mode)
    assert len(kept) == min(available, num_frames)
    assert kept == sorted(set(kept))
    assert all(0 <= position < available for position in kept)
    if mode == "uniform" and num_frames > 1 and available > 1:
        assert kept[0] == 0
        assert kept[-1] == available - 1


def test_a_half_hour_becomes_thirty_segments_of_twelve_frames() -> None:
    frame_times = np.arange(0, 1800 * 25) / 25
    planned = plan_segments(frame_times, 1800.0, 25.0, Sampling(12))
    assert len(planned) == 30
    assert planned[1].start_seconds == 60
    assert planned[1].times_seconds == (60, 65, 70, 76, 81, 86, 92, 97, 102, 108, 113, 119)


def test_a_video_as_long_as_a_segment_but_for_rounding_is_not_cut() -> None:
    assert len(segment_bounds(60.00000001, 60)) == 1
    assert len(segment_bounds(60.5, 60)) == 2


def test_a_frame_one_container_tick_late_still_counts() -> None:
    # 30 fps in whole milliseconds after a first frame at 33 ms that was really at 33.3 ms.
    assert frame_indices_at(np.array([0.0, 0.967, 1.0005]), [1.0]).tolist() == [2]


def test_a_sampling_survives_json() -> None:
    sampling = Sampling(12, frames_per_second=2, max_segment_seconds=0, rule="official")
    assert Sampling.from_json(sampling.to_json()) == sampling
    assert Sampling(12).to_json() == Sampling(12, 1, 60).to_json()


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"num_frames": 12, "other": 1}', '{"num_frames": "x"}', "nonsense"]
)
def test_other_json_is_no_sampling(text: str) -> None:
    with pytest.raises(ValueError):
        Sampling.from_json(text)


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_frames": 0},
        {"num_frames": 12, "frames_per_second": 0},
        {"num_frames": 12, "frames_per_second": math.inf},
        {"num_frames": 12, "max_segment_seconds": -1},
        {"num_frames": 12, "max_segment_seconds": 0.5},
        {"num_frames": 12, "rule": "other"},
        {"num_frames": 12, "rule": "official"},
        {"num_frames": 12, "rule": "official", "max_segment_seconds": 0, "frames_per_second": 1.5},
    ],
)
def test_a_sampling_out_of_range_is_refused(arguments: dict) -> None:
    with pytest.raises(ValueError):
        Sampling(**arguments)


@given(
    steps=st.lists(st.floats(0.01, 400), min_size=1, max_size=60),
    still_end=st.floats(0.1, 5000),
    num_frames=st.integers(1, 12),
)
def test_segments_tile_the_video_and_each_but_the_first_begins_a_picture(
    steps: list[float], still_end: float, num_frames: int
) -> None:
    frame_times = np.concatenate([[0.0], np.cumsum(steps)])
    end = float(frame_times[-1]) + still_end
    planned = plan_segments(frame_times, end, 25.0, Sampling(num_frames))
    assert (planned[0].start_seconds, planned[-1].end_seconds) == (0, pytest.approx(end))
    for one, following in itertools.pairwise(planned):
        assert one.end_seconds == following.start_seconds
        assert np.any(
            (frame_times > following.start_seconds - 0.01) & (frame_times < following.end_seconds + 0.01)
        )
    for segment in planned:
        assert segment.times_seconds[0] == segment.start_seconds
        assert len(segment.times_seconds) <= num_frames


def test_a_still_end_takes_no_samples_from_what_moves() -> None:
    slides = np.array([0.0, 1.0, 2.0])
    (planned,) = plan_segments(slides, 600.0, 25.0, Sampling(12))
    assert set(frame_indices_at(slides, planned.times_seconds).tolist()) == {0, 1, 2}
    assert (planned.start_seconds, planned.end_seconds) == (0, 600)


def test_a_picture_a_minute_gives_a_segment_for_each() -> None:
    planned = plan_segments(np.arange(20) * 60.0, 1200.0, 1 / 60, Sampling(12))
    assert [(segment.start_seconds, segment.end_seconds) for segment in planned] == [
        (60.0 * number, 60.0 * number + 60) for number in range(20)
    ]
    assert all(len(segment.times_seconds) == 12 for segment in planned)
