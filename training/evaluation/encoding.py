"""Features of a split, kept on the CPU, and the scores of every text with every clip, in blocks.

Memory grows with the features and the result alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from model import TextFeatures, VideoFeatures, XClip
from training.data.batches import clip_batches
from training.data.frames import FrameReader
from training.datasets.split import Split
from training.errors import EvaluationError

OnProgress = Callable[[str, int, int], None]
"""Called with what is being done ("texts", "clips", "pairs"), how many are done, and how many there are."""

TEXTS_AT_ONCE = 256
"""Texts encoded together. A text costs little memory compared with a clip."""

Features = TypeVar("Features", TextFeatures, VideoFeatures)


@dataclass(frozen=True)
class EncodedSplit:
    """Features of T texts and V clips on the CPU.

    Attributes:
        clip_of_text: For each text the position of its clip.
    """

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


@dataclass(frozen=True)
class EncodingOptions:
    """How a split is encoded.

    Attributes:
        batch_size: Clips encoded together.
        num_workers: Processes that decode, 0 for this one.
        dtype: Of the features that are kept. torch.float16 halves their memory and moves scores by about 1e-3
            of their size. In float32 a text takes 4 x D x (1 + W) bytes, a clip 4 x D x (1 + F): 67 KB and
            27 KB for ViT-B/32.
    """

    batch_size: int = 32
    num_workers: int = 0
    dtype: torch.dtype = torch.float32


DEFAULT_ENCODING = EncodingOptions()


def encode_split(
    model: XClip,
    split: Split,
    reader: FrameReader,
    options: EncodingOptions = DEFAULT_ENCODING,
    on_progress: OnProgress | None = None,
) -> EncodedSplit:
    """Features of every text and clip of a split, encoded on the model's device, kept on the CPU.

    Raises:
        DatasetError: A clip cannot be read.
    """
    with evaluation_mode(model):
        text = encode_texts(model, split.texts, dtype=options.dtype, on_progress=on_progress)
        parts = []
        num_done = 0
        for batch in clip_batches(split, reader, options.batch_size, options.num_workers):
            video = model.encode_video(model.normalize_pixels(batch.pixels), batch.frame_mask)
            parts.append(keep_on_cpu(video, options.dtype))
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

BLOCK_SHAPE = (128, 1024)
"""Texts and clips scored together. Their features, at most 35 MB for ViT-B/32, are moved to the device at
once, and their five scores take 2.6 MB; within a block the model works in smaller pieces still."""

MIN_PAIRS_COMPILED = 100_000
"""From as many on, loading the compiled kernel, a second, is less than what it saves, ten microseconds a
pair."""


def similarity(
    model: XClip,
    text: TextFeatures,
    video: VideoFeatures,
    score: str = "total",
    block_shape: tuple[int, int] = BLOCK_SHAPE,
    on_progress: OnProgress | None = None,
) -> NDArray[np.float32]:
    """float32 [T, V] on the CPU: `score` of every text with every clip, times exp(logit_scale).

    Features may be anywhere and of any float type.

    Args:
        score: One of SCORES.
    """
    return score_matrices(model, text, video, (score,), block_shape, on_progress)[score]


def score_matrices(
    model: XClip,
    text: TextFeatures,
    video: VideoFeatures,
    names: Sequence[str] = SCORES,
    block_shape: tuple[int, int] = BLOCK_SHAPE,
    on_progress: OnProgress | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Several score matrices in one pass, each float32 [T, V] on the CPU.

    Many pairs are scored on a processor by the compiled kernel, where it can be had (`XClip.prepare`).

    Raises:
        EvaluationError: An unknown name.
    """
    if unknown := set(names) - set(SCORES):
        raise EvaluationError(f"no such score: {', '.join(sorted(unknown))}; there are {', '.join(SCORES)}")
    wanted = set(names) - {"total"} | set(model.config.score_names if "total" in names else ())
    matrices = {name: np.empty((len(text), len(video)), np.float32) for name in names}
    texts_per_block, clips_per_block = block_shape
    num_done = 0
    if model.device.type == "cpu" and len(text) * len(video) >= MIN_PAIRS_COMPILED:
        model.prepare("scores")
    with evaluation_mode(model):
        # Clips outside: a clip's features, moved once for all texts, are the larger.
        for first_clip in range(0, len(video), clips_per_block):
            columns = slice(first_clip, first_clip + clips_per_block)
            some_clips = video[columns].to(model.device)
            for first_text in range(0, len(text), texts_per_block):
                rows = slice(first_text, first_text + texts_per_block)
                some_texts = text[rows].to(model.device)
                scores = model.score(some_texts, some_clips, wanted)
                for name, matrix in matrices.items():
                    matrix[rows, columns] = getattr(scores, name).float().cpu().numpy()
                num_done += len(some_texts) * len(some_clips)
                if on_progress is not None:
                    on_progress("pairs", num_done, len(text) * len(video))
    return matrices


def coarse_similarity(model: XClip, text: TextFeatures, video: VideoFeatures) -> NDArray[np.float32]:
    """float32 [T, V] on the CPU: the inner product that the coarse index ranks by, without exp(logit_scale).

    One product of `coarse_query` [T, D] and the video features [V, D], as `IndexFlatIP` computes it.
    """
    coarse = np.empty((len(text), len(video)), np.float32)
    features = video.video.float()
    with evaluation_mode(model):
        for first in range(0, len(text), BLOCK_SHAPE[0]):
            rows = slice(first, first + BLOCK_SHAPE[0])
            query = model.coarse_query(text[rows].to(model.device)).cpu()
            coarse[rows] = torch.matmul(query, features.T).numpy()
    return coarse
