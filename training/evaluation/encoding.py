"""A split's features, kept on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, TypeVar

import torch

from model import TextFeatures, VideoFeatures, XClip
from training.errors import EvaluationError

if TYPE_CHECKING:
    from training.datasets.split import Split
    from training.frames import FrameReader

OnProgress = Callable[[str, int, int], None]
"""Called with what is being done ("texts", "clips", "pairs"), how many are done, and how many there are."""

TEXTS_AT_ONCE = 256
"""Texts encoded together. A text costs little memory beside a clip."""

Features = TypeVar("Features", TextFeatures, VideoFeatures)


@dataclass(frozen=True)
class EncodedSplit:
    """Features of T texts and V clips on the CPU. clip_of_text: for each text the position of its clip."""

    text: TextFeatures
    video: VideoFeatures
    clip_of_text: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.text) != len(self.clip_of_text):
            raise EvaluationError(f"features of {len(self.text)} texts for {len(self.clip_of_text)}")


@contextmanager
def evaluation_mode(model: XClip) -> Iterator[None]:
    """The model in evaluation mode and without gradients inside, as it was outside."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if was_training:
            model.train()


def encode_split(
    model: XClip,
    split: Split,
    reader: FrameReader,
    *,
    batch_size: int = 32,
    num_workers: int = 0,
    dtype: torch.dtype = torch.float32,
    on_progress: OnProgress | None = None,
) -> EncodedSplit:
    """Features of every text and clip of a split, encoded on the model's device, kept on the CPU.

    batch_size: clips encoded together. num_workers: processes that decode.
    dtype: of the kept features; torch.float16 halves the memory and moves scores by about 1e-3 of their size.
    A text takes 4 x D x (1 + W) bytes, a clip 4 x D x (1 + F): 67 KB and 27 KB for ViT-B/32.
    Raises DatasetError where a clip cannot be read and the reader does not allow it.
    """
    from training.batches import clip_batches

    with evaluation_mode(model):
        text = encode_texts(model, split.texts, dtype=dtype, on_progress=on_progress)
        parts = []
        num_done = 0
        for batch in clip_batches(split, reader, batch_size, num_workers=num_workers):
            video = model.encode_video(model.normalize_pixels(batch.pixels), batch.frame_mask)
            parts.append(keep_on_cpu(video, dtype))
            num_done += len(video)
            if on_progress is not None:
                on_progress("clips", num_done, len(split.clips))
    return EncodedSplit(text, VideoFeatures.cat(parts), split.clip_of_text)


def encode_texts(
    model: XClip,
    texts: tuple[str, ...],
    *,
    dtype: torch.dtype = torch.float32,
    on_progress: OnProgress | None = None,
) -> TextFeatures:
    """Features of T texts on the CPU, encoded TEXTS_AT_ONCE at a time."""
    parts = []
    with evaluation_mode(model):
        for first in range(0, len(texts), TEXTS_AT_ONCE):
            some = list(texts[first : first + TEXTS_AT_ONCE])
            parts.append(keep_on_cpu(model.encode_text(some), dtype))
            if on_progress is not None:
                on_progress("texts", first + len(some), len(texts))
    return TextFeatures.cat(parts)


def keep_on_cpu(features: Features, dtype: torch.dtype) -> Features:
    """The same features on the CPU, floats as `dtype`, masks as they are."""
    moved = features.to("cpu")
    floats = {
        field.name: tensor.to(dtype)
        for field in fields(moved)
        if (tensor := getattr(moved, field.name)) is not None and tensor.is_floating_point()
    }
    return replace(moved, **floats)
