"""Searches by a picture or a clip that is not in the index."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from indexer.errors import InvalidQueryError, MediaError, MediaLimitError
from indexer.index import Index
from indexer.media.decode_pool import DecodePool
from indexer.media.probing import MediaLimits
from indexer.search.query_media import read_media
from model.preprocessing import Resizing
from tests.support.video_files import write_coloured_video

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "white": (250, 250, 250)}
RESIZING = Resizing(32)


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(1, 60.0) as pool:
        yield pool


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, model_directory: Path) -> Iterator[Index]:
    folder = tmp_path_factory.mktemp("coloured")
    with Index.create(folder / "index", str(model_directory), device="cpu", max_segment_seconds=2.0) as index:
        for name, colour in COLOURS.items():
            write_coloured_video(folder / f"{name}.mp4", colour, 4)
            index.add(folder / f"{name}.mp4", id=name, metadata={"warm": name == "red"})
        yield index


def picture(size: tuple[int, int] = (64, 48), colour: tuple[int, int, int] = (20, 20, 220)) -> Image.Image:
    return Image.new("RGB", size, colour)


def read(pool: DecodePool, path: Path) -> np.ndarray:
    square = pool.submit_still(path, RESIZING).result()
    assert square is not None
    return square


# Reading


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_a_picture_of_a_telephone_is_refused_with_what_to_do(
    pool: DecodePool, tmp_path: Path, brand: bytes
) -> None:
    path = tmp_path / "IMG_0001.HEIC"
    path.write_bytes(b"\x00\x00\x00\x1cftyp" + brand + b"\x00\x00\x00\x00mif1heicmiaf" + bytes(500))
    with pytest.raises(MediaError, match="a HEIC picture, which is not read: save it as JPEG"):
        pool.submit_still(path, RESIZING).result()


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "avif", "gif", "bmp", "tiff"])
def test_pictures_of_all_common_kinds_are_read_whatever_their_names(
    pool: DecodePool, tmp_path: Path, ending: str
) -> None:
    picture().save(tmp_path / f"x.{ending}")
    path = (tmp_path / f"x.{ending}").rename(tmp_path / "without an ending")
    assert np.abs(read(pool, path).astype(int) - (20, 20, 220)).max() <= 12


def test_a_photograph_is_upright_as_its_camera_says(pool: DecodePool, tmp_path: Path) -> None:
    image = picture((40, 40), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 40, 10))  # A white bar at the top of what is stored.
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: to be turned clockwise by a quarter.
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    square = read(pool, tmp_path / "turned.jpg").mean(axis=2)
    assert square[:, -4:].mean() > 200 and square[:, :16].mean() < 50


def test_of_a_picture_with_others_in_it_the_first_is_read(pool: DecodePool, tmp_path: Path) -> None:
    others = [picture(colour=colour) for colour in COLOURS.values()]
    picture().save(tmp_path / "depth.jpg", format="MPO", save_all=True, append_images=others)
    picture().save(tmp_path / "moving.gif", save_all=True, append_images=others)
    for name in ("depth.jpg", "moving.gif"):
        assert np.abs(read(pool, tmp_path / name).astype(int) - (20, 20, 220)).max() <= 12


def test_transparency_is_white_and_sixteen_bits_are_eight(pool: DecodePool, tmp_path: Path) -> None:
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read(pool, tmp_path / "clear.png").min() == 255
    Image.fromarray(np.full((32, 32), 0x8000, np.uint16)).save(tmp_path / "deep.png")
    assert np.abs(read(pool, tmp_path / "deep.png").astype(int) - 128).max() <= 1


def test_a_picture_is_resized_as_a_frame_is(pool: DecodePool, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    assert np.array_equal(read(pool, tmp_path / "noise.png"), RESIZING(noise))


def test_a_damaged_picture_is_refused(pool: DecodePool, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    for ending in ("png", "jpg"):
        path = tmp_path / f"cut.{ending}"
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:3000])
        with pytest.raises(MediaError, match="damaged"):
            pool.submit_still(path, RESIZING).result()


def test_a_picture_that_claims_to_be_enormous_costs_nothing(pool: DecodePool, tmp_path: Path) -> None:
    picture().save(tmp_path / "bomb.png")
    content = bytearray((tmp_path / "bomb.png").read_bytes())
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    import zlib

    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "bomb.png").write_bytes(content)
    with pytest.raises(MediaLimitError, match="at most 256000000 pixels"):
        pool.submit_still(tmp_path / "bomb.png", RESIZING).result()


def test_what_is_no_picture_is_read_as_a_video(pool: DecodePool, index: Index, tmp_path: Path) -> None:
    write_coloured_video(tmp_path / "clip.mp4", COLOURS["red"], 4)
    assert pool.submit_still(tmp_path / "clip.mp4", RESIZING).result() is None
    media = read_media(pool, tmp_path / "clip.mp4", index.model.config.resizing, index.sampling)
    assert len(media.segments) == 2 and not media.warnings
    (tmp_path / "words.txt").write_text("words")
    with pytest.raises(MediaError):
        read_media(pool, tmp_path / "words.txt", index.model.config.resizing, index.sampling)


def test_of_a_long_clip_the_beginning_is_compared_and_the_answer_says_so(
    pool: DecodePool, index: Index, tmp_path: Path
) -> None:
    write_coloured_video(tmp_path / "long.mp4", COLOURS["red"], 40)
    media = read_media(pool, tmp_path / "long.mp4", index.model.config.resizing, index.sampling)
    assert len(media.segments) == 16
    assert media.warnings == ["the clip is long: only its first 32 of 40 seconds were compared"]


def test_the_pool_s_limits_hold_for_clips(index: Index, tmp_path: Path) -> None:
    write_coloured_video(tmp_path / "clip.mp4", COLOURS["red"], 4)
    with DecodePool(1, 60.0, limits=MediaLimits(max_duration_seconds=1.0)) as pool, pytest.raises(MediaError):
        read_media(pool, tmp_path / "clip.mp4", index.model.config.resizing, index.sampling)


# Searching


def test_a_picture_finds_the_video_that_looks_like_it(index: Index, tmp_path: Path) -> None:
    for name, colour in COLOURS.items():
        picture((64, 48), colour).save(tmp_path / "asked.png")
        answer = index.search_media(tmp_path / "asked.png", limit=4)
        assert answer.results[0].id == name
        scores = [result.score for result in answer.results]
        assert scores == sorted(scores, reverse=True) and max(scores) <= 1.0001
        assert len(answer.results) == 4 and answer.id is None


def test_a_clip_of_the_same_content_has_the_score_one_and_is_not_left_out(
    index: Index, tmp_path: Path
) -> None:
    write_coloured_video(tmp_path / "copy.mp4", COLOURS["green"], 4)
    best = index.search_media(tmp_path / "copy.mp4").results[0]
    assert best.id == "green" and best.score == pytest.approx(1.0, abs=1e-3)
    similar = index.searcher.similar("green", limit=4).results
    assert "green" not in [result.id for result in similar]


def test_options_are_those_of_a_search(index: Index, tmp_path: Path) -> None:
    picture().save(tmp_path / "asked.png")
    everything = index.search_media(tmp_path / "asked.png", limit=4).results
    page = index.search_media(tmp_path / "asked.png", limit=2, offset=1).results
    assert [(r.id, r.rank) for r in page] == [(r.id, r.rank) for r in everything[1:3]]
    (warm,) = index.search_media(tmp_path / "asked.png", filter={"metadata.warm": True}).results
    assert warm.id == "red"
    segments = index.search_media(tmp_path / "asked.png", group_by="segment").results
    assert len(segments) == 8 and len({r.segment_id for r in segments}) == 8
    bound = everything[1].score
    assert len(index.search_media(tmp_path / "asked.png", min_score=bound).results) == 2
    assert {len(r.moments) for r in index.search_media(tmp_path / "asked.png", num_moments=1).results} == {1}


@pytest.mark.parametrize("options", [{"limit": 0}, {"min_score": float("nan")}, {"group_by": "file"}])
def test_an_option_out_of_its_range_is_refused(
    index: Index, tmp_path: Path, options: dict[str, object]
) -> None:
    picture().save(tmp_path / "asked.png")
    with pytest.raises(InvalidQueryError, match=next(iter(options))):
        index.search_media(tmp_path / "asked.png", **options)
