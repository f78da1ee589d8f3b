"""Scores of every text with every clip, in blocks: memory grows with the result alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from model import TextFeatures, VideoFeatures, XClip
from training.errors import EvaluationError
from training.evaluation.encoding import OnProgress, evaluation_mode

SCORES = ("total", "video_sentence", "video_word", "sentence_frame", "frame_word")
"""What can be asked for: the fields of `model.Scores`."""

TEXTS_AT_ONCE, CLIPS_AT_ONCE = 128, 1024
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
    texts_at_once: int = TEXTS_AT_ONCE,
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
    texts_at_once: int = TEXTS_AT_ONCE,
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
    texts_at_once: int = TEXTS_AT_ONCE,
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
        for first in range(0, len(text), TEXTS_AT_ONCE):
            query = model.coarse_query(text[first : first + TEXTS_AT_ONCE].to(model.device)).cpu()
            coarse[first : first + TEXTS_AT_ONCE] = torch.matmul(query, features.T).numpy()
    return coarse
