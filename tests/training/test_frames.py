"""Frames of clips: the official choice from its own outputs, intervals, orders, and what cannot be read."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from indexer.media.frame_reader import VideoFile
from indexer.media.timeline import Timeline
from model.preprocessing import Resizing
from tests.support.treacherous_reader import TreacherousReader
from tests.support.video_files import (
    numbered_picture,
    shown_number,
    write_coloured_video,
    write_numbered_video,
)
from training.data.clip_checks import leave_out, read_all, readable
from training.data.frames import FrameReader, FrameRecipe, frame_positions, official_seconds
from training.datasets.split import Clip, Split
from training.errors import ConfigError, DatasetError

GOLDENS = json.loads((Path(__file__).parents[1] / "goldens" / "sampling.json").read_text())
SHORT = [golden for golden in GOLDENS if 0 < golden["frame_count"] <= 360 and "error" not in golden]
WHOLE = Clip("a", Path("a.mp4"))


def _name(golden: dict) -> str:
    return f"{golden['frame_count']} frames, {golden['fps']} fps, {golden['feature_framerate']} a second"


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory):
    """Numbered videos by count and rate, each written once."""
    folder = tmp_path_factory.mktemp("videos")

    @cache
    def video(num_frames: int, rate: float) -> Path:
        path = folder / f"{num_frames}-{rate}.mp4"
        exact = Fraction(round(rate * 1001), 1001) if rate != int(rate) else Fraction(int(rate))
        return write_numbered_video(path, num_frames, exact)

    return video


def _all_frames(path: Path) -> list[NDArray[np.uint8]]:
    """Every frame, decoded plainly from start to end."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def _constant(num_frames: int, rate: float) -> Timeline:
    """A timeline of constant rate."""
    times = np.arange(num_frames) / rate
    ticks = np.arange(num_frames, dtype=np.int64)
    return Timeline(times, num_frames / rate, rate, ticks, ticks, ticks[:1], ticks[:1], "presentation")


@pytest.mark.parametrize("golden", SHORT, ids=_name)
def test_real_videos_give_the_frames_that_the_official_code_read(golden: dict, videos) -> None:
    path = videos(golden["frame_count"], golden["fps"])
    pictures = _all_frames(path)
    assert [shown_number(picture) for picture in pictures] == list(range(golden["frame_count"]))
    recipes = {
        f"{mode}_{count}": FrameRecipe(count, Resizing(32), golden["feature_framerate"], mode)
        for mode in ("head", "tail", "uniform")
        for count in (4, 12)
    }
    recipes["all"] = FrameRecipe(1000, Resizing(32), golden["feature_framerate"])
    expected = golden["sliced"] | {"all": golden["read_frames"]}
    assert set(expected) == set(recipes)
    for name, recipe in recipes.items():
        assert frame_positions(VideoFile(path).timeline, WHOLE, recipe) == expected[name], name
    frames = FrameReader(recipes["uniform_12"], backend="pyav").read(Clip("a", path))
    wanted = np.stack([Resizing(32)(pictures[number]) for number in expected["uniform_12"]])
    np.testing.assert_array_equal(frames, wanted)


@pytest.mark.parametrize("golden", [g for g in GOLDENS if g["frame_count"] > 360], ids=_name)
def test_long_timelines_give_the_frames_that_the_official_code_read(golden: dict) -> None:
    timeline = _constant(golden["frame_count"], golden["fps"])
    for name, expected in golden["sliced"].items():
        mode, count = name.rsplit("_", 1)
        recipe = FrameRecipe(int(count), Resizing(32), golden["feature_framerate"], mode)
        assert frame_positions(timeline, WHOLE, recipe) == expected


@pytest.mark.parametrize("golden", [g for g in GOLDENS if "error" in g], ids=_name)
def test_where_the_official_code_fails_frames_are_taken_by_time(golden: dict) -> None:
    timeline = _constant(golden["frame_count"], golden["fps"])
    official = FrameRecipe(1000, Resizing(32), golden["feature_framerate"])
    by_time = FrameRecipe(1000, Resizing(32), golden["feature_framerate"], rule="time")
    positions = frame_positions(timeline, WHOLE, official)
    assert positions == frame_positions(timeline, WHOLE, by_time)
    assert positions[0] == 0 and positions[-1] == golden["frame_count"] - 1


# (start, end), then the seconds that the official loaders read of a 10 s video.
STRETCHES = [
    ((None, None), list(range(10))),
    ((0, 31), list(range(10))),
    ((2, 5), [2, 3, 4, 5]),
    ((2.9, 5.9), [2, 3, 4, 5]),
    ((5, 2), [2, 3, 4, 5]),
    ((4, 4), [4, 5]),
    ((4.2, 4.8), [4, 5]),
    ((-3, 1), [0, 1]),
    ((8, 100), [8, 9]),
    ((7, None), [7, 8, 9]),
    ((None, 2), [0, 1, 2]),
    ((9.5, 9.9), [9]),
    ((10, 12), []),
]


@pytest.mark.parametrize(("interval", "seconds"), STRETCHES)
def test_official_intervals_are_whole_seconds_with_the_last_one_included(interval, seconds) -> None:
    clip = Clip("a", Path("a.mp4"), *interval)
    for rate in (1, 2):
        positions = frame_positions(_constant(300, 30.0), clip, FrameRecipe(100, Resizing(32), rate))
        assert positions == [second * 30 + part * (30 // rate) for second in seconds for part in range(rate)]


def test_the_rule_by_time_stops_before_the_end_of_an_interval() -> None:
    timeline = _constant(300, 30.0)

    def positions(start: float | None, end: float | None, rate: float = 1, count: int = 100) -> list[int]:
        recipe = FrameRecipe(count, Resizing(32), rate, rule="time")
        return frame_positions(timeline, Clip("a", Path("a.mp4"), start, end), recipe)

    assert positions(2, 5) == [60, 90, 120]
    assert positions(5, 2) == [60, 90, 120]
    assert positions(2.5, 5) == [75, 105, 135]
    assert positions(8, 100) == [240, 270]
    assert positions(4, 4) == [120]
    assert positions(-1, 2, rate=2) == [0, 15, 30, 45]
    assert positions(0, 8, rate=0.5) == [0, 60, 120, 180]
    assert positions(None, None, count=4) == [0, 90, 180, 270]
    assert positions(10, 12) == []


@settings(deadline=None)
@given(start=st.floats(-5, 50), end=st.floats(-5, 50))
def test_official_seconds_are_never_empty(start: float, end: float) -> None:
    first, last = official_seconds(start, end)
    assert last is not None
    assert 0 <= first < last


def test_an_interval_that_is_no_number_is_refused() -> None:
    with pytest.raises(DatasetError, match="'a' starts or ends at nan seconds"):
        frame_positions(
            _constant(10, 5.0), Clip("a", Path("a"), float("nan"), 3), FrameRecipe(4, Resizing(32))
        )


def test_an_interval_after_the_end_of_the_video_is_named(videos) -> None:
    clip = Clip("late", videos(31, 30.0), 5, 9)
    for rule in ("official", "time"):
        with pytest.raises(DatasetError, match=r"'late' has no frames: it starts at 5 s.*ends at 1\.0 s"):
            FrameReader(FrameRecipe(4, Resizing(32), rule=rule)).read(clip)


def test_orders_change_the_order_alone(videos) -> None:
    clip = Clip("a", videos(300, 30.0))
    read = {
        order: FrameReader(FrameRecipe(10, Resizing(32), order=order), seed=3).read(clip)
        for order in ("forward", "reversed", "shuffled")
    }
    np.testing.assert_array_equal(read["reversed"], read["forward"][::-1])
    assert not np.array_equal(read["shuffled"], read["forward"])
    as_rows = {order: sorted(frame.tobytes() for frame in frames) for order, frames in read.items()}
    assert as_rows["shuffled"] == as_rows["forward"]


def test_the_shuffled_order_is_decided_by_seed_epoch_and_clip(videos) -> None:
    path = videos(300, 30.0)

    def read(seed: int, epoch: int, clip_id: str) -> bytes:
        reader = FrameReader(FrameRecipe(10, Resizing(32), order="shuffled"), seed=seed)
        return reader.read(Clip(clip_id, path), epoch).tobytes()

    assert read(0, 0, "a") == read(0, 0, "a")
    assert len({read(0, 0, "a"), read(1, 0, "a"), read(0, 1, "a"), read(0, 0, "b")}) == 4


def test_pictures_are_cut_as_for_the_index(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", 3, rate=1)
    frames = FrameReader(FrameRecipe(4, Resizing(16))).read(Clip("a", path))
    assert (frames.shape, frames.dtype) == ((3, 16, 16, 3), np.uint8)
    expected = Resizing(16)(numbered_picture(2)).astype(int)
    assert np.abs(frames[2] - expected).mean() < 8  # of a lossy codec


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"not a video", "not a video"), (b"", "the file is empty"), (None, "cannot be read")],
)
@pytest.mark.parametrize("with_cache", [False, True])
def test_an_unreadable_file_is_an_error_that_names_clip_and_file(
    tmp_path: Path, content: bytes | None, reason: str, with_cache: bool
) -> None:
    path = tmp_path / "broken.mp4"
    if content is not None:
        path.write_bytes(content)
    reader = FrameReader(FrameRecipe(4, Resizing(32)), tmp_path / "cache" if with_cache else None)
    with pytest.raises(
        DatasetError, match=f"clip 'b7' cannot be read.*{reason}.*broken.mp4|b7.*No such file"
    ):
        reader.read(Clip("b7", path))


def test_a_truncated_video_gives_what_is_there_and_says_so(videos, tmp_path: Path, caplog) -> None:
    cut = tmp_path / "cut.mkv"
    write_numbered_video(cut, 300)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    frames = FrameReader(FrameRecipe(12, Resizing(32))).read(Clip("cut", cut))
    assert 3 <= len(frames) <= 6
    assert "clip 'cut' is truncated" in caplog.text
    FrameReader(FrameRecipe(12, Resizing(32))).read(Clip("whole", videos(300, 30.0)))
    assert "'whole'" not in caplog.text


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_frames": 0},
        {"resizing": Resizing(0)},
        {"frames_per_second": 0},
        {"frames_per_second": float("nan")},
        {"frames_per_second": 1.5},
        {"slice_mode": "middle"},
        {"order": "random"},
        {"rule": "cv2"},
    ],
)
def test_a_recipe_out_of_range_is_refused(arguments: dict) -> None:
    with pytest.raises(ConfigError):
        FrameRecipe(**({"num_frames": 4, "resizing": Resizing(32)} | arguments))


def test_half_frames_a_second_are_fine_by_time() -> None:
    assert FrameRecipe(4, Resizing(32), 0.5, rule="time").frames_per_second == 0.5


def test_a_reader_is_light_and_imports_no_network() -> None:
    reader = FrameReader(FrameRecipe(12, Resizing(224)), Path("cache"))
    assert len(pickle.dumps(reader)) < 2000
    code = "import sys, training.data.frames, training.data.clip_checks; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def _split(clips: list[Clip]) -> Split:
    texts = [f"{clip.id} {number}" for clip in clips for number in range(2)]
    return Split(
        "captions",
        "train",
        tuple(clips),
        tuple(texts),
        tuple(index for index in range(len(clips)) for _ in range(2)),
        missing=("gone",),
    )


@pytest.fixture
def mixed(tmp_path: Path) -> Split:
    clips = [
        Clip(f"v{number}", write_coloured_video(tmp_path / f"{number}.mp4", (40 * number, 9, 9)))
        for number in range(5)
    ]
    clips[1].path.write_text("nonsense")
    clips[4].path.unlink()
    clips[3] = Clip("v3", clips[3].path, 7, 9)
    return _split(clips)


def test_all_unreadable_clips_are_listed_with_their_reasons(mixed: Split) -> None:
    counted: list[int] = []
    with pytest.raises(DatasetError) as caught:
        readable(
            mixed, FrameReader(FrameRecipe(4, Resizing(32))), num_processes=2, on_progress=counted.append
        )
    lines = str(caught.value).splitlines()
    assert lines[0] == "3 of 5 clips of captions train cannot be read:"
    assert [line.split("'")[1] for line in lines[1:]] == ["v1", "v3", "v4"]
    assert "not a video" in lines[1] and "it starts at 7 s" in lines[2] and "No such file" in lines[3]
    assert sum(counted) == 5


def test_by_choice_unreadable_clips_are_left_out_with_a_counted_warning(mixed: Split, tmp_path: Path) -> None:
    reader = FrameReader(FrameRecipe(4, Resizing(32)), tmp_path / "cache")
    with pytest.warns(UserWarning, match=r"(?s)3 of 5 clips.*v1.*v3.*v4.*left out"):
        split = readable(mixed, reader, missing="warn")
    assert [clip.id for clip in split.clips] == ["v0", "v2"]
    assert split.texts == ("v0 0", "v0 1", "v2 0", "v2 1")
    assert split.clip_of_text == (0, 0, 1, 1)
    assert split.missing == ("gone", "v1", "v3", "v4")
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2


def test_leaving_out_all_clips_is_an_error(mixed: Split) -> None:
    with pytest.raises(DatasetError, match="no clip of captions train remains: all 5"):
        leave_out(mixed, {clip.id for clip in mixed.clips})


def test_a_decoder_that_crashes_or_hangs_costs_its_own_clip_alone(tmp_path: Path) -> None:
    path = write_coloured_video(tmp_path / "a.mp4", (1, 2, 3))
    clips = [Clip(name, path) for name in ("a", "crash", "b", "hang", "c")]
    ended = list(read_all(clips, TreacherousReader(FrameRecipe(4, Resizing(32))), 2, 1.5))
    assert {clip.id for clip, _ in ended} == {clip.id for clip in clips} and len(ended) == len(clips)
    failures = {clip.id: reason for clip, reason in ended if reason is not None}
    assert set(failures) == {"crash", "hang"}
    assert "clip 'crash' cannot be read: the decoding process ended with exit code -9" in failures["crash"]
    assert "clip 'hang' cannot be read: it takes longer than 2 s" in failures["hang"]


@pytest.mark.slow
def test_of_real_broken_files_those_to_reject_are_listed_and_the_others_read(clips_directory: Path) -> None:
    notes = json.loads((clips_directory / "broken" / "notes.json").read_text())
    clips = [Clip(name, clips_directory / "broken" / name) for name in notes]
    reader = FrameReader(FrameRecipe(12, Resizing(64)))
    ended = read_all(clips, reader, num_processes=2, timeout_seconds=60)
    failures = {clip.id: reason for clip, reason in ended if reason is not None}
    either = ("reject or", "reject, or")
    rejected = {
        name
        for name, note in notes.items()
        if note["expected"].startswith("reject") and not note["expected"].startswith(either)
    }
    fine = {"segment0.ts", "one_frame.mp4", "no_duration.webm"}
    assert len(rejected) > 10
    assert rejected <= set(failures)
    assert not fine & set(failures)
    assert all(name in reason for name, reason in failures.items())
