"""How the demo model is trained: every choice in one frozen record, the training set, and the two stages.

The stages are pictures, then videos on frozen frame features: learning from videos from the start stays at
chance on a corpus this small, because a frame must mean something before its order in time can. All scores
are computed in float32.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import repeat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from model import Scores, XClip, XClipConfig
from model.preprocessing import Resizing
from model.score_names import SCORE_NAMES
from model.tokenization import TextTokenizer, Tokenizer, vocabulary_of
from training.demo_corpus.captions import (
    claims_of,
    describe,
    describe_briefly,
    describe_frame,
    facts_of,
    say,
    true_of,
)
from training.demo_corpus.held_out import sample_training_scene, training_siblings
from training.demo_corpus.rendering import render_frame
from training.demo_corpus.scene import Scene, SceneKey, scene_key
from training.loop.loss import contrastive_loss


@dataclass(frozen=True)
class Stage:
    """One stage of training: AdamW, linear warm-up, cosine to a tenth.

    Attributes:
        num_steps: Optimizer steps.
        batch_size: Pictures in the first stage, videos in the second.
    """

    num_steps: int
    batch_size: int
    learning_rate: float
    warmup_share: float = 0.05

    def scaled(self, factor: float) -> Stage:
        """The same stage with `factor` times the steps, at least one."""
        return replace(self, num_steps=max(1, round(self.num_steps * factor)))


@dataclass(frozen=True)
class Recipe:
    """The demo model and how it is trained.

    Attributes:
        pictures: Single frames with captions of their own; only the towers learn.
        videos: Whole videos on cached frame features; everything but the vision tower learns.
        group_size: A scene and its siblings, all in the same batch in the second stage.
        captions_per_video, captions_per_frame: Paraphrases drawn once.
        brief_captions_per_video: Of these, the short ones, like search queries.
        unknown_word_share: Of the captions, those with a word put in that the vocabulary lacks, to be
            ignored.
        matrix_identity: AOSM matrices [W, W] and [F, F] start at this much identity, the rest spread evenly.
        single_score_weight: Of the mean of the four scores' own losses, added to the loss of the total.
    """

    seed: int = 1
    image_size: int = 64
    patch_size: int = 16
    width: int = 128
    vision_layers: int = 4
    text_layers: int = 3
    temporal_layers: int = 2
    num_words: int = 32
    num_frames: int = 8
    num_groups: int = 5000
    group_size: int = 4
    captions_per_video: int = 8
    brief_captions_per_video: int = 2
    captions_per_frame: int = 2
    unknown_word_share: float = 0.15
    matrix_identity: float = 0.3
    single_score_weight: float = 0.5
    weight_decay: float = 0.05
    pictures: Stage = Stage(num_steps=2200, batch_size=512, learning_rate=1e-3)
    videos: Stage = Stage(num_steps=1200, batch_size=192, learning_rate=1e-3)

    def to_json(self) -> str:
        """Stable text for `recipe.json`."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def model_config(self, words: Sequence[str]) -> XClipConfig:
        """The network for a corpus whose captions are made of `words`."""
        return XClipConfig(
            clip={
                "embed_dim": self.width,
                "vision_cfg": {
                    "image_size": self.image_size,
                    "patch_size": self.patch_size,
                    "width": self.width,
                    "layers": self.vision_layers,
                    "head_width": 32,
                },
                "text_cfg": {
                    "context_length": self.num_words,
                    "vocab_size": 49408,
                    "width": self.width,
                    "heads": self.width // 32,
                    "layers": self.text_layers,
                },
                "quick_gelu": False,
            },
            num_words=self.num_words,
            num_frames=self.num_frames,
            temporal_layers=self.temporal_layers,
            mask_padding=True,
            vocabulary=vocabulary_of([*sorted(words), ","]),
            description="X-CLIP trained from scratch on the drawn demo corpus",
        )


@dataclass(frozen=True)
class TrainingSet:
    """N videos in groups of G siblings: video g * G + m is member m of group g.

    Attributes:
        frames: uint8 [N, F, R, R, 3].
        video_ids: int64 [N, C, W], C paraphrases.
        claims: int64 [N, C, 9], what each caption claims.
        facts: int64 [N, 9], what each video shows (see `training.demo_corpus.captions.true_of`).
        frame_ids: int64 [N, F, C', W].
    """

    frames: NDArray[np.uint8]
    video_ids: NDArray[np.int64]
    claims: NDArray[np.int64]
    facts: NDArray[np.int64]
    frame_ids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.frames)


def make_groups(recipe: Recipe) -> list[list[Scene]]:
    """`num_groups` groups: a scene and its siblings, `group_size` in all, none of them held out or twice."""
    rng = random.Random(recipe.seed)
    taken: set[SceneKey] = set()
    groups: list[list[Scene]] = []
    while len(groups) < recipe.num_groups:
        base = sample_training_scene(rng)
        group = [base, *training_siblings(base, rng, recipe.group_size - 1)]
        keys = {scene_key(scene) for scene in group}
        if len(keys) == recipe.group_size and not keys & taken:
            groups.append(group)
            taken |= keys
    return groups


def draw_frames(scene: Scene, num_frames: int, image_size: int) -> NDArray[np.uint8]:
    """The frames that the indexer would sample (one a second from 0), uint8 [F, R, R, 3]."""
    return np.stack(
        [Resizing(image_size)(render_frame(scene, float(second))) for second in range(num_frames)]
    )


def _draw_many(scenes: list[Scene], num_frames: int, image_size: int) -> NDArray[np.uint8]:
    return np.stack([draw_frames(scene, num_frames, image_size) for scene in scenes])


def draw_scenes(
    scenes: list[Scene],
    num_frames: int,
    image_size: int,
    num_processes: int,
    on_progress: Callable[[int], None] = lambda count: None,
) -> NDArray[np.uint8]:
    """All scenes' frames, uint8 [N, F, R, R, 3]; one process means this one."""
    chunks = [scenes[first : first + 64] for first in range(0, len(scenes), 64)]
    drawn = []
    with ExitStack() as stack:
        run: Callable[..., Iterator[NDArray[np.uint8]]] = map
        if min(num_processes, len(chunks)) > 1:
            spawn = multiprocessing.get_context("spawn")
            run = stack.enter_context(ProcessPoolExecutor(num_processes, mp_context=spawn)).map
        for frames in run(_draw_many, chunks, repeat(num_frames), repeat(image_size)):
            drawn.append(frames)
            on_progress(len(frames))
    return np.concatenate(drawn)


def make_training_set(
    recipe: Recipe,
    groups: list[list[Scene]],
    tokenizer: TextTokenizer,
    num_processes: int,
    on_progress: Callable[[int], None] = lambda count: None,
) -> TrainingSet:
    """Draw every scene and word every caption. Deterministic in `recipe.seed`."""
    assert isinstance(tokenizer, Tokenizer)  # of CLIP's tokens, as the recipe's config has it
    scenes = [scene for group in groups for scene in group]
    frames = draw_scenes(scenes, recipe.num_frames, recipe.image_size, num_processes, on_progress)
    rng = random.Random(recipe.seed + 1)
    descriptions = [
        describe_briefly(scene, rng) if paraphrase < recipe.brief_captions_per_video else describe(scene, rng)
        for scene in scenes
        for paraphrase in range(recipe.captions_per_video)
    ]
    captions = [say(description, rng) for description in descriptions]
    frame_captions = [
        describe_frame(scene, float(second), rng)
        for scene in scenes
        for second in range(recipe.num_frames)
        for _ in range(recipe.captions_per_frame)
    ]
    noise = np.random.default_rng(recipe.seed + 2)

    def tokens(texts: list[str]) -> NDArray[np.int64]:
        return put_in_unknown_words(tokenizer(texts).numpy(), tokenizer, recipe.unknown_word_share, noise)

    return TrainingSet(
        frames,
        tokens(captions).reshape(len(scenes), recipe.captions_per_video, -1),
        np.array([claims_of(one) for one in descriptions]).reshape(
            len(scenes), recipe.captions_per_video, -1
        ),
        np.array([facts_of(scene) for scene in scenes]),
        tokens(frame_captions).reshape(len(scenes), recipe.num_frames, recipe.captions_per_frame, -1),
    )


def put_in_unknown_words(
    rows: NDArray[np.int64], tokenizer: Tokenizer, share: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Put a word of one to three unknown tokens into a `share` of the captions, where it fits.

    The captions stay true, so the model learns to pass over what it does not know.

    Args:
        rows: int64 [N, W], from `tokenizer`, which must have a vocabulary of its own.

    Returns:
        int64 [N, W].
    """
    assert tokenizer.unknown_id is not None
    changed = rows.copy()
    for number in np.flatnonzero(rng.random(len(rows)) < share):
        end = int(rows[number].argmax())
        num_pieces = int(rng.integers(1, 4))
        if end + num_pieces >= rows.shape[1]:
            continue
        position = int(rng.integers(1, end + 1))
        changed[number, position + num_pieces :] = rows[number, position : rows.shape[1] - num_pieces]
        changed[number, position : position + num_pieces] = tokenizer.unknown_id
    return changed


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
    fused attention is far slower in bfloat16 than in float32 (benchmarks/training/tower_training.py).
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

    Args:
        claims: int64 [N, 9].
        facts: int64 [N, 9], of caption n and its video.

    Returns:
        bool [N, N], false on the diagonal.
    """
    return torch.from_numpy(true_of(claims, facts)).fill_diagonal_(False)


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
