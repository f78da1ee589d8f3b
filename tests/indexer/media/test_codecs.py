"""Every codec and every container that we say we read is written here, and read."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from indexer.media.frame_reader import VideoFile
from indexer.media.probing import DEMUXERS, VIDEO_CODECS
from tests.support.old_codecs import MADE, SIDE, write_made_video
from tests.support.tagged_videos import (
    BT601,
    BT709,
    CORNERS,
    Tags,
    corner_picture,
    corners_of,
    write_tagged_video,
)

DATA = Path(__file__).resolve().parents[2] / "data" / "media"

SMALL, CIF, PAL = (64, 64), (176, 144), (720, 576)
ENCODED: dict[str, tuple[str, str, str, tuple[int, int], dict[str, str]]] = {
    # codec: encoder, ending, pixel format, size, options
    "av1": ("libsvtav1", "mkv", "yuv420p", SMALL, {"preset": "12"}),
    "cfhd": ("cfhd", "mov", "yuv422p10le", SMALL, {}),
    "cinepak": ("cinepak", "mov", "rgb24", SMALL, {}),
    "dnxhd": ("dnxhd", "mov", "yuv422p", (256, 128), {"profile": "dnxhr_lb"}),
    "dvvideo": ("dvvideo", "avi", "yuv420p", PAL, {}),
    "ffv1": ("ffv1", "mkv", "yuv420p", SMALL, {}),
    "ffvhuff": ("ffvhuff", "avi", "yuv420p", SMALL, {}),
    "flv1": ("flv", "flv", "yuv420p", SMALL, {"qscale": "2"}),
    "h261": ("h261", "avi", "yuv420p", CIF, {}),
    "h263": ("h263", "3gp", "yuv420p", CIF, {}),
    "h264": ("libx264", "ts", "yuv420p", SMALL, {"preset": "ultrafast"}),
    "hevc": ("libx265", "mp4", "yuv420p", SMALL, {"x265-params": "log-level=none"}),
    "huffyuv": ("huffyuv", "avi", "yuv422p", SMALL, {}),
    "magicyuv": ("magicyuv", "avi", "yuv420p", SMALL, {}),
    "mjpeg": ("mjpeg", "avi", "yuvj420p", SMALL, {}),
    "mpeg1video": ("mpeg1video", "mpg", "yuv420p", SMALL, {}),
    "mpeg2video": ("mpeg2video", "mxf", "yuv422p", SMALL, {}),
    "mpeg4": ("mpeg4", "avi", "yuv420p", SMALL, {}),
    "msmpeg4v2": ("msmpeg4v2", "avi", "yuv420p", SMALL, {}),
    "msmpeg4v3": ("msmpeg4", "avi", "yuv420p", SMALL, {}),
    "msvideo1": ("msvideo1", "avi", "rgb555le", SMALL, {}),
    "png": ("png", "mov", "rgb24", SMALL, {}),
    "prores": ("prores", "mov", "yuv422p10le", SMALL, {}),
    "qtrle": ("qtrle", "mov", "rgb24", SMALL, {}),
    "rawvideo": ("rawvideo", "avi", "bgr24", SMALL, {}),
    "rpza": ("rpza", "mov", "rgb555le", SMALL, {}),
    "svq1": ("svq1", "mov", "yuv410p", SMALL, {}),
    "utvideo": ("utvideo", "avi", "yuv420p", SMALL, {}),
    "vp8": ("libvpx", "webm", "yuv420p", SMALL, {"deadline": "realtime"}),
    "vp9": ("libvpx-vp9", "webm", "yuv420p", SMALL, {"deadline": "realtime", "cpu-used": "8"}),
    "wmv1": ("wmv1", "wmv", "yuv420p", SMALL, {}),
    "wmv2": ("wmv2", "wmv", "yuv420p", SMALL, {}),
}
CARRIED = {"theora": DATA / "theora.ogv"}
"""ffmpeg -f lavfi -i testsrc=size=64x48:rate=5:duration=1 -c:v libtheora -q:v 3 theora.ogv"""


def test_every_codec_on_the_list_is_tried_here() -> None:
    assert set(ENCODED) | set(MADE) | set(CARRIED) == VIDEO_CODECS
    for codec in VIDEO_CODECS:
        assert av.codec.Codec(codec, "r").canonical_name == codec, "a name that no decoder has"


@pytest.mark.parametrize("codec", sorted(ENCODED))
def test_a_file_of_every_codec_that_can_be_encoded_is_read(tmp_path: Path, codec: str) -> None:
    encoder, ending, pixel_format, size, options = ENCODED[codec]
    # DNxHD's decoder says BT.709, whatever the pictures are.
    matrix = BT709 if codec == "dnxhd" else BT601
    tags = Tags(codec=encoder, pixel_format=pixel_format, options=options, stored_matrix=matrix)
    path = write_tagged_video(tmp_path / f"a.{ending}", [corner_picture(*size)] * 3, tags, rate=25)
    file = VideoFile(path)
    assert (file.info.codec, file.info.num_frames) == (codec, 3)
    frames = list(file.frames_at([0.0, 0.06]))
    assert all(frame.exact for frame in frames)
    assert np.abs(np.array(corners_of(frames[0].rgb)) - np.array(CORNERS)).max() <= 20


@pytest.mark.parametrize("codec", sorted(MADE))
def test_a_file_of_every_codec_that_is_made_by_hand_is_read(tmp_path: Path, codec: str) -> None:
    file = VideoFile(write_made_video(tmp_path / "a.avi", codec))
    assert (file.info.codec, file.info.num_frames) == (codec, 5)
    for frame in file.frames_at([0.0, 0.5]):
        assert frame.exact and frame.rgb.shape == (SIDE, SIDE, 3)
        assert np.ptp(frame.rgb, axis=(0, 1)).max() <= 2, "one colour"


@pytest.mark.parametrize("codec", sorted(CARRIED))
def test_a_file_of_every_other_codec_is_read(codec: str) -> None:
    file = VideoFile(CARRIED[codec])
    assert (file.info.codec, file.info.num_frames) == (codec, 5)
    (frame,) = file.frames_at([0.5])
    assert frame.exact and frame.rgb.shape == (48, 64, 3) and frame.rgb.std() > 40


def test_raw_dv_is_read(tmp_path: Path) -> None:
    """What a camcorder's tape becomes: the frames, one after the other, without a container."""
    tags = Tags(codec="dvvideo", options={})
    wrapped = write_tagged_video(tmp_path / "a.avi", [corner_picture(*PAL)] * 3, tags, rate=25)
    with av.open(str(wrapped)) as container:
        content = b"".join(bytes(packet) for packet in container.demux(video=0))
    raw = tmp_path / "a.dv"
    raw.write_bytes(content)
    info = VideoFile(raw).info
    assert (info.container, info.codec, info.num_frames) == ("dv", "dvvideo", 3)
    assert (info.width, info.height) == (768, 576), "pixels of 16 : 15"


def test_every_container_on_the_list_is_read_above() -> None:
    by_ending = {"mkv": "matroska", "webm": "matroska", "mov": "mp4", "3gp": "mp4", "ts": "mpegts"}
    by_ending |= {"mpg": "mpegps", "wmv": "asf"}
    read = {by_ending.get(ending, ending) for _, ending, *_ in ENCODED.values()} | {"ogg", "dv"}
    assert read == set(DEMUXERS)
