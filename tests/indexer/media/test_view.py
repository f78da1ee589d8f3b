"""What a player shows is what features, thumbnails, previews and facts are made of."""

from __future__ import annotations

import io
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from indexer.errors import MediaLimitError
from indexer.media.decode_pool import DecodePool, DecodeRequest
from indexer.media.frame_reader import VideoFile
from indexer.media.preview import clip_size
from indexer.media.probing import MediaLimits
from indexer.media.sampling import Sampling
from indexer.media.view import View, orientation_of_matrix, square_size
from model.preprocessing import Resizing
from tests.support.tagged_videos import (
    BT601,
    BT709,
    BT2020,
    CORNERS,
    HLG,
    PQ,
    Tags,
    as_hdr,
    corner_picture,
    corners_of,
    write_tagged_video,
)

ONE = 1 << 16
MATRICES = {
    "upright": ((1, 0, 0, 1), (0, 1, 2, 3)),
    "turned clockwise": ((0, 1, -1, 0), (2, 0, 3, 1)),
    "half turn": ((-1, 0, 0, -1), (3, 2, 1, 0)),
    "turned counter-clockwise": ((0, -1, 1, 0), (1, 3, 0, 2)),
    "mirrored left to right": ((-1, 0, 0, 1), (1, 0, 3, 2)),
    "mirrored top to bottom": ((1, 0, 0, -1), (2, 3, 0, 1)),
    "transposed": ((0, 1, 1, 0), (0, 2, 1, 3)),
    "transposed the other way": ((0, -1, -1, 0), (3, 1, 2, 0)),
}
"""a, b, c, d of the display matrix, and which stored corners are seen at top left, top right and so on."""

HD_TAGS = Tags(BT709, BT709, BT709, BT709)


def _matrix(a: int, b: int, c: int, d: int) -> list[int]:
    return [a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, 1 << 30]


def _first(path: Path, min_side: int | None = None) -> NDArray[np.uint8]:
    return next(VideoFile(path).frames_at([0.0], min_side=min_side)).rgb


def _assert_corners(picture: NDArray[np.uint8], corners: object = CORNERS, tolerance: int = 12) -> None:
    assert np.abs(np.array(corners_of(picture)) - np.array(corners)).max() <= tolerance, corners_of(picture)


@pytest.mark.parametrize("name", MATRICES)
def test_all_eight_orientations_are_shown_as_the_display_matrix_says(tmp_path: Path, name: str) -> None:
    numbers, order = MATRICES[name]
    tags = Tags(display_matrix=_matrix(*numbers), aspect=Fraction(3, 2))
    path = write_tagged_video(tmp_path / "a.mp4", [corner_picture(64, 48)] * 2, tags)
    is_turned = numbers[0] == 0
    info = VideoFile(path).info
    assert (info.width, info.height) == ((48, 96) if is_turned else (96, 48))
    picture = _first(path)
    assert picture.shape == (info.height, info.width, 3)
    _assert_corners(picture, [CORNERS[number] for number in order])
    assert orientation_of_matrix(tuple(_matrix(*numbers))).is_mirrored == ("mirr" in name or "tran" in name)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.ts", "libx264"), ("a.avi", "mpeg4"), ("a.wmv", "mpeg4")],
)
def test_pixels_that_are_not_square_are_made_square(tmp_path: Path, name: str, codec: str) -> None:
    tags = Tags(aspect=Fraction(64, 45), codec=codec, options={})
    path = write_tagged_video(tmp_path / name, [corner_picture(90, 72)] * 3, tags, rate=25)
    info = VideoFile(path).info
    assert (info.width, info.height) == (128, 72)
    _assert_corners(_first(path), tolerance=16)
    assert VideoFile(path).open_decord() is None
    tall = write_tagged_video(
        tmp_path / f"b{name[1:]}", [corner_picture(90, 72)] * 3, replace(tags, aspect=Fraction(8, 9)), rate=25
    )
    assert (VideoFile(tall).info.width, VideoFile(tall).info.height) == (90, 81)


def test_the_pixel_aspect_may_change_where_the_container_says_nothing(tmp_path: Path) -> None:
    """DVB changes between 4:3 and 16:9 within a recording."""
    tags = Tags(codec="mpeg2video", options={"qscale": "2"})
    parts = []
    for number, aspect in enumerate((Fraction(4, 3), Fraction(16, 9))):
        part = replace(tags, aspect=aspect * Fraction(48, 64))
        parts.append(write_tagged_video(tmp_path / f"{number}.ts", [corner_picture(64, 48)] * 20, part, 25))
    joined = tmp_path / "joined.ts"
    joined.write_bytes(parts[0].read_bytes() + parts[1].read_bytes())
    with av.open(str(joined)) as container:
        stream = container.streams.video[0]
        view = View(stream)
        sizes = [view.size(frame) for frame in container.decode(stream)]
    assert sizes[0] == (64, 48) and sizes[-1] == (85, 48)


@pytest.mark.parametrize("aspect", [Fraction(640, 639), Fraction(11, 1), Fraction(1, 200)])
def test_a_pixel_aspect_that_is_next_to_nothing_or_absurd_is_ignored(
    tmp_path: Path, aspect: Fraction
) -> None:
    path = write_tagged_video(tmp_path / "a.mp4", [corner_picture(64, 48)] * 2, Tags(aspect=aspect))
    file = VideoFile(path)
    assert (file.info.width, file.info.height) == (64, 48)
    assert np.array_equal(_first(path), _plain_first(path))


def test_limits_apply_to_what_is_shown(tmp_path: Path) -> None:
    path = write_tagged_video(tmp_path / "a.mp4", [corner_picture(64, 16)] * 2, Tags(aspect=Fraction(4)))
    assert square_size(64, 16, Fraction(4)) == (256, 16)
    with pytest.raises(MediaLimitError, match="256 x 16"):
        VideoFile(path, MediaLimits(max_pixels=64 * 48))
    with pytest.raises(MediaLimitError, match="too narrow"):
        VideoFile(path, MediaLimits(max_aspect_ratio=15))


@pytest.mark.parametrize(("transfer", "name"), [(PQ, "a.mkv"), (HLG, "a.mp4")])
def test_hdr_is_brought_to_the_colours_of_a_common_screen(tmp_path: Path, transfer: int, name: str) -> None:
    # Not libx265: once it has encoded 8 bits in a process, it does not encode 10 bits there.
    options = {"preset": "ultrafast", "crf": "8"}
    tags = Tags(BT2020, transfer, BT2020, BT2020, pixel_format="yuv420p10le", options=options)
    hdr = as_hdr(corner_picture(128, 96), transfer)
    path = write_tagged_video(tmp_path / name, [hdr] * 2, tags)
    _assert_corners(_first(path), tolerance=25)
    assert VideoFile(path).open_decord() is None
    with av.open(str(path)) as container:
        plain = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.abs(np.array(corners_of(plain)) - np.array(CORNERS)).max() > 45, "what it was like before"
    small = _first(path, min_side=48)
    assert small.shape == (48, 64, 3)
    _assert_corners(small, tolerance=30)


@pytest.mark.slow
@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_hdr_becomes_what_ffmpegs_scaler_makes_of_each_frame(tmp_path: Path, transfer: int) -> None:
    tags = Tags(BT2020, transfer, BT2020, BT2020, pixel_format="yuv420p10le")
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    red, green = np.meshgrid(ramp, ramp)
    gradient = np.stack([red, green, np.full_like(red, 90)], axis=-1)
    path = write_tagged_video(tmp_path / "a.mkv", [as_hdr(gradient, transfer)] * 2, tags)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        wanted = frame.reformat(format="rgb48le", dst_color_trc=1, dst_color_primaries=1)
    assert np.abs(_first(path) - wanted.to_ndarray() / 257).mean() < 3


@pytest.mark.slow
def test_wide_colours_without_hdr_are_brought_to_bt709(tmp_path: Path) -> None:
    tags = Tags(BT2020, 14, BT2020, BT2020, options={"crf": "5"})
    linear = (corner_picture(128, 96) / 255.0) ** 2.4
    wide = linear @ np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]).T
    picture = np.round(65535 * wide ** (1 / 2.4)).astype(np.uint16)
    _assert_corners(_first(write_tagged_video(tmp_path / "a.mp4", [picture] * 2, tags)), tolerance=20)


@pytest.mark.parametrize("matrix", [3, 8, 10, 11, 12, 13, 14, 15, 16, 17])
def test_colours_with_an_unusable_matrix_are_decoded_as_if_untagged(tmp_path: Path, matrix: int) -> None:
    path = write_tagged_video(tmp_path / "a.mp4", [corner_picture(64, 48)] * 2, Tags())
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        wanted = frame.to_ndarray(format="rgb24")
        frame.colorspace = matrix
        view = View(container.streams.video[0])
        assert not view.is_plain(frame)
        assert np.array_equal(view.show(frame), wanted)


@pytest.mark.parametrize("matrix", [8, 10, 14])
def test_files_with_an_unusable_matrix_are_read(tmp_path: Path, matrix: int) -> None:
    path = write_tagged_video(tmp_path / "a.mp4", [corner_picture(64, 48)] * 2, Tags(matrix=matrix))
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).colorspace == matrix
    _assert_corners(_first(path))
    assert VideoFile(path).open_decord() is None


@pytest.mark.parametrize(("size", "stored"), [((64, 48), BT601), ((1280, 32), BT709), ((32, 600), BT709)])
def test_untagged_colours_are_bt709_in_hd_and_bt601_below(
    tmp_path: Path, size: tuple[int, int], stored: int
) -> None:
    path = write_tagged_video(tmp_path / "a.mp4", [corner_picture(*size)] * 2, Tags(stored_matrix=stored))
    _assert_corners(_first(path))
    assert (VideoFile(path).open_decord() is None) == (stored == BT709)


def _comb(picture: NDArray[np.uint8]) -> float:
    """The share of pixels that differ from both lines next to them, the same way, by more than 40."""
    grey = picture.mean(axis=2)
    above, below = grey[1:-1] - grey[:-2], grey[1:-1] - grey[2:]
    return float(((np.abs(above) > 40) & (np.abs(below) > 40) & (above * below > 0)).mean())


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p"])
def test_interlaced_pictures_have_no_combs(tmp_path: Path, pixel_format: str) -> None:
    pictures = []
    for number in range(6):
        fields = []
        for instant in (2 * number, 2 * number + 1):
            field = np.full((96, 128, 3), 200, np.uint8)
            field[:, 8 + 6 * instant : 24 + 6 * instant] = 20
            fields.append(field)
        woven = fields[0].copy()
        woven[1::2] = fields[1][1::2]
        pictures.append(woven)
    options = {"preset": "ultrafast", "crf": "10", "x264-params": "interlaced=1:tff=1"}
    tags = Tags(pixel_format=pixel_format, options=options)
    path = write_tagged_video(tmp_path / "a.mp4", pictures, tags, rate=25)
    assert _comb(_plain_first(path)) > 0.02, "what it was like before"
    for frame in VideoFile(path).frames_at([0.0, 0.08, 0.16]):
        assert frame.rgb.shape == (96, 128, 3)
        assert _comb(frame.rgb) == 0
    assert VideoFile(path).open_decord() is None


def _plain_first(path: Path) -> NDArray[np.uint8]:
    """The first frame by FFmpeg's default conversion: how every frame was shown before there was a view."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        turned: NDArray[np.uint8] = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
        return turned


PLAIN = {
    "untagged": ((64, 48), Tags()),
    "BT.601": ((64, 48), Tags(BT601, BT601, BT601)),
    "BT.709": ((64, 48), HD_TAGS),
    "BT.709 HD": ((1280, 720), HD_TAGS),
    "turned": ((64, 48), Tags(display_matrix=_matrix(0, 1, -1, 0))),
    "4:2:2": ((64, 48), Tags(pixel_format="yuv422p")),
    "4:4:4 of an odd size": ((63, 47), Tags(pixel_format="yuv444p")),
    "10 bits": ((64, 48), Tags(pixel_format="yuv420p10le")),
    "grey": ((64, 48), Tags(pixel_format="gray")),
    "RGB": ((1280, 48), Tags(codec="libx264rgb", pixel_format="rgb24")),
    "FFV1 RGB": ((1280, 48), Tags(codec="ffv1", pixel_format="bgr0", options={})),
}


@pytest.mark.parametrize("name", PLAIN)
def test_what_needs_nothing_keeps_its_pixels_to_the_bit(tmp_path: Path, name: str) -> None:
    size, tags = PLAIN[name]
    path = write_tagged_video(tmp_path / "a.mkv", [corner_picture(*size)] * 2, tags)
    if tags.display_matrix:
        path = write_tagged_video(tmp_path / "a.mp4", [corner_picture(*size)] * 2, tags)
    assert np.array_equal(_first(path), _plain_first(path))
    assert np.array_equal(_first(path, min_side=16), _plain_first(path))


def test_features_thumbnails_previews_and_facts_show_the_same_view(tmp_path: Path) -> None:
    """Anamorphic, mirrored and turned at once."""
    numbers, order = MATRICES["transposed"]
    tags = Tags(aspect=Fraction(2), display_matrix=_matrix(*numbers))
    path = write_tagged_video(tmp_path / "a.mp4", [corner_picture(64, 64)] * 10, tags)
    with DecodePool(1, 30) as pool:
        video = pool.submit(DecodeRequest(str(path), Sampling(2), Resizing(32))).result()
        assert (video.info.width, video.info.height) == (64, 128)
        thumbnail = np.asarray(Image.open(io.BytesIO(pool.submit_picture(path, 0.0, 320).result())))
        clip = pool.submit_clip(path, 0.0).result()
    assert thumbnail.shape == (128, 64, 3)
    _assert_corners(thumbnail, [CORNERS[number] for number in order], 20)
    with av.open(io.BytesIO(clip)) as container:
        frame = next(container.decode(video=0))
        assert (frame.width, frame.height) == clip_size(64, 128)
        _assert_corners(frame.to_ndarray(format="rgb24"), [CORNERS[number] for number in order], 24)
    wanted = Resizing(32)(_first(path, min_side=64))
    assert np.array_equal(video.segments[0].frames[0], wanted)


def test_real_clips_keep_their_pixels_to_the_bit(clips_directory: Path) -> None:
    num_plain = 0
    for path in sorted((clips_directory / "public").iterdir()):
        with av.open(str(path)) as container:
            frame = next(container.decode(video=0))
            is_plain = View(container.streams.video[0]).is_plain(frame)
        if is_plain:
            assert np.array_equal(_first(path), _plain_first(path)), path.name
        num_plain += is_plain
    assert num_plain >= 13, "all but HD without tags"
