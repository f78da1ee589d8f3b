"""What is refused, why, and that nothing but the file itself is opened on the way."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import av
import numpy as np
import pytest

from indexer.errors import (
    MediaError,
    MediaLimitError,
    NotAVideoError,
    TruncatedMediaError,
    UnsupportedMediaError,
)
from indexer.media.frame_reader import VideoFile, probe, read_frames
from indexer.media.probing import DEMUXERS, MediaLimits, file_extension, identify_container
from tests.support.video_files import write_numbered_video, write_pictures, write_sound

HEADS = [
    (b"\x00\x00\x00\x20ftypisom", "mp4", "mp4"),
    (b"\x00\x00\x00\x20ftypqt  ", "mp4", "mov"),
    (b"\x00\x00\x00\x08wide\x00\x00\x10\x00mdat", "mp4", "mov"),
    (b"\x1a\x45\xdf\xa3\x01\x00", "matroska", "mkv"),
    (b"\x1a\x45\xdf\xa3\x9f\x42\x82\x84webm", "matroska", "webm"),
    (b"RIFF\x00\x10\x00\x00AVI LIST", "avi", "avi"),
    ((b"\x47" + bytes(187)) * 3, "mpegts", "ts"),
    ((bytes(4) + b"\x47" + bytes(187)) * 3, "mpegts", "ts"),
    (b"\x00\x00\x01\xba\x44", "mpegps", "mpg"),
    (b"OggS\x00\x02", "ogg", "ogv"),
    (b"FLV\x01\x05", "flv", "flv"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6", "asf", "wmv"),
    (b"\x1f\x07\x00\x3f\x78", "dv", "dv"),
    (b"\x1f\x07\x00\xbf\xf8", "dv", "dv"),
    (b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01\x02\x04", "mxf", "mxf"),
]
NO_VIDEOS = [
    (b"", "empty"),
    (b"\x89PNG\r\n\x1a\n\x00", "PNG"),
    (b"\xff\xd8\xff\xe0", "JPEG"),
    (b"GIF89a", "GIF image.*ffmpeg -i FILE"),
    (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(21) + b"acTL", "PNG.*ffmpeg -i FILE"),
    (b".RMF\x00\x00\x00\x12", "RealMedia.*ffmpeg -i FILE"),
    (b"\xb7\xd8\x00\x20\x37\x49\xda\x11\xa6\x4e\x00\x07\xe9\x5e\xad\x8d", "WTV.*ffmpeg -i FILE"),
    (b"\x00\x00\x00\x01\x67\x42\xc0\x1e", "raw H.264.*ffmpeg -i FILE -c copy"),
    (b"\x00\x00\x01\x09\x10", "raw H.264"),
    (b"\x00\x00\x00\x01\x40\x01\x0c\x01", "raw HEVC"),
    (b"\x00\x00\x01\xb3\x14\x00", "raw MPEG"),
    (b"DKIF\x00\x00", "IVF"),
    (b"YUV4MPEG2 W320", "Y4M"),
    (b"RIFF\x00\x10\x00\x00WEBPVP8 ", "WebP"),
    (b"RIFF\x00\x10\x00\x00WAVEfmt ", "not a video"),
    (b"\x00\x00\x00\x20ftypheic", "HEIF"),
    (b"\x00\x00\x00\x20ftypavif", "AVIF"),
    (b"#EXTM3U\n", "playlist"),
    (b"ffconcat version 1.0\nfile other.mp4\n", "list of files"),
    (b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\n", "session description"),
    (b"  <!DOCTYPE html><html>", "HTML"),
    (b"just words", "not a video"),
    (b"PK\x05\x06", "zip"),
    (b"%PDF-1.7", "PDF"),
    (b"\x00\x01\x02\x03\x04\x05\x06\x07\x08", "not a video"),
]


@pytest.mark.parametrize(("head", "container", "extension"), HEADS)
def test_first_bytes_name_the_container_and_the_extension(
    tmp_path: Path, head: bytes, container: str, extension: str
) -> None:
    assert identify_container(head) == container
    assert container in DEMUXERS
    (tmp_path / "upload").write_bytes(head)
    assert file_extension(tmp_path / "upload") == extension


@pytest.mark.parametrize(("head", "reason"), NO_VIDEOS)
def test_first_bytes_of_other_things_are_refused_with_a_reason(
    tmp_path: Path, head: bytes, reason: str
) -> None:
    with pytest.raises(NotAVideoError, match=reason):
        identify_container(head)
    (tmp_path / "upload").write_bytes(head)
    assert file_extension(tmp_path / "upload") is None


def test_a_probe_reports_what_a_file_is(tmp_path: Path) -> None:
    info = probe(write_numbered_video(tmp_path / "a.mkv", 50, rate=25, rotation_degrees=0))
    assert (info.container, info.codec, info.width, info.height) == ("matroska", "h264", 128, 32)
    assert (info.rotation_degrees, info.num_frames, info.has_audio) == (0, 50, False)
    assert info.frame_rate == pytest.approx(25)
    assert info.duration_seconds == pytest.approx(2)
    assert info.size_bytes == (tmp_path / "a.mkv").stat().st_size
    assert json.loads(json.dumps(info.to_dict()))["codec"] == "h264"


def test_limits_are_checked_before_anything_is_decoded(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", 60)
    for limits, reason in (
        (MediaLimits(max_pixels=128 * 32 - 1), "128 x 32 pixels"),
        (MediaLimits(max_duration_seconds=1.9), "seconds long"),
        (MediaLimits(max_size_bytes=100), "bytes"),
        (MediaLimits(max_frames=59), "more than 59 frames"),
        (MediaLimits(max_aspect_ratio=3), "too narrow"),
    ):
        with pytest.raises(MediaLimitError, match=reason):
            probe(path, limits)
    just_enough = MediaLimits(max_pixels=128 * 32, max_frames=60, max_duration_seconds=2)
    assert probe(path, just_enough).num_frames == 60


@pytest.mark.parametrize("ending", ["mkv", "mp4", "ts"])
def test_a_video_is_as_long_as_its_frames_last_whenever_they_begin(tmp_path: Path, ending: str) -> None:
    """What was cut out of a long recording keeps its times; Matroska says of it when it ends."""
    ten_hours = 10 * 3600 * 1000
    times = [ten_hours + 100 * number for number in range(10)]
    path = write_numbered_video(tmp_path / f"a.{ending}", 10, times_milliseconds=times)
    info = probe(path)
    assert info.num_frames == 10 and info.duration_seconds == pytest.approx(1.0, abs=0.2)
    assert VideoFile(path).timeline.fraction_present == 1
    path.write_bytes(path.read_bytes().replace(b"DURATION", b"DURATIOX"))  # A tag that not all writers set.
    assert VideoFile(path).timeline.fraction_present == 1
    with pytest.raises(MediaLimitError, match="seconds long"):
        probe(path, MediaLimits(max_duration_seconds=0.5))


def test_things_that_are_no_files_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (tmp_path, tmp_path / "pipe.mp4", tmp_path / "absent.mp4", Path("/dev/zero")):
        with pytest.raises(MediaError, match=r"not a regular file|cannot be read"):
            probe(path)


def test_sound_alone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(write_sound(tmp_path / "a.wav"))) as sound, av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        for frame in sound.decode(audio=0):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(NotAVideoError, match="sound without pictures"):
        probe(path)


def test_a_cover_picture_is_not_a_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuvj420p"
        stream.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        assert container.streams.video[0].disposition & av.stream.Disposition.attached_pic
    with pytest.raises(NotAVideoError, match="no video stream"):
        probe(path)


def test_an_unusual_codec_is_refused_by_name(tmp_path: Path) -> None:
    path = write_pictures(tmp_path / "a.mkv", [np.zeros((64, 64, 3), np.uint8)] * 3, codec="snow")
    with pytest.raises(UnsupportedMediaError, match="snow"):
        probe(path)


@pytest.mark.parametrize("disguise", ["mp4", "m3u8", "mkv"])
def test_a_playlist_opens_nothing(tmp_path: Path, disguise: str) -> None:
    write_numbered_video(tmp_path / "secret.ts", 30)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        for target in ("secret.ts", str(tmp_path / "secret.ts"), address):
            playlist = tmp_path / f"list.{disguise}"
            playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{target}\n#EXT-X-ENDLIST\n")
            with pytest.raises(NotAVideoError):
                probe(playlist)
            # The same behind the first bytes of a container.
            playlist.write_bytes(b"\x1a\x45\xdf\xa3" + playlist.read_bytes())
            with pytest.raises(MediaError):
                probe(playlist)
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize("ending", ["mkv", "avi", "mp4", "ts"])
def test_a_truncated_file_says_how_much_is_there(tmp_path: Path, ending: str) -> None:
    whole = write_numbered_video(
        tmp_path / f"a.{ending}",
        300,
        codec="mpeg4" if ending == "avi" else "libx264",
        container_options={"movflags": "faststart"} if ending == "mp4" else {},
    )
    assert VideoFile(whole).timeline.fraction_present == 1
    content = whole.read_bytes()
    half = tmp_path / f"half.{ending}"
    half.write_bytes(content[: int(len(content) * 0.55)])
    file = VideoFile(half)
    if ending != "ts":  # which promises no length
        assert 0.1 < file.timeline.fraction_present < 0.9
    assert 1 < file.info.duration_seconds < 9
    frames, _ = read_frames(half, [0, 0.5])
    assert len(frames) == 2


def test_a_header_without_frames_is_truncated(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", 30, container_options={"movflags": "faststart"})
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"mdat") + 4])
    with pytest.raises(TruncatedMediaError, match="before its first frame"):
        probe(path)


# Files that are broken on purpose

ACCEPTED = {
    "corrupt_payload.mp4": 1.0,
    "decord_corrupted.mp4": 1.0,
    "no_duration.webm": 1.0,
    "one_frame.mp4": 1.0,
    "segment0.ts": 1.0,
    "truncated.avi": 0.47,
    "truncated.mkv": 0.48,
    "truncated.webm": 0.48,
    "truncated_moov_first.mp4": 0.49,
}
"""What gives frames, and the fraction of it that is there. All else in the folder must be refused."""


def test_broken_files_are_used_as_far_as_they_go_or_refused(clips_directory: Path) -> None:
    notes = json.loads((clips_directory / "broken" / "notes.json").read_text())
    assert set(ACCEPTED) <= set(notes)
    for name, note in notes.items():
        path = clips_directory / "broken" / name
        if name not in ACCEPTED:
            assert "reject" in note["expected"], name
            with pytest.raises(MediaError) as caught:
                probe(path)
            assert caught.value.reason
            assert "/" not in caught.value.reason, "a reason names no path"
            continue
        assert not note["expected"].startswith("reject:"), name
        file = VideoFile(path)
        assert file.timeline.fraction_present == pytest.approx(ACCEPTED[name], abs=0.03), name
        times = [0.0, file.info.duration_seconds / 2]
        for frame in file.frames_at(times):
            assert frame.rgb.shape == (file.info.height, file.info.width, 3), name
