"""A split's features, kept on the CPU.

Scores of every text with every clip, in blocks: memory grows with the result alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from model import TextFeatures, VideoFeatures, XClip
from training.errors import EvaluationError

if TYPE_CHECKING:
    from training.data.frames import FrameReader
    from training.datasets.split import Split

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
    from training.data.batches import clip_batches

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


SCORES = ("total", "video_sentence", "video_word", "sentence_frame", "frame_word")
"""What can be asked for: the fields of `model.Scores`."""

SCORED_TEXTS_AT_ONCE, CLIPS_AT_ONCE = 128, 1024
"""Size of a block. Its features, at most 35 MB for ViT-B/32, are what is moved to the device at once, and its
five scores take 2.6 MB; within a block the model works in smaller pieces still."""


@dataclass(frozen=True, eq=False)
class Block:
    """Some rows and columns of a similarity matrix. scores: float32 [rows, columns] each."""

    rows: slice
    columns: slice
    scores: dict[str, NDArray[np.float32]]


def similarity(
    model: XClip,
    text: TextFeatures,
    video: VideoFeatures,
    *,
    score: str = "total",
    texts_at_once: int = SCORED_TEXTS_AT_ONCE,
    clips_at_once: int = CLIPS_AT_ONCE,
    on_progress: OnProgress | None = None,
) -> NDArray[np.float32]:
    """float32 [T, V] on the CPU: `score` of every text with every clip, times exp(logit_scale).

    score: one of SCORES. Features may be anywhere and of any float type.
    """
    return score_matrices(
        model,
        text,
        video,
        (score,),
        texts_at_once=texts_at_once,
        clips_at_once=clips_at_once,
        on_progress=on_progress,
    )[score]


def score_matrices(
    model: XClip,
    text: TextFeatures,
    video: VideoFeatures,
    names: Sequence[str] = SCORES,
    *,
    texts_at_once: int = SCORED_TEXTS_AT_ONCE,
    clips_at_once: int = CLIPS_AT_ONCE,
    on_progress: OnProgress | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Several scores at once, each float32 [T, V] on the CPU. Raises EvaluationError on an unknown name."""
    if unknown := set(names) - set(SCORES):
        raise EvaluationError(f"no such score: {', '.join(sorted(unknown))}; there are {', '.join(SCORES)}")
    matrices = {name: np.empty((len(text), len(video)), np.float32) for name in names}
    num_done = 0
    for block in score_blocks(
        model, text, video, names, texts_at_once=texts_at_once, clips_at_once=clips_at_once
    ):
        for name, values in block.scores.items():
            matrices[name][block.rows, block.columns] = values
        num_done += next(iter(block.scores.values())).size
        if on_progress is not None:
            on_progress("pairs", num_done, len(text) * len(video))
    return matrices


def score_blocks(
    model: XClip,
    text: TextFeatures,
    video: VideoFeatures,
    names: Sequence[str] = ("total",),
    *,
    texts_at_once: int = SCORED_TEXTS_AT_ONCE,
    clips_at_once: int = CLIPS_AT_ONCE,
) -> Iterator[Block]:
    """The blocks themselves, for what needs no whole matrix: for each stretch of clips, all texts in turn."""
    with evaluation_mode(model):
        for first_clip in range(0, len(video), clips_at_once):
            columns = slice(first_clip, min(first_clip + clips_at_once, len(video)))
            some_clips = video[columns].to(model.device)
            for first_text in range(0, len(text), texts_at_once):
                rows = slice(first_text, min(first_text + texts_at_once, len(text)))
                scores = model.score(text[rows].to(model.device), some_clips)
                yield Block(
                    rows, columns, {name: getattr(scores, name).float().cpu().numpy() for name in names}
                )


def coarse_similarity(model: XClip, text: TextFeatures, video: VideoFeatures) -> NDArray[np.float32]:
    """float32 [T, V] on the CPU: the inner product that the coarse index ranks by, without exp(logit_scale).

    One product of `coarse_query` [T, D] and the video features [V, D], as `IndexFlatIP` computes it.
    """
    coarse = np.empty((len(text), len(video)), np.float32)
    features = video.video.float()
    with evaluation_mode(model):
        for first in range(0, len(text), SCORED_TEXTS_AT_ONCE):
            query = model.coarse_query(text[first : first + SCORED_TEXTS_AT_ONCE].to(model.device)).cpu()
            coarse[first : first + SCORED_TEXTS_AT_ONCE] = torch.matmul(query, features.T).numpy()
    return coarse
