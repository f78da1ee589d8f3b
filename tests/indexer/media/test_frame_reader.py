"""The frame at a time is the right one, by both readers, in every format that we can write here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from indexer.errors import MediaError, MediaLimitError
from indexer.media.frame_reader import VideoFile, read_frames
from indexer.media.probing import MediaLimits
from indexer.media.sampling import Sampling, plan_segments
from indexer.media.view import View
from tests.support.video_files import numbered_picture, shown_number, write_numbered_video, write_pictures

decord = pytest.importorskip("decord", reason="decord has no wheel for this platform")

QUICK_VPX = {"deadline": "realtime", "cpu-used": "8"}
FORMATS: list[tuple[str, str, dict[str, str], bool]] = [
    # ending, encoder, options, whether decord is let near it
    ("mp4", "libx264", {}, True),
    ("mp4", "libx264", {"x264-params": "open-gop=1:bframes=3:b-pyramid=normal:scenecut=0"}, False),
    ("mp4", "libx264", {"x264-params": "interlaced=1"}, False),
    ("mp4", "libx264", {"x264-params": "intra-refresh=1"}, False),
    ("mov", "libx264", {"x264-params": "bframes=0"}, True),
    ("mkv", "libx264", {}, True),
    ("mkv", "libx265", {"x265-params": "log-level=none"}, False),
    ("mp4", "libx265", {"x265-params": "log-level=none:temporal-layers=3:bframes=4"}, False),
    ("mkv", "libx265", {"x265-params": "log-level=none:open-gop=1:bframes=4:keyint=20"}, False),
    ("mp4", "mpeg4", {"bf": "2"}, True),
    ("webm", "libvpx-vp9", QUICK_VPX, True),
    ("webm", "libvpx", {**QUICK_VPX, "auto-alt-ref": "1", "lag-in-frames": "16"}, False),
    ("mp4", "libsvtav1", {"preset": "8", "crf": "5"}, False),
    ("avi", "mpeg4", {"bf": "2"}, False),
    ("avi", "libx264", {}, False),
    ("ts", "libx264", {}, False),
    ("ts", "mpeg2video", {"bf": "2"}, False),
    ("mpg", "mpeg2video", {"bf": "2"}, False),
    ("flv", "libx264", {}, False),
    ("wmv", "wmv2", {}, False),
]
WANTED = [0.0, 0.04, 0.5, 1.0, 1.4, 2.0, 2.9, 2.99, 50.0]
SHOWN = [0, 1, 15, 30, 42, 60, 87, 89, 89]


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("numbered")

    def make(ending: str, codec: str, options: dict[str, str]) -> Path:
        path = folder / f"{codec}-{abs(hash(str(options)))}.{ending}"
        if not path.exists():
            write_numbered_video(path, 90, codec=codec, options=options)
        return path

    return make


@pytest.mark.parametrize(
    ("ending", "codec", "options", "for_decord"), FORMATS, ids=lambda value: str(value)[:40]
)
def test_the_frame_at_a_time_is_the_last_that_started(
    numbered: Any, ending: str, codec: str, options: dict[str, str], for_decord: bool
) -> None:
    file = VideoFile(numbered(ending, codec, options))
    assert file.info.num_frames == 90
    assert file.info.duration_seconds == pytest.approx(3, abs=0.002)
    assert file.info.frame_rate == pytest.approx(30, rel=0.01)
    assert (file.open_decord() is not None) == for_decord
    for backend in ("pyav", "decord", "auto"):
        found = list(file.frames_at(WANTED, backend))
        assert [shown_number(frame.rgb) for frame in found] == SHOWN, backend
        np.testing.assert_allclose([frame.time_seconds for frame in found], np.array(SHOWN) / 30, atol=0.0011)
        assert all(frame.exact for frame in found)
        every = [shown_number(frame.rgb) for frame in file.frames_at(list(file.timeline.times), backend)]
        assert every == list(range(90)), backend


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_frames_of_variable_rate_are_found_by_their_times(tmp_path: Path, backend: Any) -> None:
    times = [0, 20, 500, 1200, 1210, 4000, 4999, 9000]
    path = write_numbered_video(tmp_path / "a.mp4", len(times), times_milliseconds=times)
    wanted = [0, 0.018, 0.02, 0.9, 1.205, 3.9, 4.0, 4.5, 5, 8.9, 9]
    frames, found = read_frames(path, wanted, backend)
    assert [shown_number(frame) for frame in frames] == [0, 0, 1, 2, 3, 4, 5, 5, 6, 6, 7]
    assert found == pytest.approx([0, 0, 0.02, 0.5, 1.2, 1.21, 4, 4, 4.999, 4.999, 9], abs=0.001)


@pytest.mark.parametrize("backend", ["pyav", "decord"])
@pytest.mark.parametrize("ending", ["mkv", "ts", "mp4"])
def test_times_count_from_the_first_frame(tmp_path: Path, ending: str, backend: Any) -> None:
    times = [7000 + 40 * number for number in range(60)]
    path = write_numbered_video(tmp_path / f"a.{ending}", 60, times_milliseconds=times)
    frames, found = read_frames(path, [0, 1, 2], backend)
    assert [shown_number(frame) for frame in frames] == [0, 25, 50]
    assert found == pytest.approx([0, 1, 2], abs=0.001)


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts", "avi"])
def test_a_few_frames_far_into_a_long_file_are_right(tmp_path: Path, ending: str) -> None:
    codec = "mpeg4" if ending == "avi" else "libx264"
    path = write_numbered_video(tmp_path / f"a.{ending}", 1000, rate=10, codec=codec, keyframe_interval=30)
    for backend in ("pyav", "decord"):
        frames, _ = read_frames(path, [61.3, 75, 99.9], backend)
        assert [shown_number(frame) for frame in frames] == [613, 750, 999]


def test_groups_of_pictures_without_a_wanted_frame_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from indexer.media import pyav_reader

    path = write_numbered_video(
        tmp_path / "a.mp4", 600, rate=10, keyframe_interval=20, options={"x264-params": "scenecut=0"}
    )
    decoded = []
    plain = pyav_reader._decode
    monkeypatch.setattr(pyav_reader, "_decode", lambda packet: decoded.append(packet.pts) or plain(packet))
    frames, _ = read_frames(path, [0, 20, 40])
    assert [shown_number(frame) for frame in frames] == [0, 200, 400]
    assert len(decoded) < 100  # of 600


@pytest.mark.parametrize("backend", ["pyav", "decord", "auto"])
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_frames_of_hevc_with_open_groups_of_pictures_are_right(
    tmp_path: Path, ending: str, backend: Any
) -> None:
    options = {"x265-params": "log-level=none:open-gop=1:bframes=4:keyint=20"}  # open groups are its default
    path = write_numbered_video(tmp_path / f"a.{ending}", 90, codec="libx265", options=options)
    frames, _ = read_frames(path, [0, 1, 2], backend)  # decord answered the last with frame 63, or 43.
    assert [shown_number(frame) for frame in frames] == [0, 30, 60]


@pytest.mark.parametrize(
    ("ending", "codec", "options", "are_left_out"),
    [
        ("mp4", "libx264", {"x264-params": "bframes=3"}, True),
        ("mp4", "libx265", {"x265-params": "log-level=none:bframes=3"}, True),
        ("ts", "libx265", {"x265-params": "log-level=none:bframes=3"}, True),
        # What is no reference in its own temporal layer may be one for a higher layer.
        ("mp4", "libx265", {"x265-params": "log-level=none:bframes=3:temporal-layers=3"}, False),
        ("ts", "libx265", {"x265-params": "log-level=none:bframes=3:temporal-layers=3"}, False),
        ("webm", "libvpx-vp9", QUICK_VPX, False),
    ],
)
def test_frames_that_no_other_refers_to_are_not_decoded_where_packets_say_which(
    numbered: Any,
    monkeypatch: pytest.MonkeyPatch,
    ending: str,
    codec: str,
    options: dict[str, str],
    are_left_out: bool,
) -> None:
    from indexer.media import pyav_reader

    num_decoded = 0
    plain = pyav_reader._decode

    def count(packet: Any) -> Any:
        nonlocal num_decoded
        frames = plain(packet)
        num_decoded += len(frames)
        return frames

    monkeypatch.setattr(pyav_reader, "_decode", count)
    times = [number / 30 for number in range(0, 90, 11)]
    found = VideoFile(numbered(ending, codec, options)).frames_at(times)
    assert [shown_number(frame.rgb) for frame in found] == list(range(0, 90, 11))
    assert (num_decoded < 70) == are_left_out


@pytest.mark.parametrize("backend", ["pyav", "decord"])
@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_turned_video_comes_out_upright(tmp_path: Path, degrees: int, backend: Any) -> None:
    lying = [np.ascontiguousarray(np.rot90(numbered_picture(n), degrees // 90)) for n in range(4)]
    path = write_pictures(tmp_path / "a.mp4", lying, 4, rotation_degrees=degrees)
    info = VideoFile(path).info
    assert (info.width, info.height, info.rotation_degrees) == (128, 32, degrees)
    frames, _ = read_frames(path, [0, 0.25, 0.5, 0.75], backend)
    assert [shown_number(frame) for frame in frames] == [0, 1, 2, 3]


def test_times_may_repeat_and_come_in_any_order(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", 60)
    frames, times = read_frames(path, [1, 0, 1.99, 1, 0.01])
    assert [shown_number(frame) for frame in frames] == [30, 0, 59, 30, 0]
    assert times == pytest.approx([1, 0, 59 / 30, 1, 0])
    assert read_frames(path, []) == ([], [])


def test_damage_leaves_an_answer_for_every_time_and_says_so(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", 120, keyframe_interval=30)
    with av.open(str(path)) as container:
        key = [packet for packet in container.demux(video=0) if packet.is_keyframe][2]
        start, size = key.pos, key.size
    content = bytearray(path.read_bytes())
    content[start : start + size] = bytes(size)
    path.write_bytes(content)
    for backend in ("pyav", "decord"):
        found = list(VideoFile(path).frames_at([0, 1, 2, 3], backend))
        assert [frame.exact for frame in found] == [True, True, False, True]
        assert shown_number(found[1].rgb) == 30
        assert shown_number(found[3].rgb) == 90


def test_a_stream_that_grows_beyond_the_limit_is_not_decoded_there(tmp_path: Path) -> None:
    small = write_pictures(tmp_path / "a.ts", [np.zeros((64, 64, 3), np.uint8)] * 10, 10)
    large = write_pictures(tmp_path / "b.ts", [np.zeros((1024, 1024, 3), np.uint8)] * 10, 10)
    joined = tmp_path / "c.ts"
    joined.write_bytes(small.read_bytes() + large.read_bytes())
    limits = MediaLimits(max_pixels=100 * 100)
    try:
        frames, _ = read_frames(joined, [0, 0.5, 1.2, 1.8], limits=limits)
    except MediaLimitError:
        return
    assert {frame.shape for frame in frames} == {(64, 64, 3)}


def test_a_file_of_which_nothing_can_be_decoded_is_refused(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", 5, keyframe_interval=1)
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        spans = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for position, size in spans:
        content[position : position + size] = b"\xff" * size
    path.write_bytes(content)
    with pytest.raises(MediaError, match="no frame could be decoded"):
        read_frames(path, [0])


# Real clips

MEASURED_DIFFERENCE = 0.0
"""Mean absolute difference of the readers' pixels, measured with decord 0.6.0 and PyAV 18.1."""
ALLOWED_DIFFERENCE = 1.0
"""Colour conversion may be rounded differently on other processors."""


def _clips(clips_directory: Path) -> list[dict[str, Any]]:
    clips: list[dict[str, Any]] = json.loads((clips_directory / "captions.json").read_text())
    return clips


def test_both_readers_give_the_same_frames_of_real_clips(clips_directory: Path) -> None:
    num_by_decord = 0
    for clip in _clips(clips_directory):
        file = VideoFile(clips_directory / clip["file"])
        times = plan_segments(
            file.timeline.times, file.info.duration_seconds, file.info.frame_rate, Sampling(4)
        )[0].times_seconds
        num_by_decord += file.open_decord() is not None
        for ours, theirs in zip(file.frames_at(times, "pyav"), file.frames_at(times, "decord"), strict=True):
            assert ours.time_seconds == pytest.approx(theirs.time_seconds, abs=0.001), clip["file"]
            difference = np.abs(ours.rgb.astype(np.int16) - theirs.rgb).mean()
            assert difference <= ALLOWED_DIFFERENCE, clip["file"]
    assert num_by_decord >= 9


def test_real_clips_are_what_their_notes_say(clips_directory: Path) -> None:
    for clip in _clips(clips_directory):
        info = VideoFile(clips_directory / clip["file"]).info
        assert info.codec == clip["video_codec"], clip["file"]
        assert info.num_frames == clip["frames"], clip["file"]
        # The one with pixels that are not square, 1024:765.
        width = 455 if clip["file"].endswith("pool_cleaning.mp4") else clip["width"]
        size = (width, clip["height"])
        assert (info.width, info.height) == (size[::-1] if clip["rotation"] % 180 else size), clip["file"]
        assert info.rotation_degrees == -clip["rotation"] % 360, clip["file"]
        assert info.duration_seconds == pytest.approx(clip["seconds"], rel=0.05, abs=0.05), clip["file"]
        assert info.has_audio == clip["has_audio"], clip["file"]


@pytest.mark.slow
def test_leaving_out_frames_changes_no_pixel_of_real_clips(clips_directory: Path) -> None:
    for clip in _clips(clips_directory):
        file = VideoFile(clips_directory / clip["file"])
        times = list(file.timeline.times[:: max(1, len(file.timeline) // 9)])
        found = {frame.index: frame.rgb for frame in file.frames_at(times)}
        with av.open(str(file.path)) as container:
            view = View(container.streams.video[0])
            for number, frame in enumerate(container.decode(video=0)):
                if number in found:
                    assert np.array_equal(found[number], view.show(frame)), (clip["file"], number)
