"""Batches: each text once, the same for any number of processes and workers, and to be taken up anywhere."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.preprocessing import Resizing
from tests.conftest import REPOSITORY
from tests.support.treacherous_reader import TreacherousReader
from tests.support.video_files import write_coloured_video
from training.data import loading as batch_loading
from training.data.batches import (
    Batch,
    BatchPlan,
    ClipBatch,
    FrameFeatures,
    TrainingBatches,
    clip_batches,
    epoch_order,
)
from training.data.frames import FrameReader, FrameRecipe
from training.datasets.split import Clip, Split
from training.errors import ConfigError, DatasetError

RECIPE = FrameRecipe(3, Resizing(16))
COUNTS = (3, 1, 2, 4, 1, 2)  # texts of each clip
ORDER_0_0 = [3, 2, 1, 6, 0, 7, 4, 5]
ORDER_0_1 = [7, 4, 5, 1, 6, 2, 0, 3]
ORDER_ONE_TEXT = [10, 0, 12, 8, 3, 4]

counts_of_texts = st.lists(st.integers(1, 5), min_size=1, max_size=30)


def _clip_of_text(counts: Sequence[int]) -> list[int]:
    return [clip for clip, count in enumerate(counts) for _ in range(count)]


def tokenize(texts: Sequence[str]) -> Tensor:
    return torch.tensor([[7, int(text), 9, 0] for text in texts])


def equal(one: Batch | ClipBatch, other: Batch | ClipBatch) -> bool:
    return repr(one) == repr(other) and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name, _ in one._tensors()
    )


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Six videos of 1 to 6 seconds with 13 texts."""
    folder = tmp_path_factory.mktemp("videos")
    clips = tuple(
        Clip(f"v{number}", write_coloured_video(folder / f"{number}.mp4", (40 * number, 9, 250), number + 1))
        for number in range(len(COUNTS))
    )
    of_text = _clip_of_text(COUNTS)
    return Split("captions", "train", clips, tuple(str(n) for n in range(len(of_text))), tuple(of_text))


# The order.


@settings(deadline=None)
@given(counts=counts_of_texts, seed=st.integers(0, 2**40), epoch=st.integers(0, 1000))
def test_an_epoch_holds_every_text_once(counts: list[int], seed: int, epoch: int) -> None:
    order = epoch_order(_clip_of_text(counts), seed, epoch)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(sum(counts)))


@settings(deadline=None)
@given(counts=counts_of_texts, seed=st.integers(0, 2**40), epoch=st.integers(0, 1000))
def test_with_one_text_per_clip_an_epoch_holds_every_clip_once(
    counts: list[int], seed: int, epoch: int
) -> None:
    of_text = _clip_of_text(counts)
    order = epoch_order(of_text, seed, epoch, one_text_per_clip=True)
    assert sorted(of_text[text] for text in order) == list(range(len(counts)))


@settings(deadline=None)
@given(counts=counts_of_texts, seed=st.integers(0, 2**40), first=st.integers(0, 100))
def test_with_one_text_per_clip_its_texts_take_turns(counts: list[int], seed: int, first: int) -> None:
    of_text = _clip_of_text(counts)
    num_epochs = 60  # a multiple of every count
    seen = np.zeros(len(of_text), dtype=int)
    for epoch in range(first, first + num_epochs):
        seen[epoch_order(of_text, seed, epoch, one_text_per_clip=True)] += 1
    assert seen.tolist() == [num_epochs // counts[clip] for clip in of_text]


@settings(deadline=None)
@given(
    counts=counts_of_texts,
    share=st.integers(1, 8),
    world_size=st.integers(1, 8),
    epoch=st.integers(0, 9),
    data=st.data(),
)
def test_slices_of_the_processes_make_up_each_batch_in_order(
    counts: list[int], share: int, world_size: int, epoch: int, data: st.DataObject
) -> None:
    order = epoch_order(_clip_of_text(counts), 5, epoch)
    batch_size = share * world_size
    steps = len(order) // batch_size
    plans = [BatchPlan(batch_size, 5, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step in range(steps):
        slices = [plan.own_slice(order, step) for plan in plans]
        assert {len(one) for one in slices} == {share}
        np.testing.assert_array_equal(np.concatenate(slices), plans[0].whole_batch(order, step))
    batches = [plans[0].whole_batch(order, step) for step in range(steps)]
    np.testing.assert_array_equal(np.concatenate([*batches, order[steps * batch_size :]]), order)


def test_the_order_is_the_same_in_every_version() -> None:
    # Written down: a run that goes on with a later version must go on in its order.
    assert epoch_order(range(8), 0, 0).tolist() == ORDER_0_0
    assert epoch_order(range(8), 0, 1).tolist() == ORDER_0_1
    assert epoch_order(_clip_of_text(COUNTS), 3, 2, one_text_per_clip=True).tolist() == ORDER_ONE_TEXT


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(epoch_order(range(50), seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_the_order_is_shuffled_evenly() -> None:
    # Where text 0 stands, over many epochs: a mean of 24.5 with a standard error of 0.32.
    positions = [epoch_order(range(50), 1, epoch).tolist().index(0) for epoch in range(2000)]
    assert 23.2 < np.mean(positions) < 25.8
    assert set(positions) == set(range(50))


def test_the_steps_of_an_epoch_are_counted() -> None:
    plan = BatchPlan(4, seed=0)
    splits = {
        pairs: Split("captions", "train", (Clip("v", Path("v.mp4")),), ("a",) * pairs, (0,) * pairs)
        for pairs in (3, 4, 7, 8, 180_000)
    }
    assert [plan.num_steps(splits[pairs]) for pairs in (4, 7, 8, 180_000)] == [1, 1, 2, 45_000]
    with pytest.raises(DatasetError, match="3 pairs of a text and a clip do not fill one batch of 4"):
        plan.num_steps(splits[3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 0, 4), "a batch of 10 cannot be shared equally by 4 processes"),
        ((8, 4, 4), "rank is from 0"),
        ((0, 0, 1), "at least 1"),
    ],
)
def test_batches_that_cannot_be_shared_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BatchPlan(arguments[0], 0, rank=arguments[1], world_size=arguments[2])


# What batches hold.


def one_epoch(
    split: Split,
    frames: FrameReader | FrameFeatures,
    *,
    epoch: int,
    first_step: int = 0,
    num_workers: int = 0,
    **choices: Any,
) -> Iterator[Batch]:
    batches = TrainingBatches(split, tokenize, frames, BatchPlan(**choices), num_workers)
    return batches.epoch(epoch, first_step)


def test_a_batch_holds_the_texts_and_their_clips_frames(split: Split) -> None:
    reader = FrameReader(RECIPE)
    batches = list(one_epoch(split, reader, batch_size=4, seed=0, epoch=0))
    assert len(batches) == 3
    for batch in batches:
        assert len(batch) == 4
        assert batch.pixels is not None and batch.frame_features is None
        assert batch.clip_index.tolist() == [split.clip_of_text[text] for text in batch.text_index]
        assert batch.input_ids[:, 1].tolist() == batch.text_index.tolist()
        for row, clip in enumerate(batch.clip_index.tolist()):
            frames = reader.read(split.clips[clip])
            count = len(frames)
            assert count == min(clip + 1, 3)
            np.testing.assert_array_equal(batch.pixels[row, :count].numpy(), frames)
            assert batch.frame_mask[row].tolist() == [True] * count + [False] * (3 - count)
            assert not batch.pixels[row, count:].any()
    texts = torch.cat([batch.text_index for batch in batches]).tolist()
    assert len(set(texts)) == 12


def test_workers_change_nothing_over_several_epochs_and_orders(split: Split, tmp_path: Path) -> None:
    reader = FrameReader(replace(RECIPE, order="shuffled"), tmp_path / "cache", seed=4)
    plan = BatchPlan(batch_size=4, seed=2)
    with (
        TrainingBatches(split, tokenize, reader, plan) as alone,
        TrainingBatches(split, tokenize, reader, plan, num_workers=2) as by_workers,
    ):
        for epoch in (0, 1):
            pairs = list(zip(alone.epoch(epoch), by_workers.epoch(epoch), strict=True))
            assert len(pairs) == alone.num_steps == 3
            assert all(equal(one, other) for one, other in pairs)
        first = next(iter(by_workers.epoch(2)))  # given up in the middle
        assert equal(first, next(iter(alone.epoch(2))))
        pairs = list(zip(alone.epoch(3, 1), by_workers.epoch(3, 1), strict=True))
        assert len(pairs) == 2
        assert all(equal(one, other) for one, other in pairs)


@settings(max_examples=10, deadline=None)
@given(first_step=st.integers(0, 3), epoch=st.integers(0, 5), one_text=st.booleans())
def test_an_epoch_resumed_in_the_middle_continues_as_it_would_have(
    split: Split, tmp_path_factory: pytest.TempPathFactory, first_step: int, epoch: int, one_text: bool
) -> None:
    reader = FrameReader(replace(RECIPE, order="shuffled"), tmp_path_factory.getbasetemp() / "cache")
    batches = TrainingBatches(split, tokenize, reader, BatchPlan(2, 1, one_text))
    whole = list(batches.epoch(epoch))
    assert len(whole) == batches.num_steps == (3 if one_text else 6)
    rest = list(batches.epoch(epoch, first_step))
    assert len(rest) == len(whole) - first_step
    assert all(equal(one, other) for one, other in zip(whole[first_step:], rest, strict=True))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_processes_together_see_the_whole_batches(split: Split, tmp_path: Path, world_size: int) -> None:
    reader = FrameReader(RECIPE, tmp_path)
    whole = list(one_epoch(split, reader, batch_size=4, seed=9, epoch=3))
    shares = [
        list(one_epoch(split, reader, batch_size=4, seed=9, epoch=3, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    for step, batch in enumerate(whole):
        for name, tensor in batch._tensors():
            joined = torch.cat([getattr(share[step], name) for share in shares])
            assert torch.equal(joined, tensor), name


def test_cached_features_take_the_place_of_frames(split: Split) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(len(COUNTS), 3, 5, generator=generator)
    frame_mask = torch.rand(len(COUNTS), 3, generator=generator) > 0.4
    arguments = {"batch_size": 4, "seed": 0, "epoch": 1}
    with_pixels = list(one_epoch(split, FrameReader(RECIPE), **arguments))
    batches = list(one_epoch(split, FrameFeatures(features, frame_mask), **arguments))
    for batch, other in zip(batches, with_pixels, strict=True):
        assert torch.equal(batch.text_index, other.text_index)
        assert torch.equal(batch.clip_index, other.clip_index)
        assert batch.pixels is None and batch.frame_features is not None
        assert torch.equal(batch.frame_features, features[batch.clip_index])
        assert torch.equal(batch.frame_mask, frame_mask[batch.clip_index])
    with pytest.raises(ConfigError, match="features of 5 clips, but captions train has 6"):
        one_epoch(split, FrameFeatures(features[1:], frame_mask), **arguments)


def test_clips_come_in_order_for_evaluation(split: Split) -> None:
    reader = FrameReader(RECIPE)
    batches = list(clip_batches(split, reader, 4))
    assert [batch.clip_index.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5]]
    for batch in batches:
        for row, clip in enumerate(batch.clip_index.tolist()):
            frames = reader.read(split.clips[clip])
            np.testing.assert_array_equal(batch.pixels[row, : len(frames)].numpy(), frames)
            assert int(batch.frame_mask[row].sum()) == len(frames)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 3, "world_size": 2}, "cannot be shared equally"),
        ({"seed": -1}, "seed"),
        ({"num_workers": -1}, "num_workers"),
        ({"epoch": -1}, "epoch -1"),
        ({"first_step": 4}, "there are 3 steps"),
    ],
)
def test_wrong_arguments_are_refused_before_the_first_batch(
    split: Split, arguments: dict, message: str
) -> None:
    given = {"frames": FrameReader(RECIPE), "batch_size": 4, "seed": 0, "epoch": 0} | arguments
    with pytest.raises(ConfigError, match=message):
        one_epoch(split, **given)


def test_a_split_smaller_than_a_batch_is_refused(split: Split) -> None:
    with pytest.raises(DatasetError, match="13 pairs of a text and a clip do not fill one batch of 64"):
        one_epoch(split, FrameReader(RECIPE), batch_size=64, seed=0, epoch=0)


def test_later_batches_of_one_loader_end_the_ones_before(split: Split) -> None:
    batches = TrainingBatches(split, tokenize, FrameReader(RECIPE), BatchPlan(4, 0))
    first = batches.epoch(0)
    next(first)
    next(batches.epoch(1))
    with pytest.raises(RuntimeError, match="later ones"):
        next(first)


# A batch as a container.


def _batch() -> Batch:
    index = torch.arange(2)
    return Batch(
        text_index=index,
        clip_index=index,
        input_ids=torch.zeros(2, 7, dtype=torch.int64),
        frame_mask=torch.ones(2, 3, dtype=torch.bool),
        pixels=torch.zeros(2, 3, 16, 16, 3, dtype=torch.uint8),
    )


def test_a_batch_prints_its_shapes_and_moves() -> None:
    expected = (
        "Batch(text_index=int64 [2], clip_index=int64 [2], input_ids=int64 [2, 7], frame_mask=bool [2, 3],"
        " pixels=uint8 [2, 3, 16, 16, 3])"
    )
    assert repr(_batch()) == expected
    moved = _batch().to("meta")
    assert {tensor.device.type for _, tensor in moved._tensors()} == {"meta"}
    assert repr(moved) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_index": torch.arange(3)}, r"text_index is torch.int64 \[3\], not torch.int64 \[2\]"),
        ({"input_ids": torch.zeros(2, 7)}, "input_ids is torch.float32"),
        ({"frame_mask": torch.ones(2, 3)}, "frame_mask is torch.float32"),
        ({"frame_mask": torch.ones(3, dtype=torch.bool)}, "frame_mask"),
        ({"pixels": torch.zeros(2, 4, 16, 16, 3, dtype=torch.uint8)}, "pixels"),
        ({"pixels": torch.zeros(2, 3, 3, 16, 16, dtype=torch.uint8)}, "pixels"),
        ({"pixels": torch.zeros(2, dtype=torch.uint8)}, "pixels"),
        ({"pixels": None}, "either pixels or frame_features"),
        ({"frame_features": torch.zeros(2, 3, 5)}, "either pixels or frame_features"),
        ({"pixels": None, "frame_features": torch.zeros(2, 4, 5)}, "frame_features"),
    ],
)
def test_a_batch_whose_parts_do_not_fit_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(_batch(), **changes)


def test_the_order_of_work_sent_to_workers_is_small(split: Split) -> None:
    request = batch_loading.LoadRequest(tuple(range(64)), 3)
    assert len(pickle.dumps(request)) < 500


@pytest.mark.gpu
@pytest.mark.parametrize("num_workers", [0, 2])
def test_with_a_gpu_frames_come_in_pinned_memory(split: Split, num_workers: int) -> None:
    reader = FrameReader(RECIPE)
    for batch in one_epoch(split, reader, batch_size=4, seed=0, epoch=0, num_workers=num_workers):
        assert batch.pixels is not None and batch.pixels.is_pinned() and batch.frame_mask.is_pinned()
        moved = batch.to("cuda")
        assert {tensor.device.type for _, tensor in moved._tensors()} == {"cuda"}
        assert equal(moved.to("cpu"), batch)


# What goes wrong in workers.


@pytest.fixture
def quick_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_loading, "_CHECK_SECONDS", 0.3)
    # How long torch waits for a worker to end by itself.
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.3)


def _with_clip(split: Split, clip_id: str) -> Split:
    """The split with its fourth clip under another id."""
    clips = list(split.clips)
    clips[3] = replace(clips[3], id=clip_id)
    return replace(split, clips=tuple(clips))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_clip_arrives_as_the_error_it_was(
    split: Split, tmp_path: Path, num_workers: int
) -> None:
    clips = list(split.clips)
    clips[3] = Clip("v3", tmp_path / "broken.mp4")
    clips[3].path.write_text("nonsense")
    broken = replace(split, clips=tuple(clips))
    with pytest.raises(DatasetError) as caught:
        list(clip_batches(broken, FrameReader(RECIPE), 2, num_workers))
    assert str(caught.value) == (
        f"clip 'v3' cannot be read: not a video in any format we know ({clips[3].path})"
    )


@pytest.mark.usefixtures("quick_look")
def test_a_worker_that_a_decoder_takes_down_is_named_with_its_clip(split: Split) -> None:
    batches = clip_batches(_with_clip(split, "crash"), TreacherousReader(RECIPE), 2, num_workers=2)
    with pytest.raises(DatasetError, match=r"ended while it read clip 'crash' \(.*3\.mp4\)"):
        list(batches)


@pytest.mark.usefixtures("quick_look")
def test_a_worker_that_hangs_is_named_with_its_clip(split: Split) -> None:
    loader = batch_loading.ClipLoader(
        _with_clip(split, "hang").clips, TreacherousReader(RECIPE), num_workers=1, clip_timeout_seconds=1
    )
    requests = [batch_loading.LoadRequest((index,)) for index in range(6)]
    loaded = loader.load(requests)
    for _ in range(3):
        next(loaded)
    with pytest.raises(DatasetError, match=r"clip 'hang' takes longer than 1 s.*3\.mp4"):
        next(loaded)


@pytest.mark.usefixtures("quick_look")
def test_a_worker_that_is_ended_between_epochs_is_replaced(split: Split) -> None:
    loader = batch_loading.ClipLoader(split.clips, FrameReader(RECIPE), num_workers=1)
    requests = [batch_loading.LoadRequest((index, 0)) for index in range(6)]
    first = list(loader.load(requests))
    os.kill(int(loader._board[0, 2]), signal.SIGKILL)
    for (pixels, frame_mask), (again, mask_again) in zip(first, loader.load(requests), strict=True):
        assert torch.equal(pixels, again) and torch.equal(frame_mask, mask_again)


def test_frames_go_through_a_pipe_where_shared_memory_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, frame_mask = batch_loading.pad_frames([np.full((2, 4, 4, 3), 7, np.uint8)], 3)
    for free_bytes, kind in ((2 * pixels.nbytes, torch.Tensor), (2 * pixels.nbytes - 1, np.ndarray)):
        monkeypatch.setattr(batch_loading, "_free_shared_memory", lambda free_bytes=free_bytes: free_bytes)
        sent = batch_loading._to_send(pixels.clone(), frame_mask)
        assert isinstance(sent[0], kind) and isinstance(sent[1], np.ndarray)
        for received, original in zip(batch_loading._received(*sent), (pixels, frame_mask), strict=True):
            assert torch.equal(received, original)

    def refuse(tensor: torch.Tensor) -> None:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(batch_loading, "_free_shared_memory", lambda: sys.maxsize)
    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    assert isinstance(batch_loading._to_send(pixels.clone(), frame_mask)[0], np.ndarray)


@pytest.mark.parametrize(
    ("index", "idle_seconds", "message"),
    [
        (-1, batch_loading.LOST_SECONDS + 1, r"a batch was lost .*/dev/shm.*--shm-size.*num_workers"),
        (-1, None, "did not start within 300 s"),
        (0, batch_loading.LOST_SECONDS + 1, None),
        (-1, 1.0, None),
    ],
)
def test_a_batch_that_never_comes_is_not_awaited_for_ever(
    split: Split, index: int, idle_seconds: float | None, message: str | None
) -> None:
    loader = batch_loading.ClipLoader(split.clips, FrameReader(RECIPE), num_workers=2)
    now = time.monotonic()
    loader._asked_at = now - 301
    loader._board[0] = -1, now - batch_loading.LOST_SECONDS - 1, 1
    if idle_seconds is not None:
        loader._board[1] = index, now - idle_seconds, 2
    if message is None:
        loader._raise_if_lost()
        return
    with pytest.raises(DatasetError, match=message):
        loader._raise_if_lost()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_training_in_a_container_with_64_mb_of_shared_memory_comes_to_its_end() -> None:
    command = [sys.executable, "-m", "tests.faults.small_shared_memory"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    if "skipped" in result.stdout:
        pytest.skip(f"no mounts of our own here: {result.stdout}")
    assert result.returncode == 0, result.stdout + result.stderr


TRAINER = """
import sys, time
from pathlib import Path
from typing import Any
from model.preprocessing import Resizing
from training.data.loading import ClipLoader, LoadRequest
from training.datasets.split import Clip
from training.data.frames import FrameReader, FrameRecipe
if __name__ == "__main__":
    reader = FrameReader(FrameRecipe(3, Resizing(16)))
    loader = ClipLoader([Clip("v", Path(sys.argv[1]))], reader, num_workers=1)
    next(loader.load([LoadRequest((0,)), LoadRequest((0,))]))
    print(int(loader._board[0, 2]), flush=True)
    time.sleep(1000)
"""


@pytest.mark.slow
def test_readers_pass_over_ctrl_c_and_end_when_the_process_that_trains_is_killed(
    split: Split, tmp_path: Path
) -> None:
    program = tmp_path / "trainer.py"
    program.write_text(TRAINER)
    root = Path(__file__).parents[2]
    trainer = subprocess.Popen(
        [sys.executable, str(program), str(split.clips[0].path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert trainer.stdout is not None
    with trainer.stdout:
        worker = int(trainer.stdout.readline())
    os.kill(worker, signal.SIGINT)
    time.sleep(0.5)
    os.kill(worker, 0)  # It lives.
    trainer.kill()
    trainer.wait(10)
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            break
        time.sleep(0.2)
    else:
        pytest.fail("the reader outlived the process that it read for")
