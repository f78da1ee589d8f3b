"""The training set: scenes with their siblings, drawn once at the model's size, and captions as tokens."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.preprocessing import resize_and_crop
from model.tokenization import Tokenizer
from training.demo_corpus.description import describe
from training.demo_corpus.grammar import describe_frame, say
from training.demo_corpus.held_out import sample_training_scene, training_siblings
from training.demo_corpus.rendering import render_frame
from training.demo_corpus.scene import Scene, SceneKey, scene_key
from training.demo_model.claims import claims_of, describe_briefly, facts_of
from training.demo_model.recipe import Recipe


@dataclass(frozen=True)
class TrainingSet:
    """N videos in groups of G siblings: video g * G + m is member m of group g.

    frames: uint8 [N, F, R, R, 3]. video_ids: int64 [N, C, W], C paraphrases.
    claims: int64 [N, C, 9], what each caption claims; facts: int64 [N, 9], what each video shows (see
    `training.demo_model.claims`). frame_ids: int64 [N, F, C', W].
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


def draw_frames(scene: Scene, recipe_frames: int, image_size: int) -> NDArray[np.uint8]:
    """The frames that the indexer would sample (one a second from 0), uint8 [F, R, R, 3]."""
    return np.stack(
        [resize_and_crop(render_frame(scene, float(second)), image_size) for second in range(recipe_frames)]
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
    """All scenes' frames, uint8 [N, F, R, R, 3], drawn by several processes."""
    chunks = [scenes[first : first + 64] for first in range(0, len(scenes), 64)]
    drawn = []
    with ProcessPoolExecutor(num_processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for frames in pool.map(_draw_many, chunks, [num_frames] * len(chunks), [image_size] * len(chunks)):
            drawn.append(frames)
            on_progress(len(frames))
    return np.concatenate(drawn)


def make_training_set(
    recipe: Recipe,
    groups: list[list[Scene]],
    tokenizer: Tokenizer,
    num_processes: int,
    on_progress: Callable[[int], None] = lambda count: None,
) -> TrainingSet:
    """Draw every scene and word every caption. Deterministic in `recipe.seed`."""
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
    """Put a word of one to three unknown tokens into a `share` of the captions, where there is room.

    rows: int64 [N, W], from `tokenizer`, which must have a vocabulary of its own. The captions stay true, so
    the model learns to pass over what it does not know. Returns int64 [N, W].
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
