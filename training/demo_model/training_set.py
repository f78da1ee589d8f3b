"""What the demo model learns from: scenes, drawn and described, with what is true of them."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from model.preprocessing import Resizing
from model.tokenization import TextTokenizer, Tokenizer
from training.demo_corpus.captions import (
    NUM_CLAIMS,
    Description,
    claims_of,
    describe,
    describe_briefly,
    describe_frame,
    facts_of,
    names,
    say,
    shown,
)
from training.demo_corpus.held_out import sample_training_scene, training_siblings
from training.demo_corpus.rendering import render_frame
from training.demo_corpus.scene import Scene, SceneKey, scene_key
from training.demo_model.recipe import Recipe


@dataclass(frozen=True)
class Captions:
    """C paraphrases of each of N videos.

    Attributes:
        ids: int64 [N, C, W].
        claims: int64 [N, C, 9], what each caption claims (see `training.demo_corpus.captions.true_of`).
    """

    ids: NDArray[np.int64]
    claims: NDArray[np.int64]


@dataclass(frozen=True)
class TrainingSet:
    """N videos in groups of G siblings: video g * G + m is member m of group g.

    Attributes:
        frames: uint8 [N, F, R, R, 3].
        facts: int64 [N, 9], what each video shows (see `training.demo_corpus.captions.true_of`).
        full, brief: Captions of whole videos; one kind may have none of them.
        shown: int64 [N, F, 2], kind and colour in each frame (see `training.demo_corpus.captions.shown`).
        frame_ids: int64 [N, F, C', W], captions of single frames.
        name_ids: int64 [2, M, W], every name in two wordings, and `name_claims`, int64 [M, 2], what it
            claims, in the numbers of `shown`.
    """

    frames: NDArray[np.uint8]
    facts: NDArray[np.int64]
    full: Captions
    brief: Captions
    shown: NDArray[np.int64]
    frame_ids: NDArray[np.int64]
    name_ids: NDArray[np.int64]
    name_claims: NDArray[np.int64]

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
    recipe: Recipe, scenes: list[Scene], frames: NDArray[np.uint8], tokenizer: TextTokenizer
) -> TrainingSet:
    """Word every caption. Deterministic in `recipe.seed`.

    Args:
        scenes: N scenes, groups of siblings one after another.
        frames: uint8 [N, F, R, R, 3], of `draw_scenes`.
    """
    assert isinstance(tokenizer, Tokenizer)  # of CLIP's tokens, as the recipe's config has it
    clip_tokenizer = tokenizer
    rng = random.Random(recipe.seed + 1)
    noise = np.random.default_rng(recipe.seed + 2)

    def tokens(texts: list[str], *shape: int) -> NDArray[np.int64]:
        rows = clip_tokenizer(texts).numpy()
        return put_in_unknown_words(rows, clip_tokenizer, recipe.unknown_word_share, noise).reshape(
            *shape, recipe.num_words
        )

    def captions(describe_one: Callable[[Scene, random.Random], Description], count: int) -> Captions:
        said = [describe_one(scene, rng) for scene in scenes for _ in range(count)]
        claims = np.array([claims_of(one) for one in said], np.int64)
        return Captions(
            tokens([say(one, rng) for one in said], len(scenes), count),
            claims.reshape(len(scenes), count, NUM_CLAIMS),
        )

    seconds = [float(second) for second in range(recipe.num_frames)]
    of_frames = [
        describe_frame(scene, second, rng)
        for scene in scenes
        for second in seconds
        for _ in range(recipe.captions_per_frame)
    ]
    wordings, name_claims = zip(*names(), strict=True)
    return TrainingSet(
        frames=frames,
        facts=np.array([facts_of(scene) for scene in scenes]),
        full=captions(describe, recipe.captions_per_video),
        brief=captions(describe_briefly, recipe.brief_captions_per_video),
        shown=np.array([[shown(scene, second) for second in seconds] for scene in scenes]),
        frame_ids=tokens(of_frames, len(scenes), recipe.num_frames, recipe.captions_per_frame),
        name_ids=np.stack([clip_tokenizer(list(column)).numpy() for column in zip(*wordings, strict=True)]),
        name_claims=np.array(name_claims),
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
