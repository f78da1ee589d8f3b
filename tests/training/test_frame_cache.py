"""The frame cache: cached frames are the decoded ones, damage is never served, many processes share it."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.preprocessing import Resizing
from tests.support.video_files import write_coloured_video
from training.data.frame_cache import FrameCache
from training.data.frames import FrameReader, FrameRecipe
from training.datasets.split import Clip
from training.errors import DatasetError

RECIPE = FrameRecipe(4, Resizing(32))


@pytest.fixture
def clip(tmp_path: Path) -> Clip:
    return Clip("a", write_coloured_video(tmp_path / "a.mp4", (200, 30, 90), seconds=6))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


class _Counting(FrameReader):
    """Counts how often it decodes."""

    num_decoded = 0

    def _decode(self, clip: Clip) -> NDArray[np.uint8]:
        self.num_decoded += 1
        return super()._decode(clip)


def _entries(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file())


def test_cached_frames_are_the_decoded_ones_bit_for_bit(clip: Clip, cache: Path) -> None:
    decoded = FrameReader(RECIPE).read(clip)
    reader = _Counting(RECIPE, cache)
    np.testing.assert_array_equal(reader.read(clip), decoded)
    np.testing.assert_array_equal(reader.read(clip), decoded)
    np.testing.assert_array_equal(_Counting(RECIPE, FrameCache(cache)).read(clip), decoded)
    assert reader.num_decoded == 1


def test_all_orders_share_an_entry(clip: Clip, cache: Path) -> None:
    forward = FrameReader(RECIPE, cache).read(clip)
    backward = _Counting(FrameRecipe(4, Resizing(32), order="reversed"), cache)
    np.testing.assert_array_equal(backward.read(clip), forward[::-1])
    assert backward.num_decoded == 0
    assert len(_entries(cache)) == 1


OTHER_RECIPES = [
    FrameRecipe(3, Resizing(32)),
    FrameRecipe(4, Resizing(16)),
    FrameRecipe(4, Resizing(32), 2),
    FrameRecipe(4, Resizing(32), slice_mode="head"),
    FrameRecipe(4, Resizing(32), rule="time"),
]


def test_another_recipe_interval_or_backend_has_another_entry(clip: Clip, cache: Path) -> None:
    readers = [FrameReader(recipe, cache) for recipe in [RECIPE, *OTHER_RECIPES]]
    readers.append(FrameReader(RECIPE, cache, backend="pyav"))
    for reader in readers:
        expected = FrameReader(reader.recipe, backend=reader.backend).read(clip)
        np.testing.assert_array_equal(reader.read(clip), expected)
    assert len(_entries(cache)) == len(readers)
    for start, end in [(0, 3), (1, 3), (1, None)]:
        FrameReader(RECIPE, cache).read(Clip("a", clip.path, start, end))
    assert len(_entries(cache)) == len(readers) + 3


def test_a_video_that_changes_is_decoded_again(clip: Clip, cache: Path) -> None:
    reader = _Counting(RECIPE, cache)
    before = reader.read(clip)
    write_coloured_video(clip.path, (3, 200, 7), seconds=6)
    after = reader.read(clip)
    np.testing.assert_array_equal(after, FrameReader(RECIPE).read(clip))
    assert not np.array_equal(before, after)
    # The same size, the same name: only the modification time differs.
    status = clip.path.stat()
    os.utime(clip.path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    reader.read(clip)
    assert reader.num_decoded == 3


def test_two_files_of_the_same_name_size_and_time_are_not_mixed_up(clip: Clip, cache: Path) -> None:
    twin = clip.path.with_name("b") / clip.path.name
    twin.parent.mkdir()
    shutil.copy2(clip.path, twin)
    reader = _Counting(RECIPE, cache)
    reader.read(clip)
    reader.read(Clip("b", twin))
    assert reader.num_decoded == 2


def test_a_corpus_that_is_mounted_elsewhere_finds_its_entries(
    clip: Clip, cache: Path, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "videos").mkdir(parents=True)
    shutil.copy2(clip.path, here / "videos" / "a.mp4")
    frames = FrameReader(RECIPE, FrameCache(cache, corpus=here)).read(Clip("a", here / "videos" / "a.mp4"))
    here.rename(there)
    moved = Clip("a", there / "videos" / "a.mp4")
    reader = _Counting(RECIPE, FrameCache(cache, corpus=there))
    np.testing.assert_array_equal(reader.read(moved), frames)
    assert reader.num_decoded == 0
    by_full_path = _Counting(RECIPE, cache)
    by_full_path.read(moved)
    assert by_full_path.num_decoded == 1


def test_a_video_that_is_gone_is_an_error_though_its_frames_are_there(clip: Clip, cache: Path) -> None:
    reader = FrameReader(RECIPE, cache)
    reader.read(clip)
    clip.path.unlink()
    with pytest.raises(DatasetError, match="'a' cannot be read: No such file"):
        reader.read(clip)


def _only_entry(cache: Path) -> Path:
    (entry,) = _entries(cache)
    return entry


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _lengthen(content: bytes) -> bytes:
    return content + b"\0"


def _flip_last_bit(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def _empty(content: bytes) -> bytes:
    return b""


def _zeros(content: bytes) -> bytes:
    return bytes(len(content))


def _other_shape(content: bytes) -> bytes:
    return safetensors.numpy.save({"frames": np.zeros((4, 16, 16, 3), np.uint8)})


def _other_name(content: bytes) -> bytes:
    return safetensors.numpy.save({"pictures": np.zeros((4, 32, 32, 3), np.uint8)})


@pytest.mark.parametrize(
    "damage", [_cut, _lengthen, _flip_last_bit, _empty, _zeros, _other_shape, _other_name]
)
def test_a_damaged_entry_is_noticed_decoded_again_and_replaced(
    clip: Clip, cache: Path, damage, caplog
) -> None:
    reader = _Counting(RECIPE, cache)
    frames = reader.read(clip)
    entry = _only_entry(cache)
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    np.testing.assert_array_equal(reader.read(clip), frames)
    assert reader.num_decoded == 2
    assert "damaged" in caplog.text and entry.name in caplog.text
    assert entry.read_bytes() == whole
    reader.read(clip)
    assert reader.num_decoded == 2


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, 300) | st.integers(0, 10**9), change=st.integers(1, 255))
def test_whatever_byte_of_an_entry_changes_wrong_frames_are_never_served(
    tmp_path_factory: pytest.TempPathFactory, position: int, change: int
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cache = FrameCache(folder)
    frames = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    assert cache.write({"file": "a"}, frames)
    entry = _only_entry(folder)
    content = bytearray(entry.read_bytes())
    content[position % len(content)] ^= change
    entry.write_bytes(content)
    found = cache.read({"file": "a"}, 8, 4)
    assert found is None or np.array_equal(found, frames)


def test_an_entry_under_a_wrong_name_is_not_served(cache: Path) -> None:
    folder = FrameCache(cache)
    folder.write({"file": "a"}, np.zeros((1, 8, 8, 3), np.uint8))
    first = _only_entry(cache)
    folder.write({"file": "b"}, np.ones((1, 8, 8, 3), np.uint8))
    (second,) = set(_entries(cache)) - {first}
    shutil.copy(second, first)
    assert folder.read({"file": "a"}, 8, 1) is None
    assert folder.read({"file": "b"}, 8, 1) is not None


def test_frames_of_another_number_or_size_than_asked_are_not_served(cache: Path) -> None:
    folder = FrameCache(cache)
    folder.write({"file": "a"}, np.zeros((3, 8, 8, 3), np.uint8))
    assert folder.read({"file": "a"}, 8, 3) is not None
    assert folder.read({"file": "a"}, 8, 2) is None
    assert folder.read({"file": "a"}, 16, 3) is None


def test_a_full_disk_costs_the_cache_and_not_the_frames(clip: Clip, cache: Path, monkeypatch) -> None:
    written = Path.write_bytes

    def fill(path: Path, content: bytes) -> int:
        written(path, content[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", fill)
    reader = _Counting(RECIPE, cache)
    with pytest.warns(RuntimeWarning, match="No space left on device") as caught:
        frames = reader.read(clip)
        reader.read(clip)
    assert len(caught) == 1
    np.testing.assert_array_equal(frames, FrameReader(RECIPE).read(clip))
    assert _entries(cache) == []
    monkeypatch.undo()
    reader.read(clip)
    reader.read(clip)
    assert reader.num_decoded == 3


def test_a_cache_that_cannot_be_a_folder_warns_once(clip: Clip, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    reader = FrameReader(RECIPE, tmp_path / "file")
    with pytest.warns(RuntimeWarning, match="cannot be kept"):
        assert len(reader.read(clip)) == 4
    assert len(reader.read(clip)) == 4


def _fill(reader: FrameReader, clips: list[Clip], begin: float) -> list[bytes]:
    time.sleep(max(0.0, begin - time.time()))
    return [reader.read(clip).tobytes() for _ in range(5) for clip in clips]


def test_several_processes_fill_one_cache_concurrently(tmp_path: Path, cache: Path) -> None:
    clips = [
        Clip(f"v{number}", write_coloured_video(tmp_path / f"{number}.mp4", (30 * number, 5, 5)))
        for number in range(6)
    ]
    expected = [FrameReader(RECIPE).read(clip).tobytes() for clip in clips] * 5
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.data.loading"])
    with ProcessPoolExecutor(4, mp_context=context) as pool:
        begin = time.time() + 1.0
        futures = [pool.submit(_fill, FrameReader(RECIPE, cache), clips, begin) for _ in range(4)]
        for future in futures:
            assert future.result() == expected
    assert len(_entries(cache)) == len(clips)
    assert all(entry.suffix == ".safetensors" for entry in _entries(cache))


def test_an_entry_takes_little_more_than_its_pixels(cache: Path) -> None:
    FrameCache(cache).write({"file": "a" * 200}, np.zeros((12, 224, 224, 3), np.uint8))
    assert 0 < _only_entry(cache).stat().st_size - 12 * 224 * 224 * 3 < 1500
