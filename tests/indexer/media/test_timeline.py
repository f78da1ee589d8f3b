"""All pictures once and in order, each at its time, whatever the clock and the packets of a file say."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer.errors import MediaError
from indexer.media.frame_reader import VideoFile, read_frames
from indexer.media.probing import file_extension
from indexer.media.sampling import Sampling, plan_segments
from tests.conftest import REPOSITORY
from tests.support.field_coding import copy_streams, write_field_coded_video
from tests.support.timed_videos import join_files, shift_fragments, write_timed_video
from tests.support.video_files import shown_number, write_numbered_video

FRAME = 40
"""Milliseconds, at 25 frames a second."""


def _every(num_frames: int, start: int = 0) -> list[int]:
    return [start + FRAME * number for number in range(num_frames)]


def _shown(file: VideoFile, backend: Any = "pyav") -> list[int]:
    found = list(file.frames_at(list(file.timeline.times), backend))
    assert all(frame.exact for frame in found)
    return [shown_number(frame.rgb) for frame in found]


def _assert_whole(file: VideoFile, num_frames: int, seconds: float) -> None:
    for backend in ("pyav", "decord", "auto"):
        assert _shown(file, backend) == list(range(num_frames))
    assert file.timeline.fraction_present == 1
    assert file.info.num_frames == num_frames
    assert file.info.duration_seconds == pytest.approx(seconds, abs=0.002)


# Clocks that are reset

CLOCKS = {
    "starts again": (0, 0),
    "overlaps": (0, 600),
    "goes on": (0, 30 * FRAME),
    "jumps ahead by an hour": (0, 3_600_000),
    "jumps back by an hour": (3_600_000, 0),
}


@pytest.mark.parametrize("with_sound", [False, True])
@pytest.mark.parametrize("ending", ["ts", "mpg"])
@pytest.mark.parametrize("clock", CLOCKS)
def test_joined_recordings_give_all_their_frames_in_order(
    tmp_path: Path, ending: str, clock: str, with_sound: bool
) -> None:
    parts = []
    for number, start in enumerate(CLOCKS[clock]):
        sound = (start / 1000, start / 1000 + 1.2) if with_sound else None
        path = tmp_path / f"{number}.{ending}"
        times = _every(30, start)
        parts.append(write_timed_video(path, times, sound_seconds=sound, first_number=30 * number))
    file = VideoFile(join_files(tmp_path / f"joined.{ending}", *parts))
    _assert_whole(file, 60, 2.4)
    np.testing.assert_allclose(file.timeline.times, np.arange(60) * 0.04, atol=1e-6)


def test_joined_webm_files_give_all_their_frames(tmp_path: Path) -> None:
    parts = [
        write_timed_video(tmp_path / f"{first}.webm", _every(30), first_number=first) for first in (0, 30)
    ]
    _assert_whole(VideoFile(join_files(tmp_path / "joined.webm", *parts)), 60, 2.4)


def test_a_chained_ogg_file_gives_all_its_frames_and_no_headers() -> None:
    """Two files of 30 numbered frames, by `ffmpeg -c:v libtheora -q:v 7 -g 12`, one after the other: PyAV has
    no encoder of Theora."""
    _assert_whole(VideoFile(REPOSITORY / "tests" / "data" / "joined.ogv"), 60, 2.4)


def test_frames_far_into_a_joined_recording_are_found_by_their_place(tmp_path: Path) -> None:
    parts = [
        write_numbered_video(tmp_path / f"{start}.ts", 400, rate=10, keyframe_interval=30, first_number=start)
        for start in (0, 400, 800)
    ]
    joined = join_files(tmp_path / "joined.ts", *parts)
    for backend in ("pyav", "decord"):
        frames, times = read_frames(joined, [45.2, 79.9, 80, 119.9], backend)
        assert [shown_number(frame) for frame in frames] == [452, 799, 800, 1199]
        assert times == pytest.approx([45.2, 79.9, 80, 119.9], abs=0.001)


def test_a_picture_that_stays_while_sound_goes_on_is_no_jump_of_the_clock(tmp_path: Path) -> None:
    path = write_timed_video(tmp_path / "slides.ts", [0, 1000, 31_000, 32_000], sound_seconds=(0, 33))
    file = VideoFile(path)
    assert file.timeline.num_joins == 0
    np.testing.assert_allclose(file.timeline.times, [0, 1, 31, 32], atol=0.001)
    assert _shown(file) == [0, 1, 2, 3]


def test_a_short_gap_of_a_broadcast_is_no_jump_of_its_clock(tmp_path: Path) -> None:
    file = VideoFile(write_timed_video(tmp_path / "gap.ts", [0, 1000, 9000, 10_000]))
    np.testing.assert_allclose(file.timeline.times, [0, 1, 9, 10], atol=0.001)


@pytest.mark.parametrize("ending", ["mkv", "mp4"])
def test_a_gap_of_an_hour_in_a_file_with_an_index_is_time_that_passed(tmp_path: Path, ending: str) -> None:
    file = VideoFile(write_timed_video(tmp_path / f"gap.{ending}", _every(50) + _every(50, 3_600_000)))
    assert file.info.duration_seconds == pytest.approx(3602, abs=0.1)
    assert _shown(file) == _shown(file, "decord") == list(range(100))
    timeline = file.timeline
    planned = plan_segments(timeline.times, timeline.end_seconds, 25.0, Sampling(12))
    assert len(planned) == 2


# Packets that are no frames


@pytest.mark.parametrize("packets", ["frame", "field"])
def test_two_fields_are_one_frame(tmp_path: Path, packets: Any) -> None:
    file = VideoFile(write_field_coded_video(tmp_path / "fields.ts", 45, packets))
    _assert_whole(file, 45, 45 * 1001 / 30000)
    assert file.info.frame_rate == pytest.approx(29.97, abs=0.001)


@pytest.mark.parametrize("ending", ["mkv", "mp4"])
def test_fields_are_counted_once_in_what_was_copied_from_a_broadcast(tmp_path: Path, ending: str) -> None:
    broadcast = write_field_coded_video(tmp_path / "fields.ts", 45, "field")
    _assert_whole(VideoFile(copy_streams(broadcast, tmp_path / f"copy.{ending}")), 45, 45 * 1001 / 30000)


def test_joined_recordings_in_fields_give_all_their_frames(tmp_path: Path) -> None:
    parts = [
        write_field_coded_video(tmp_path / f"{start}.ts", 30, "field", first_number=start)
        for start in (0, 30)
    ]
    _assert_whole(VideoFile(join_files(tmp_path / "joined.ts", *parts)), 60, 60 * 1001 / 30000)


@pytest.mark.parametrize("options", ["interlaced=1", "interlaced=1:cqm=jvt:bframes=2", "cqm=jvt"])
def test_interlaced_frames_in_one_piece_are_frames(tmp_path: Path, options: str) -> None:
    path = write_numbered_video(tmp_path / "frames.ts", 40, options={"x264-params": options})
    _assert_whole(VideoFile(path), 40, 40 / 30)


def test_an_avi_file_may_leave_out_frames_that_repeat_the_one_before(tmp_path: Path) -> None:
    kept = [0, 1, 2, 5, 6, 20, 21, 40, 49]
    path = write_timed_video(tmp_path / "dropped.avi", [FRAME * place for place in kept])
    file = VideoFile(path)
    assert file.timeline.fraction_present == 1
    assert file.info.duration_seconds == pytest.approx(2, abs=0.001)
    np.testing.assert_allclose(file.timeline.times, np.array(kept) * 0.04)
    assert _shown(file) == _shown(file, "decord") == list(range(len(kept)))


def test_an_avi_file_copied_from_one_with_b_frames_is_whole_and_in_order(tmp_path: Path) -> None:
    source = write_numbered_video(tmp_path / "a.mp4", 60, rate=25, codec="mpeg4", options={"bf": "2"})
    _assert_whole(VideoFile(copy_streams(source, tmp_path / "copy.avi")), 60, 2.4)


def test_a_cut_in_an_avi_file_with_empty_chunks_is_noticed(tmp_path: Path) -> None:
    path = write_timed_video(tmp_path / "dropped.avi", [FRAME * place for place in (0, 1, 2, 30, 60, 90, 99)])
    content = path.read_bytes()
    start = content.index(b"movi")
    for cut in range(start + 1000, len(content), max(1, (len(content) - start) // 9)):
        path.write_bytes(content[:cut])
        assert VideoFile(path).timeline.fraction_present < 1


# Ends where the last picture stays

SLIDES = [0, 1000, 2000]


@pytest.mark.parametrize(
    ("ending", "options"),
    [("mkv", {}), ("mkv", {"live": "1"}), ("webm", {}), ("mp4", {}), ("flv", {}), ("ts", {}), ("wmv", {})],
    ids=str,
)
def test_slides_whose_sound_goes_on_are_whole(tmp_path: Path, ending: str, options: dict[str, str]) -> None:
    path = tmp_path / f"slides.{ending}"
    file = VideoFile(write_timed_video(path, SLIDES, sound_seconds=(0, 20), container_options=options))
    assert file.timeline.fraction_present == 1
    assert 2 < file.info.duration_seconds <= 20.1
    assert _shown(file) == [0, 1, 2]
    frames, _ = read_frames(path, [0.5, 1.5, 2.5, 19])
    assert [shown_number(frame) for frame in frames] == [0, 1, 2, 2]


@pytest.mark.parametrize("ending", ["mkv", "webm", "mp4", "flv", "wmv"])
def test_a_cut_of_slides_with_sound_is_noticed(tmp_path: Path, ending: str) -> None:
    path = write_timed_video(tmp_path / f"slides.{ending}", SLIDES, sound_seconds=(0, 20))
    content = path.read_bytes()
    for cut in np.linspace(len(content) // 9, len(content) - 1, 12, dtype=int):
        path.write_bytes(content[:cut])
        try:
            assert VideoFile(path).timeline.fraction_present < 1, cut
        except MediaError:
            continue  # Refused, as where the table of MP4 is missing.


def _with_duration(content: bytes, milliseconds: float) -> bytes:
    """A Matroska file whose header says so, and no stream more (RFC 9559, 5.1.2.10)."""
    place = content.index(b"\x44\x89\x88") + 3
    content = content[:place] + struct.pack(">d", milliseconds) + content[place + 8 :]
    return content.replace(b"DURATION", b"DURATIOM")


def test_a_duration_that_outlasts_the_last_picture_is_a_still_end_where_the_file_is_whole(
    tmp_path: Path,
) -> None:
    path = write_timed_video(tmp_path / "a.webm", _every(50))
    content = _with_duration(path.read_bytes(), 10_000)
    path.write_bytes(content)
    file = VideoFile(path)
    assert file.timeline.fraction_present == 1
    assert file.info.duration_seconds == pytest.approx(10)
    path.write_bytes(content[:-2000])
    assert VideoFile(path).timeline.fraction_present < 1


def test_a_duration_alone_does_not_prove_a_file_whole_that_was_written_live(tmp_path: Path) -> None:
    path = write_timed_video(tmp_path / "a.webm", _every(50), sound_seconds=(0, 2))
    content = _with_duration(path.read_bytes(), 10_000)
    segment = content.index(b"\x18\x53\x80\x67\x01")
    path.write_bytes(content[: segment + 4] + b"\x01" + b"\xff" * 7 + content[segment + 12 :])
    assert VideoFile(path).timeline.fraction_present == pytest.approx(0.2, abs=0.02)


# Where the first picture is on the clock of a player


@pytest.mark.parametrize(
    ("ending", "start", "sound", "expected"),
    [
        ("mp4", 0, None, 0),
        ("mp4", 3000, (0, 5), 3),
        ("mkv", 3000, (0, 5), 3),
        ("webm", 100_000, None, 100),
        ("webm", 103_000, (100, 105), 103),
        ("mkv", 50_000_000, None, 50_000),
        ("ts", 7000, None, 0),
        ("ts", 10_000, (7, 12), 3),
        ("flv", 3000, (0, 5), 3),
        ("avi", 0, None, 0),
    ],
)
def test_the_first_picture_has_a_place_on_the_clock_of_a_player(
    tmp_path: Path, ending: str, start: int, sound: Any, expected: float
) -> None:
    file = VideoFile(write_timed_video(tmp_path / f"a.{ending}", _every(50, start), sound_seconds=sound))
    assert file.info.media_start_seconds == pytest.approx(expected, abs=0.06)
    assert file.timeline.times[0] == 0
    assert file.info.duration_seconds == pytest.approx(2, abs=0.01)
    assert file.timeline.fraction_present == 1
    assert _shown(file) == list(range(50))


def test_fragments_of_a_live_recording_begin_when_they_say(tmp_path: Path) -> None:
    options = {"movflags": "frag_keyframe+empty_moov+default_base_moof+delay_moov"}
    path = write_timed_video(tmp_path / "a.mp4", _every(50), sound_seconds=(0, 2), container_options=options)
    path.write_bytes(shift_fragments(path.read_bytes(), 36_000))
    file = VideoFile(path)
    assert file.info.media_start_seconds == pytest.approx(36_000, abs=0.1)
    _assert_whole(file, 50, 2)


def test_a_video_that_takes_long_to_start_again_is_not_sampled_again_and_again() -> None:
    times = np.concatenate([np.arange(250) / 25, 3610 + np.arange(250) / 25])
    planned = plan_segments(times, 3620.0, 25.0, Sampling(12))
    assert [round(segment.end_seconds) for segment in planned] == [3561, 3620]
    sampled = [np.searchsorted(times, segment.times_seconds, side="right") for segment in planned]
    assert all(len(np.unique(frames)) >= 6 for frames in sampled)


# MPEG-TS that is not a row of packets of 188 bytes


def _packets(path: Path) -> list[bytes]:
    content = path.read_bytes()
    return [content[start : start + 188] for start in range(0, len(content), 188)]


LAYOUTS = {
    "188 bytes": lambda packet: packet,
    "with time codes": lambda packet: b"\x00\x01\x02\x03" + packet,
    "with Reed-Solomon bytes": lambda packet: packet + b"\xe5" * 16,
}


@pytest.mark.parametrize("cut_off", [0, 1, 100, 187])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_transport_stream_may_begin_inside_a_packet_of_any_layout(
    tmp_path: Path, layout: str, cut_off: int
) -> None:
    path = write_timed_video(tmp_path / "a.ts", _every(50))
    packets = [LAYOUTS[layout](packet) for packet in _packets(path)]
    before = LAYOUTS[layout](b"\x47\x1f\xff\x10" + b"\xaa" * 184)[cut_off:] if cut_off else b""
    path.write_bytes(before + b"".join(packets))
    assert file_extension(path) == "ts"
    _assert_whole(VideoFile(path), 50, 2)
    path.write_bytes(path.read_bytes()[:-90])
    assert VideoFile(path).timeline.fraction_present < 1


def test_text_with_a_letter_in_the_place_of_packet_marks_is_no_transport_stream(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes((b"G" + b"x" * 186 + b"\n") * 3 + b"x" * 2000)
    assert file_extension(tmp_path / "a.txt") is None
