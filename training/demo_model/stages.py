"""The two stages: pictures, then videos on frozen frame features.

Learning from videos at once stays at chance on a corpus this small: a frame must mean something before its
order in time can. All scores are computed in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from model import Scores, XClip
from model.features import SCORE_NAMES
from training.demo_model.claims import true_of
from training.demo_model.recipe import Recipe, Stage
from training.demo_model.training_set import TrainingSet
from training.loss import contrastive_loss

OnStep = Callable[[str, int, float], None]
"""Called with the stage's name, the number of steps done in it, and the loss."""


def start_softly(model: XClip, identity: float) -> None:
    """Set every [W, W] and [F, F] matrix of AOSM to `identity` of the identity and the rest spread evenly.

    A pure identity follows the single best match; the spread lets every word and frame learn at first.
    """
    with torch.no_grad():
        for name, matrix in model.matrices.named_parameters():
            if name not in ("global_matrix", "local_matrix"):
                size = len(matrix)
                matrix.copy_(identity * torch.eye(size) + (1 - identity) / size)


@contextmanager
def half_precision() -> Iterator[None]:
    """bfloat16 in the towers, with attention written out.

    Half precision pays on a processor with AVX-512 bfloat16, but only so: the backward pass of torch 2.15's
    fused attention is far slower in bfloat16 than in float32 (benchmarks/tower_training.py).
    """
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel([SDPBackend.MATH]):
        yield


def learn_pictures(
    model: XClip, data: TrainingSet, recipe: Recipe, rng: np.random.Generator, on_step: OnStep
) -> None:
    """Stage one: single frames against captions of single frames, towers only."""
    stage, num_frames = recipe.pictures, recipe.num_frames
    optimizer = _Optimizer(model.clip.parameters(), stage, recipe.weight_decay)
    order = _Shuffled(len(data) * num_frames, rng)
    for step in range(stage.num_steps):
        videos, frames = np.divmod(order.take(stage.batch_size), num_frames)
        wording = rng.integers(recipe.captions_per_frame, size=len(videos))
        with half_precision():
            pictures = model.clip.visual(model.normalize_pixels(data.frames[videos, frames])).float()
            text = model.encode_tokens(torch.from_numpy(data.frame_ids[videos, frames, wording]))
        pictures = pictures / pictures.norm(dim=-1, keepdim=True)
        loss = contrastive_loss(model.clip.logit_scale.exp() * text.sentence @ pictures.T)
        optimizer.step(loss)
        model.clamp_logit_scale()
        on_step("pictures", step + 1, loss.item())


def learn_videos(
    model: XClip, data: TrainingSet, recipe: Recipe, rng: np.random.Generator, on_step: OnStep
) -> None:
    """Stage two: videos and their siblings on cached frame features; all but the vision tower learns."""
    stage, size = recipe.videos, recipe.group_size
    features = cache_frame_features(model, data.frames)
    vision = {id(parameter) for parameter in model.clip.visual.parameters()}
    learning = [parameter for parameter in model.parameters() if id(parameter) not in vision]
    optimizer = _Optimizer(learning, stage, recipe.weight_decay)
    order = _Shuffled(len(data) // size, rng)
    mask = torch.ones(stage.batch_size, recipe.num_frames, dtype=torch.bool)
    for step in range(stage.num_steps):
        groups = order.take(stage.batch_size // size)
        videos = (groups[:, None] * size + np.arange(size)).ravel()
        wording = rng.integers(recipe.captions_per_video, size=len(videos))
        with half_precision():
            text = model.encode_tokens(torch.from_numpy(data.video_ids[videos, wording]))
            video = model.encode_frames(features[torch.from_numpy(videos)], mask)
        ignore = true_of_others(data.claims[videos, wording], data.facts[videos])
        loss = total_loss(model.score(text, video), ignore, recipe.single_score_weight)
        optimizer.step(loss)
        model.clamp_logit_scale()
        on_step("videos", step + 1, loss.item())


@torch.no_grad()
def cache_frame_features(model: XClip, frames: NDArray[np.uint8]) -> Tensor:
    """The vision tower's output for every frame: float32 [N, F, D] from uint8 [N, F, R, R, 3]."""
    blocks = [
        model.clip.visual(model.normalize_pixels(frames[first : first + 64]).flatten(0, 1))
        for first in range(0, len(frames), 64)
    ]
    return torch.cat(blocks).reshape(*frames.shape[:2], -1)


def total_loss(scores: Scores, ignore: Tensor, single_score_weight: float) -> Tensor:
    """Loss of the total plus `single_score_weight` times the mean of the four scores' own losses."""
    singles = torch.stack([contrastive_loss(getattr(scores, name), ignore) for name in SCORE_NAMES])
    return contrastive_loss(scores.total, ignore) + single_score_weight * singles.mean()


def true_of_others(claims: NDArray[np.int64], facts: NDArray[np.int64]) -> Tensor:
    """Pairs of a batch to leave out of the loss: the caption is true of a video that is not its own.

    claims: int64 [N, 9]; facts: int64 [N, 9], of caption n and its video. Returns bool [N, N], false on the
    diagonal.
    """
    return torch.from_numpy(true_of(claims, facts)).fill_diagonal_(False)


class _Shuffled:
    """Endless numbers 0..size-1, a fresh order each time round."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self._size, self._rng = size, rng
        self._waiting: NDArray[np.int64] = np.empty(0, np.int64)

    def take(self, count: int) -> NDArray[np.int64]:
        while len(self._waiting) < count:
            self._waiting = np.concatenate([self._waiting, self._rng.permutation(self._size)])
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken


class _Optimizer:
    """AdamW with linear warm-up and a cosine to a tenth; matrices decay, vectors and scalars do not."""

    def __init__(self, parameters: Iterable[nn.Parameter], stage: Stage, weight_decay: float) -> None:
        parameters = list(parameters)
        self._parameters = parameters
        self._adamw = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
                {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=stage.learning_rate,
            betas=(0.9, 0.98),
        )
        warmup = max(1, round(stage.warmup_share * stage.num_steps))

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            progress = (step - warmup) / max(1, stage.num_steps - warmup)
            return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress))

        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._adamw, factor)

    def step(self, loss: Tensor) -> None:
        self._adamw.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._adamw.step()
        self._schedule.step()
