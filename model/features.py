"""Containers for what the network returns. Each checks its shapes once, at construction.

Dimension letters: T texts, V videos, W words, F frames, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.errors import ShapeError
from model.quantization import dequantized


class _Rows:
    """Tensors that share their first dimension: slicing, joining and moving act on all of them.

    An optional tensor is the last field and may be None.
    """

    def __len__(self) -> int:
        return int(next(self.tensors()).shape[0])

    def __getitem__(self, rows: slice | Tensor | Sequence[int]) -> Self:
        if not isinstance(rows, slice | Tensor):
            rows = torch.as_tensor(rows, dtype=torch.long)
        return type(self)(*(tensor[rows] for tensor in self.tensors()))

    def to(self, device: torch.device | str) -> Self:
        """The same features on `device`."""
        return type(self)(*(tensor.to(device) for tensor in self.tensors()))

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Join `parts` along the first dimension.

        Raises:
            ShapeError: There are no parts, or only some have the optional tensor.
        """
        if not parts:
            raise ShapeError(f"cannot join an empty list of {cls.__name__}")
        columns = [list(part.tensors()) for part in parts]
        if len({len(column) for column in columns}) > 1:
            raise ShapeError(f"some of these {cls.__name__} have an optional tensor and some do not")
        return cls(*(torch.cat(column) for column in zip(*columns, strict=True)))

    def tensors(self) -> Iterator[Tensor]:
        """Those that are not None, in the order of the fields."""
        return (tensor for _, tensor in self._named_tensors())

    def _named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        for field in fields(self):  # type: ignore[arg-type]
            tensor = getattr(self, field.name)
            if tensor is not None:
                yield field.name, tensor

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}={list(tensor.shape)}" for name, tensor in self._named_tensors())
        return f"{type(self).__name__}({shapes})"


def _require(condition: bool, owner: Any, expected: str) -> None:
    if not condition:
        raise ShapeError(f"{owner!r}: expected {expected}")


@dataclass(frozen=True, repr=False)
class TextFeatures(_Rows):
    """Features of T texts, unit length.

    Attributes:
        sentence: float [T, D].
        words: float [T, W, D], every position: start, words, end and padding (zeros where the model masks
            it).
        word_mask: bool [T, W], true from the start token to the first end token.
        word_weights: float [T, W], not negative, what each word counts where words are averaged, 0 for
            padding; None where all count the same (`XClipConfig.word_weighting`).

    Raises:
        ShapeError: Tensors of other shapes or types.
    """

    sentence: Tensor
    words: Tensor
    word_mask: Tensor
    word_weights: Tensor | None = None

    def __post_init__(self) -> None:
        num_texts, dimension = self.sentence.shape
        _require(
            self.words.ndim == 3 and self.words.shape[0] == num_texts and self.words.shape[2] == dimension,
            self,
            "sentence [T, D] and words [T, W, D]",
        )
        _require(self.word_mask.shape == self.words.shape[:2], self, "word_mask [T, W]")
        _require(self.word_mask.dtype == torch.bool, self, "a boolean word_mask")
        _require(
            self.word_weights is None or self.word_weights.shape == self.word_mask.shape,
            self,
            "word_weights [T, W]",
        )


@dataclass(frozen=True, repr=False)
class VideoFeatures(_Rows):
    """Features of V videos (or segments of videos), unit length.

    Attributes:
        video: float [V, D].
        frames: float [V, F, D], from before the temporal transformer; padding frames hold their encoding, or
            zeros where the model masks padding.
        frame_mask: bool [V, F], true for real frames.

    Raises:
        ShapeError: Tensors of other shapes or types.
    """

    video: Tensor
    frames: Tensor
    frame_mask: Tensor

    def __post_init__(self) -> None:
        num_videos, dimension = self.video.shape
        _require(
            self.frames.ndim == 3
            and self.frames.shape[0] == num_videos
            and self.frames.shape[2] == dimension,
            self,
            "video [V, D] and frames [V, F, D]",
        )
        _require(self.frame_mask.shape == self.frames.shape[:2], self, "frame_mask [V, F]")
        _require(self.frame_mask.dtype == torch.bool, self, "a boolean frame_mask")


@dataclass(frozen=True, eq=False)
class VideoRecords:
    """V videos where they lie in a table of N, for scores that read them there instead of in a copy.

    Attributes:
        video: float32 [N, D], on a processor, as all that follows.
        frames: float [N, F, D], or int8 [N, F, D + 4] as `model.quantization.quantized` makes them.
        numbers: int64 [V], which of the N, in which order; from 0 to N - 1, which is not checked.
        frame_mask: bool [V, F], true for real frames.
    """

    video: Tensor
    frames: Tensor
    numbers: NDArray[np.int64]
    frame_mask: Tensor

    def __len__(self) -> int:
        return len(self.numbers)

    def copied(self) -> VideoFeatures:
        """The V videos in memory of their own, frames of 8 bits as float16."""
        # NumPy takes on one thread: PyTorch's wait for each other, on a busy machine longer than this.
        video, frames = (
            table.numpy().take(self.numbers, axis=0, mode="clip") for table in (self.video, self.frames)
        )
        if frames.dtype == np.int8:
            frames = dequantized(frames)
        return VideoFeatures(torch.from_numpy(video), torch.from_numpy(frames), self.frame_mask)


@dataclass(frozen=True, repr=False)
class Scores(_Rows):
    """The four scores and their mean, each float32 [T, V], already times exp(logit_scale).

    What was not asked for is NaN, and so is a total of which a part was not asked for.

    Attributes:
        video_sentence: The sentence, mapped by the global matrix, with the video.
        video_word: The video with each word.
        sentence_frame: The sentence with each frame.
        frame_word: Each word, mapped by the local matrix, with each frame.
        total: The mean of the scores that the model's config names (all four for X-CLIP checkpoints).
    """

    video_sentence: Tensor
    video_word: Tensor
    sentence_frame: Tensor
    frame_word: Tensor
    total: Tensor

    def __post_init__(self) -> None:
        for tensor in self.tensors():
            _require(tensor.shape == self.total.shape and tensor.ndim == 2, self, "five tensors [T, V]")
