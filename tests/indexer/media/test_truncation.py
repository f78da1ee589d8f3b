"""A file truncated at any point is refused or called partial: never a whole video that is shorter."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import av.error
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from indexer.errors import MediaError, MediaLimitError
from indexer.media.frame_reader import VideoFile
from indexer.media.probing import DEMUXERS, MediaLimits, check_file
from indexer.media.timeline import read_timeline
from indexer.media.truncation import fraction_of_bytes
from tests.support.video_files import write_numbered_video

NUM_FRAMES = 48
PROMISING = [
    ("mp4", "libx264", {"movflags": "faststart"}),
    ("mp4", "mpeg4", {}),
    ("mov", "mpeg4", {}),
    ("mkv", "libx264", {}),
    ("webm", "libvpx", {}),
    ("avi", "mpeg4", {}),
    ("flv", "libx264", {}),
    ("wmv", "wmv2", {}),
    ("mxf", "mpeg2video", {}),
]
"""Ending, encoder, options of containers that say how long they are or mark their end."""

SILENT = [
    ("ts", "libx264", {}),
    ("mpg", "mpeg2video", {}),
    ("mkv", "libx264", {"live": "1"}),
    ("mp4", "libx264", {"movflags": "frag_keyframe+empty_moov+omit_tfhd_offset"}),
]
"""Those that promise nothing; within a frame, a cut is still seen."""


def _write(folder: Path, ending: str, codec: str, options: dict[str, str]) -> Path:
    quick = {"deadline": "realtime", "cpu-used": "8"} if codec == "libvpx" else {}
    return write_numbered_video(
        folder / f"whole.{ending}",
        NUM_FRAMES,
        codec=codec,
        options=quick,
        container_options=options,
        keyframe_interval=12,
    )


def _outcome(path: Path) -> str:
    try:
        file = VideoFile(path)
    except MediaError:
        return "refused"
    if file.timeline.fraction_present < 1:
        return "partial"
    return "whole" if file.info.num_frames == NUM_FRAMES else f"{file.info.num_frames} frames, said to be all"


@pytest.mark.parametrize(("ending", "codec", "options"), PROMISING)
def test_a_cut_anywhere_is_noticed(tmp_path: Path, ending: str, codec: str, options: dict[str, str]) -> None:
    whole = _write(tmp_path, ending, codec, options)
    assert _outcome(whole) == "whole"
    content, truncated = whole.read_bytes(), tmp_path / f"cut.{ending}"
    last = len(content) - 1
    cuts = {*np.linspace(1, last, 31, dtype=int).tolist(), *range(last, last - 12, -1), last - 100}
    outcomes = {}
    for cut in sorted(cuts):
        truncated.write_bytes(content[:cut])
        outcomes[cut] = _outcome(truncated)
    assert set(outcomes.values()) <= {"refused", "partial"}, outcomes
    if ending != "mov" and options.get("movflags") == "faststart":
        assert "partial" in outcomes.values()


@pytest.mark.parametrize(("ending", "codec", "options"), SILENT)
def test_a_cut_within_a_frame_is_noticed_where_the_container_promises_nothing(
    tmp_path: Path, ending: str, codec: str, options: dict[str, str]
) -> None:
    whole = _write(tmp_path, ending, codec, options)
    assert _outcome(whole) == "whole"
    content, truncated = whole.read_bytes(), tmp_path / f"cut.{ending}"
    with av.open(str(whole)) as container:
        positions = [
            packet.pos for packet in container.demux(video=0) if packet.size and packet.pos is not None
        ]
    if ending == "mpg":
        positions = list(range(300, len(content), 150))  # Many frames are in one packet, of up to 2048 bytes.
    assert len(positions) > 20
    outcomes = {}
    for position in positions[::3]:
        truncated.write_bytes(content[: position + 9])
        outcomes[position] = _outcome(truncated)
    assert set(outcomes.values()) <= {"refused", "partial"}, outcomes
    assert "partial" in outcomes.values()


def test_a_hole_between_fragments_is_noticed(tmp_path: Path) -> None:
    whole = _write(tmp_path, "mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"})
    content = whole.read_bytes()
    first = content.index(b"mdat")
    (tmp_path / "hole.mp4").write_bytes(content[: first + 20] + content[first + 60 :])
    assert _outcome(tmp_path / "hole.mp4") in ("partial", "refused")


def test_real_clips_are_whole_and_a_byte_less_is_not(clips_directory: Path, tmp_path: Path) -> None:
    for path in sorted((clips_directory / "public").iterdir()):
        container, _ = check_file(path, MediaLimits())
        assert fraction_of_bytes(path, container) == 1, path.name
        content = path.read_bytes()
        for missing in (1, len(content) // 50):
            (tmp_path / "cut").write_bytes(content[:-missing])
            assert fraction_of_bytes(tmp_path / "cut", container) < 1, path.name


HEADS = {
    "mp4": b"\x00\x00\x00\x10ftypisom\x00\x00\x00\x00",
    "matroska": b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\xff\x1f\x43\xb6\x75\xff",
    "avi": b"RIFF\x04\x00\x00\x00AVI ",
    "mpegts": b"\x47",
    "mpegps": b"\x00\x00\x01\xba\x44\x00\x00\x00\x00\x00\x00\x00\x00\xf8",
    "ogg": b"OggS\x00\x02",
    "flv": b"FLV\x01\x05\x00\x00\x00\x09\x00\x00\x00\x00",
    "asf": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),
    "dv": b"\x1f\x07\x00\x3f",
    "mxf": bytes.fromhex("060e2b34020501010d010201010204008300"),
}


@pytest.mark.parametrize("container", sorted(HEADS))
def test_any_bytes_have_an_answer(container: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("any") / "file"

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.binary(max_size=200), st.integers(0, 20))
    def answers(tail: bytes, repeated: int) -> None:
        path.write_bytes(HEADS[container] + tail + tail[:9] * repeated)
        assert 0 < fraction_of_bytes(path, container) <= 1

    answers()
    assert set(HEADS) == set(DEMUXERS)


class _Demuxer:
    """A container whose packets end in an error."""

    def __init__(self, container: Any, error: Exception, num_packets: int) -> None:
        self._container, self._error, self._num_packets = container, error, num_packets

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def demux(self) -> Any:
        for number, packet in enumerate(self._container.demux()):
            if number == self._num_packets:
                raise self._error
            yield packet


def test_an_error_while_reading_packets_never_shortens_a_video_in_silence(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", NUM_FRAMES)
    broken = av.error.InvalidDataError(errno.EIO, "damaged")
    for num_packets in (NUM_FRAMES - 1, NUM_FRAMES):
        with av.open(str(path)) as container:
            demuxer: Any = _Demuxer(container, broken, num_packets)
            timeline = read_timeline(demuxer, container.streams.video[0], "mp4", MediaLimits())
            assert timeline.fraction_present < 1
    with av.open(str(path)) as container, pytest.raises(MemoryError):
        demuxer = _Demuxer(container, av.error.MemoryError(errno.ENOMEM, "no memory"), NUM_FRAMES)
        read_timeline(demuxer, container.streams.video[0], "mp4", MediaLimits())


def test_streams_that_appear_while_reading_are_no_error(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.ts", NUM_FRAMES)
    with av.open(str(path)) as container:
        num_packets = sum(1 for packet in container.demux() if packet.size)
    with av.open(str(path)) as container:
        demuxer: Any = _Demuxer(container, IndexError("list index out of range"), num_packets)
        timeline = read_timeline(demuxer, container.streams.video[0], "mpegts", MediaLimits())
    assert (len(timeline), timeline.fraction_present) == (NUM_FRAMES, 1)


def test_packets_of_sound_count_towards_the_limit() -> None:
    # Of a container that promises a length only as a whole, all streams are read.
    packet = SimpleNamespace(dts=0, pts=0, size=1, duration=1, time_base=1, stream_index=1)
    codec = SimpleNamespace(name="h264")
    stream = SimpleNamespace(index=0, duration=None, metadata={}, type="video", codec_context=codec)
    container: Any = SimpleNamespace(streams=[stream], demux=lambda: iter([packet] * 11))
    with pytest.raises(MediaLimitError, match="more than 10 packets"):
        read_timeline(container, stream, "flv", MediaLimits(max_packets=10))  # type: ignore[arg-type]
