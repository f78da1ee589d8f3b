"""Which texts and clips meet in which batch, and the batches themselves, their shapes checked.

    an epoch's order   7 2 9 0 | 4 1 8 3 | 6 5        a shuffle of all texts, by (seed, epoch) alone
    steps (batch 4)       0    |    1    | dropped
    two processes      7 2:9 0 | 4 1:8 3              process r gets slice r of every batch

So the batches are the same for any number of processes, and an epoch can be resumed at any step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.frames import FrameReader
from training.data.loading import ClipLoader, LoadRequest
from training.datasets.split import Split
from training.errors import ConfigError, DatasetError


def epoch_order(
    clip_of_text: Sequence[int], seed: int, epoch: int, one_text_per_clip: bool = False
) -> NDArray[np.int64]:
    """Indices of texts in the order of one epoch, int64 [T], or [V] with one text per clip.

    The order rests on raw random bits, which NumPy promises never to change (NEP 19).

    Args:
        clip_of_text: Ascending, as in `Split`.
        seed: 0 or more.
        epoch: 0 or more.
        one_text_per_clip: Every clip once, with one of its texts, an epoch later with the next one, so that
            n epochs show all of n texts. Otherwise every text once, its clip as often as it has texts, as in
            the official code.

    >>> epoch_order([0, 0, 1, 1], seed=0, epoch=0).tolist()
    [3, 2, 1, 0]
    """
    bits = np.random.PCG64(np.random.SeedSequence([seed, epoch]))
    if not one_text_per_clip:
        return np.argsort(bits.random_raw(len(clip_of_text)), kind="stable")
    counts = np.bincount(np.asarray(clip_of_text, dtype=np.int64))
    firsts = np.cumsum(counts) - counts
    # Each clip begins with a text of its own choice, by the seed alone, and moves on by one each epoch.
    starts = np.random.PCG64(np.random.SeedSequence([seed])).random_raw(len(counts))
    chosen = firsts + ((starts % counts.astype(np.uint64)).astype(np.int64) + epoch) % counts
    return chosen[np.argsort(bits.random_raw(len(counts)), kind="stable")]


@dataclass(frozen=True)
class BatchPlan:
    """How a split becomes batches.

    Attributes:
        batch_size: Pairs in a batch, of all processes together.
        seed: Of the order.
        one_text_per_clip: See `epoch_order`. No clip then meets its own other texts as false negatives.
        rank, world_size: This process, from 0, and how many processes share each batch equally.

    Raises:
        ConfigError: The numbers do not fit together.
    """

    batch_size: int
    seed: int
    one_text_per_clip: bool = False
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.world_size < 1 or not 0 <= self.rank < self.world_size:
            raise ConfigError(
                "batch_size and world_size are at least 1, and rank is from 0 to world_size - 1"
            )
        if self.batch_size % self.world_size:
            raise ConfigError(
                f"a batch of {self.batch_size} cannot be shared equally by {self.world_size} processes"
            )
        if self.seed < 0:
            raise ConfigError("seed is 0 or more")

    def num_steps(self, split: Split) -> int:
        """Batches of an epoch, without the incomplete last one (official).

        Raises:
            DatasetError: There is not one batch.
        """
        num_pairs = len(split.clips) if self.one_text_per_clip else len(split.texts)
        if num_pairs < self.batch_size:
            raise DatasetError(
                f"{num_pairs} pairs of a text and a clip do not fill one batch of {self.batch_size}: choose a"
                " smaller batch_size"
            )
        return num_pairs // self.batch_size

    def order(self, split: Split, epoch: int) -> NDArray[np.int64]:
        """The texts of an epoch in their order, see `epoch_order`."""
        return epoch_order(split.clip_of_text, self.seed, epoch, self.one_text_per_clip)

    def whole_batch(self, order: NDArray[np.int64], step: int) -> NDArray[np.int64]:
        """The texts of a step, of all processes together: int64 [batch_size]."""
        return order[step * self.batch_size : (step + 1) * self.batch_size]

    def own_slice(self, order: NDArray[np.int64], step: int) -> NDArray[np.int64]:
        """This process's texts of a step: int64 [batch_size // world_size]."""
        share = self.batch_size // self.world_size
        return self.whole_batch(order, step)[self.rank * share : (self.rank + 1) * share]


Tokenize = Callable[[Sequence[str]], Tensor]
"""Texts to token ids, int64 [T, W], as `model.tokenize` does."""


class _Tensors:
    """What both kinds of batches do with their fields, each a tensor or None."""

    def __len__(self) -> int:
        return len(self.clip_index)  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        parts = []
        for name, tensor in self._tensors():
            kind = str(tensor.dtype).removeprefix("torch.")
            parts.append(f"{name}={kind} {list(tensor.shape)}")
        return f"{type(self).__name__}({', '.join(parts)})"

    def to(self, device: torch.device | str) -> Self:
        """The same batch on a device. From pinned memory to a GPU, this returns before the copy is done."""
        non_blocking = torch.device(device).type != "cpu"  # A copy to the CPU is not awaited by anything.
        moved = {name: tensor.to(device, non_blocking=non_blocking) for name, tensor in self._tensors()}
        return replace(self, **moved)  # type: ignore[type-var]

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for field in fields(self):  # type: ignore[arg-type]
            tensor = getattr(self, field.name)
            if tensor is not None:
                yield field.name, tensor


@dataclass(repr=False)
class Batch(_Tensors):
    """N pairs of a text and a clip.

    Attributes:
        text_index, clip_index: int64 [N], positions in the split.
        input_ids: int64 [N, W].
        frame_mask: bool [N, F], true for real frames, at least one in each row.
        pixels: uint8 [N, F, R, R, 3], zeros where the mask is false.
        frame_features: Instead of pixels, float32 [N, F, D].

    Raises:
        ValueError: These do not fit together.
    """

    text_index: Tensor
    clip_index: Tensor
    input_ids: Tensor
    frame_mask: Tensor
    pixels: Tensor | None = None
    frame_features: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.pixels is None) == (self.frame_features is None):
            raise ValueError("a batch has either pixels or frame_features")
        rows = len(self.clip_index)
        _check("text_index", self.text_index, torch.int64, (rows,))
        _check("clip_index", self.clip_index, torch.int64, (rows,))
        _check("input_ids", self.input_ids, torch.int64, (rows, None))
        _check_frames(rows, self.frame_mask, self.pixels)
        if self.frame_features is not None:
            shape = (rows, self.frame_mask.shape[1], None)
            _check("frame_features", self.frame_features, torch.float32, shape)


@dataclass(repr=False)
class ClipBatch(_Tensors):
    """N clips: clip_index int64 [N], frame_mask bool [N, F], pixels uint8 [N, F, R, R, 3], as in `Batch`."""

    clip_index: Tensor
    frame_mask: Tensor
    pixels: Tensor

    def __post_init__(self) -> None:
        rows = len(self.clip_index)
        _check("clip_index", self.clip_index, torch.int64, (rows,))
        _check_frames(rows, self.frame_mask, self.pixels)


@dataclass(frozen=True, eq=False)
class FrameFeatures:
    """The vision tower's output for all V clips of a split: float32 [V, F, D], and their bool [V, F] mask."""

    features: Tensor
    frame_mask: Tensor


class TrainingBatches:
    """A split as batches, epoch after epoch. Close it, or use it as a context manager, to end its workers.

    The batches depend on split, seed and epoch, never on processes or workers.
    """

    def __init__(
        self,
        split: Split,
        tokenizer: Tokenize,
        frames: FrameReader | FrameFeatures,
        plan: BatchPlan,
        num_workers: int = 0,
    ) -> None:
        """Check that all fits; nothing is read yet.

        Args:
            split: What to learn from.
            tokenizer: As `model.tokenize`.
            frames: What reads the clips; or their features, given instead of pixels, and nothing is decoded.
            plan: Which texts and clips meet in which batch.
            num_workers: Processes that decode, 0 for this one.

        Raises:
            ConfigError: Numbers that do not fit.
            DatasetError: The split does not fill one batch.
        """
        if num_workers < 0:
            raise ConfigError("num_workers is 0 or more")
        self.num_steps = plan.num_steps(split)
        self._split, self._tokenizer, self.plan = split, tokenizer, plan
        self._clip_of_text = torch.tensor(split.clip_of_text)
        self._frames: ClipLoader | FrameFeatures
        if isinstance(frames, FrameReader):
            self._frames = ClipLoader(split.clips, frames, num_workers)
            return
        for field in fields(frames):
            num_clips = len(getattr(frames, field.name))
            if num_clips != len(split.clips):
                raise ConfigError(f"{field.name} of {num_clips} clips, but {split} has {len(split.clips)}")
        self._frames = frames

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from `first_step` on: those that would have come then.

        Raises:
            ConfigError: There is no such epoch or step.
            DatasetError: A clip cannot be read; the message names it. Raised at its batch.
        """
        if epoch < 0 or not 0 <= first_step <= self.num_steps:
            raise ConfigError(f"epoch {epoch}, step {first_step}: there are {self.num_steps} steps, from 0")
        return self._epoch(epoch, first_step)

    def close(self) -> None:
        """End the workers."""
        if isinstance(self._frames, ClipLoader):
            self._frames.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _epoch(self, epoch: int, first_step: int) -> Iterator[Batch]:
        order = self.plan.order(self._split, epoch)
        steps = range(first_step, self.num_steps)
        text_indices = [torch.from_numpy(self.plan.own_slice(order, step).copy()) for step in steps]
        clip_indices = [self._clip_of_text[text_index] for text_index in text_indices]
        if isinstance(self._frames, FrameFeatures):
            features, frame_mask = self._frames.features, self._frames.frame_mask
            for text_index, clip_index in zip(text_indices, clip_indices, strict=True):
                rows = clip_index.to(features.device)
                yield self._batch(
                    text_index, clip_index, frame_mask=frame_mask[rows], frame_features=features[rows]
                )
            return
        requests = [LoadRequest(tuple(clip_index.tolist()), epoch) for clip_index in clip_indices]
        loaded = self._frames.load(requests)
        for text_index, clip_index, (pixels, mask) in zip(text_indices, clip_indices, loaded, strict=True):
            yield self._batch(text_index, clip_index, frame_mask=mask, pixels=pixels)

    def _batch(self, text_index: Tensor, clip_index: Tensor, **frames: Tensor) -> Batch:
        texts = [self._split.texts[index] for index in text_index.tolist()]
        return Batch(text_index, clip_index, self._tokenizer(texts), **frames)


def clip_batches(
    split: Split, reader: FrameReader, batch_size: int, num_workers: int = 0
) -> Iterator[ClipBatch]:
    """All clips of a split in their order, `batch_size` at a time, the last batch shorter where it must be.

    Raises:
        DatasetError: A clip cannot be read; the message names it.
    """
    if batch_size < 1 or num_workers < 0:
        raise ConfigError("batch_size is at least 1 and num_workers 0 or more")
    groups = torch.split(torch.arange(len(split.clips)), batch_size)
    loader = ClipLoader(split.clips, reader, num_workers)
    loaded = loader.load([LoadRequest(tuple(group.tolist())) for group in groups])
    return (
        ClipBatch(group, frame_mask, pixels)
        for group, (pixels, frame_mask) in zip(groups, loaded, strict=True)
    )


def _check_frames(rows: int, frame_mask: Tensor, pixels: Tensor | None) -> None:
    _check("frame_mask", frame_mask, torch.bool, (rows, None))
    if pixels is not None:
        side = pixels.shape[2] if pixels.dim() == 5 else None
        _check("pixels", pixels, torch.uint8, (rows, frame_mask.shape[1], side, side, 3))


def _check(name: str, tensor: Tensor, kind: torch.dtype, shape: tuple[int | None, ...]) -> None:
    """Raise ValueError on another dtype or shape; None in `shape` stands for any length."""
    fits = tensor.dim() == len(shape) and all(
        wanted is None or length == wanted for length, wanted in zip(tensor.shape, shape, strict=True)
    )
    if tensor.dtype != kind or not fits:
        wanted = [length if length is not None else "any" for length in shape]
        raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}, not {kind} {wanted}")
