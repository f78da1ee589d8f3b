"""The stages in which the demo model learns: single pictures, then videos on frozen frame features."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from model import Scores, XClip
from model.score_names import SCORE_NAMES
from training.demo_corpus.captions import FIRST_KIND, named_by, true_of
from training.demo_model.recipe import Recipe, Stage
from training.demo_model.training_set import TrainingSet

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
def fast_precision() -> Iterator[None]:
    """bfloat16 in the towers, with attention written out, where the processor computes it; else float32.

    Half precision pays with AVX-512 bfloat16 only, and so: the backward pass of torch 2.15's fused attention
    is far slower in bfloat16 than in float32 (benchmarks/training/tower_training.py).
    """
    if not torch.cpu._is_avx512_bf16_supported():
        yield
        return
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel([SDPBackend.MATH]):
        yield


def ranking_loss(scores: Tensor, true: Tensor) -> Tensor:
    """Symmetric cross-entropy of each true pair against the false ones of its row, and of its column.

    With the identity for `true` it is `training.loop.loss.contrastive_loss`. Where several videos satisfy a
    text, each must stand above all that do not, and none is pushed below another.

    Args:
        scores: float [T, V], scaled.
        true: bool [T, V], at least one pair.

    Returns:
        A scalar.

    >>> scores = torch.zeros(4, 4)
    >>> round(ranking_loss(scores, torch.eye(4, dtype=torch.bool)).item(), 4)  # log(4): one among four
    1.3863
    """
    false = scores.masked_fill(true, -1e4)  # Not -inf: a row without false ones would have NaN gradients.
    rows, columns = false.logsumexp(dim=1, keepdim=True), false.logsumexp(dim=0, keepdim=True)
    each = functional.softplus(rows - scores) + functional.softplus(columns - scores)
    return each[true].mean() / 2


def learn_pictures(
    model: XClip, data: TrainingSet, recipe: Recipe, rng: np.random.Generator, on_step: OnStep
) -> None:
    """Stage one: single frames against their captions and against all names, towers only."""
    stage, num_frames = recipe.pictures, recipe.num_frames
    vision: nn.Module = model.clip.visual
    vision.train()  # From scratch, batch statistics are learned too.
    vision.to(memory_format=torch.channels_last)  # Convolutions take three quarters of the time.
    optimizer = _Optimizer(model.clip.parameters(), stage, recipe.weight_decay)
    order = _Shuffled(len(data) * num_frames, rng)
    own = torch.eye(stage.num_captioned, stage.batch_size, dtype=torch.bool)
    for step in range(stage.num_steps):
        videos, frames = np.divmod(order.take(stage.batch_size), num_frames)
        wording = rng.integers(recipe.captions_per_frame, size=len(videos))
        captioned = np.s_[: stage.num_captioned]
        ids = data.frame_ids[videos[captioned], frames[captioned], wording[captioned]]
        with fast_precision():
            pixels = model.normalize_pixels(data.frames[videos, frames])
            pictures = vision(pixels.contiguous(memory_format=torch.channels_last)).float()
            captions = model.encode_tokens(torch.from_numpy(ids))
        pictures = model.clip.logit_scale.exp() * functional.normalize(pictures, dim=-1)
        loss = ranking_loss(captions.sentence @ pictures.T, own)
        if recipe.names_weight:
            with fast_precision():
                names = model.encode_tokens(torch.from_numpy(data.name_ids[rng.integers(2)]))
            true = torch.from_numpy(named_by(data.name_claims, data.shown[videos, frames]))
            loss = loss + recipe.names_weight * ranking_loss(names.sentence @ pictures.T, true)
        optimizer.step(loss)
        model.clamp_logit_scale()
        on_step("pictures", step + 1, loss.item())
    vision.to(memory_format=torch.contiguous_format)
    model.train()


def learn_videos(
    model: XClip, data: TrainingSet, recipe: Recipe, rng: np.random.Generator, on_step: OnStep
) -> None:
    """Stage two: videos and their siblings on cached frame features; all but the vision tower learns."""
    _learn_videos(model, data, recipe, recipe.videos, rng, partial(on_step, "videos"))


def learn_alike(
    model: XClip, data: TrainingSet, recipe: Recipe, rng: np.random.Generator, on_step: OnStep
) -> None:
    """Stage three: as stage two, with videos of few kinds at a time, which are told apart by what happens."""
    _learn_videos(model, data, recipe, recipe.alike, rng, partial(on_step, "alike"))


def _learn_videos(
    model: XClip,
    data: TrainingSet,
    recipe: Recipe,
    stage: Stage,
    rng: np.random.Generator,
    on_step: Callable[[int, float], None],
) -> None:
    size = recipe.group_size
    features = cache_frame_features(model, data.frames)
    vision = {id(parameter) for parameter in model.clip.visual.parameters()}
    learning = [parameter for parameter in model.parameters() if id(parameter) not in vision]
    optimizer = _Optimizer(learning, stage, recipe.weight_decay)
    order = _groups(data, stage, size, rng)
    mask = torch.ones(stage.batch_size, recipe.num_frames, dtype=torch.bool)
    for step in range(stage.num_steps):
        groups = order.take(stage.batch_size // size)
        videos = (groups[:, None] * size + np.arange(size)).ravel()
        with fast_precision():
            video = model.encode_frames(features[torch.from_numpy(videos)], mask)
        scores, claims = [], []
        for captions, of_videos in ((data.brief, videos), (data.full, videos[: stage.num_captioned])):
            wording = rng.integers(captions.ids.shape[1], size=len(of_videos))
            with fast_precision():
                text = model.encode_tokens(torch.from_numpy(captions.ids[of_videos, wording]))
            scores.append(model.score(text, video))  # Each kind alone: brief ones have few words to score.
            claims.append(captions.claims[of_videos, wording])
        true = torch.from_numpy(true_of(np.concatenate(claims), data.facts[videos]))
        loss = total_loss(Scores.cat(scores), true, recipe.single_score_weight)
        optimizer.step(loss)
        model.clamp_logit_scale()
        on_step(step + 1, loss.item())


@torch.no_grad()
def cache_frame_features(model: XClip, frames: NDArray[np.uint8]) -> Tensor:
    """The vision tower's output for every frame: float32 [N, F, D] from uint8 [N, F, R, R, 3]."""
    blocks = [
        model.clip.visual(model.normalize_pixels(frames[first : first + 64]).flatten(0, 1))
        for first in range(0, len(frames), 64)
    ]
    return torch.cat(blocks).reshape(*frames.shape[:2], -1)


def total_loss(scores: Scores, true: Tensor, single_score_weight: float) -> Tensor:
    """Loss of the total plus `single_score_weight` times the mean of the four scores' own losses."""
    singles = torch.stack([ranking_loss(getattr(scores, name), true) for name in SCORE_NAMES])
    return ranking_loss(scores.total, true) + single_score_weight * singles.mean()


def _groups(data: TrainingSet, stage: Stage, size: int, rng: np.random.Generator) -> _Shuffled | _OfFewKinds:
    if stage.num_kinds is None:
        return _Shuffled(len(data) // size, rng)
    return _OfFewKinds(data.facts[::size, FIRST_KIND], stage.num_kinds, rng)


class _OfFewKinds:
    """Numbers of groups of a few kinds at a time, the kinds in a new order each time they run out.

    kinds: int64 [N], of each group.
    """

    def __init__(self, kinds: NDArray[np.int64], num_kinds: int, rng: np.random.Generator) -> None:
        self._members = [np.flatnonzero(kinds == kind) for kind in np.unique(kinds)]
        self._orders = [_Shuffled(len(members), rng) for members in self._members]
        self._num_kinds = min(num_kinds, len(self._members))
        self._kinds = _Shuffled(len(self._members), rng)

    def take(self, count: int) -> NDArray[np.int64]:
        kinds = self._kinds.take(self._num_kinds)
        shares = np.array_split(np.arange(count), len(kinds))
        return np.concatenate(
            [
                self._members[kind][self._orders[kind].take(len(share))]
                for kind, share in zip(kinds, shares, strict=True)
            ]
        )


class _Shuffled:
    """Endless numbers 0..size-1, reshuffled each time they run out."""

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
