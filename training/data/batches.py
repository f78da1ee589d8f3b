"""Batches of training and evaluation: what the network gets, with its shapes checked.

Which texts and clips meet in which batch. Pure functions over numbers; nothing here opens a file.

    an epoch's order   7 2 9 0 | 4 1 8 3 | 6 5        a shuffle of all texts, by (seed, epoch) alone
    steps (batch 4)       0    |    1    | dropped
    two processes      7 2:9 0 | 4 1:8 3              process r gets slice r of every batch

So the batches are the same for any number of processes, and an epoch can be taken up at any step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from types import TracebackType
from typing import Any, Self

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

    clip_of_text: ascending, as in `Split`. seed, epoch: 0 or more.
    one_text_per_clip: every clip once, with one of its texts; an epoch later with the next one, so that n
    epochs show all of n texts. Else every text once, its clip as often as it has texts, as in the official
    code. The order rests on raw random bits, which NumPy promises never to change (NEP 19).
    """
    bits = np.random.PCG64(np.random.SeedSequence([seed, epoch]))
    if not one_text_per_clip:
        return np.argsort(bits.random_raw(len(clip_of_text)), kind="stable")
    counts = np.bincount(np.asarray(clip_of_text, dtype=np.int64))
    firsts = np.cumsum(counts) - counts
    starts = np.random.PCG64(np.random.SeedSequence([seed])).random_raw(len(counts))
    chosen = firsts + ((starts % counts.astype(np.uint64)).astype(np.int64) + epoch) % counts
    return chosen[np.argsort(bits.random_raw(len(counts)), kind="stable")]


def num_steps(num_pairs: int, batch_size: int) -> int:
    """Batches of an epoch of `num_pairs` texts (clips, with one text per clip), without the incomplete one.

    Raises DatasetError where there is not one batch.
    """
    if num_pairs < batch_size:
        raise DatasetError(
            f"{num_pairs} pairs of a text and a clip do not fill one batch of {batch_size}: choose a smaller"
            " batch_size"
        )
    return num_pairs // batch_size


def check_sharing(batch_size: int, rank: int, world_size: int) -> None:
    """Raise ConfigError where batches of `batch_size` cannot be shared equally by `world_size` processes."""
    if batch_size < 1 or world_size < 1 or not 0 <= rank < world_size:
        raise ConfigError("batch_size and world_size are at least 1, and rank is from 0 to world_size - 1")
    if batch_size % world_size:
        raise ConfigError(f"a batch of {batch_size} cannot be shared equally by {world_size} processes")


def batch_of(
    order: NDArray[np.int64], step: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> NDArray[np.int64]:
    """What a process sees of a step: its slice of the batch. int64 [batch_size // world_size].

    order: from `epoch_order`.
    """
    share = batch_size // world_size
    first = step * batch_size + rank * share
    return order[first : first + share]


Tokenize = Callable[[Sequence[str]], Tensor]
"""Texts to token ids, int64 [T, W], as `model.tokenize` does."""


class _Tensors:
    """What both kinds of batches can do with their fields, tensors or None."""

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
        non_blocking = torch.device(device).type != "cpu"  # To the CPU nothing would wait for the copy.
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

    text_index, clip_index: int64 [N], positions in the split. input_ids: int64 [N, W].
    frame_mask: bool [N, F], true for real frames, at least one in each row.
    pixels: uint8 [N, F, R, R, 3], zeros where the mask is false; or, instead, frame_features: float32
    [N, F, D].
    Raises ValueError where these do not fit together.
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


class TrainingBatches:
    """A split as batches, epoch after epoch. Close it, or use it as a context manager, to end its workers.

    tokenizer: as `model.tokenize`. batch_size: of all processes together; process `rank` of `world_size` gets
    its equal slice. The batches depend on split, seed and epoch, never on processes or workers.
    one_text_per_clip: every clip once in an epoch, with a text that changes from epoch to epoch, instead of
    every text once (official). Then no clip meets its own other texts as false negatives. The incomplete
    batch at the end of an epoch is left out (official).
    frame_features: (features float32 [V, F, D], frame_mask bool [V, F]) of all clips, which are then given
    instead of pixels; nothing is decoded and `reader` may be None.
    Raises ConfigError where the numbers do not fit, DatasetError where the split does not fill one batch.
    """

    def __init__(
        self,
        split: Split,
        tokenizer: Tokenize,
        reader: FrameReader | None,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        one_text_per_clip: bool = False,
        frame_features: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        check_sharing(batch_size, rank, world_size)
        if seed < 0 or num_workers < 0:
            raise ConfigError("seed and num_workers are 0 or more")
        self.num_steps = steps_of_epoch(split, batch_size, one_text_per_clip)
        self._split, self._tokenizer = split, tokenizer
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size
        self._seed, self._one_text_per_clip = seed, one_text_per_clip
        self._clip_of_text = torch.tensor(split.clip_of_text)
        self._frame_features = frame_features
        self._loader: ClipLoader | None = None
        if frame_features is not None:
            for name, tensor in zip(("features", "frame_mask"), frame_features, strict=True):
                if len(tensor) != len(split.clips):
                    raise ConfigError(f"{name} of {len(tensor)} clips, but {split} has {len(split.clips)}")
        elif reader is None:
            raise ConfigError("batches need a reader or frame_features")
        else:
            self._loader = ClipLoader(split.clips, reader, num_workers)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from `first_step` on: those that would have come then.

        Raises DatasetError, naming the clip, where one cannot be read.
        """
        if epoch < 0 or not 0 <= first_step <= self.num_steps:
            raise ConfigError(f"epoch {epoch}, step {first_step}: there are {self.num_steps} steps, from 0")
        return self._epoch(epoch, first_step)

    def close(self) -> None:
        """End the workers."""
        if self._loader is not None:
            self._loader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _epoch(self, epoch: int, first_step: int) -> Iterator[Batch]:
        order = epoch_order(self._split.clip_of_text, self._seed, epoch, self._one_text_per_clip)
        text_indices = [
            torch.from_numpy(batch_of(order, step, self._batch_size, self._rank, self._world_size).copy())
            for step in range(first_step, self.num_steps)
        ]
        clip_indices = [self._clip_of_text[text_index] for text_index in text_indices]
        if self._loader is None:
            assert self._frame_features is not None
            features, frame_mask = self._frame_features
            for text_index, clip_index in zip(text_indices, clip_indices, strict=True):
                rows = clip_index.to(features.device)
                yield self._batch(
                    text_index, clip_index, frame_mask=frame_mask[rows], frame_features=features[rows]
                )
            return
        requests = [LoadRequest(tuple(clip_index.tolist()), epoch) for clip_index in clip_indices]
        loaded = self._loader.load(requests)
        for text_index, clip_index, (pixels, frame_mask) in zip(
            text_indices, clip_indices, loaded, strict=True
        ):
            yield self._batch(text_index, clip_index, frame_mask=frame_mask, pixels=pixels)

    def _batch(self, text_index: Tensor, clip_index: Tensor, **frames: Any) -> Batch:
        texts = [self._split.texts[index] for index in text_index.tolist()]
        return Batch(text_index, clip_index, self._tokenizer(texts), **frames)


def steps_of_epoch(split: Split, batch_size: int, one_text_per_clip: bool) -> int:
    """Batches of an epoch, see `TrainingBatches`. Raises DatasetError where there is not one."""
    return num_steps(len(split.clips) if one_text_per_clip else len(split.texts), batch_size)


def clip_batches(
    split: Split, reader: FrameReader, batch_size: int, num_workers: int = 0
) -> Iterator[ClipBatch]:
    """All clips of a split in their order, `batch_size` at a time, the last batch as long as it is.

    Raises DatasetError, naming the clip, where one cannot be read.
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
    """shape: None where any length will do."""
    fits = tensor.dim() == len(shape) and all(
        wanted is None or length == wanted for length, wanted in zip(tensor.shape, shape, strict=True)
    )
    if tensor.dtype != kind or not fits:
        wanted = [length if length is not None else "any" for length in shape]
        raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}, not {kind} {wanted}")
