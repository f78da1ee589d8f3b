"""The drawn corpus as a data set like any other, and a CLIP of the drawn world that all variants start from.

    DIR/train.jsonl          groups of siblings, full descriptions in several wordings
    DIR/val.jsonl            held-out scenes at random, to watch a training run by
    DIR/test.jsonl           other held-out scenes at random
    DIR/sibling-hard.jsonl   held-out scenes in groups that differ in one thing only
    DIR/clips/ID.mp4

`load_split("captions", DIR, ...)` reads the first three, `load_split("captions", DIR / "sibling-hard.jsonl",
"test")` the last.

The towers of that CLIP learned from single pictures and their captions, and saw no video. They are to the
variants what CLIP is to CLIP4Clip and X-CLIP. The recipe is the first stage of the demo model's, shortened
(`training.demo_model.recipe`).
"""

from __future__ import annotations

import json
import multiprocessing
import random
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from model import XClip
from training.demo_corpus.captions import full_description, say, vocabulary
from training.demo_corpus.corpus import video_id
from training.demo_corpus.held_out import random_set, sibling_hard_set
from training.demo_corpus.rendering import write_video
from training.demo_corpus.scene import Scene
from training.demo_model.learning import learn_pictures
from training.demo_model.recipe import Recipe, Stage
from training.demo_model.training_set import draw_scenes, make_groups, make_training_set
from training.errors import ConfigError

HELD_OUT_SETS = {"random": "test.jsonl", "sibling-hard": "sibling-hard.jsonl"}
"""The sets that models are evaluated on, and the manifest of each."""

_CLIPS_FOLDER = "clips"
_CLIPS_AT_ONCE = 16


@dataclass(frozen=True)
class CorpusRecipe:
    """What is drawn.

    Attributes:
        num_groups, group_size: Training scenes, a scene and its siblings in each group.
        captions_per_clip: Wordings of the full description of each training clip.
        num_validation, num_held_out: Clips of the held-out sets.
        seed: Of the training scenes and their wordings.
        validation_seed, held_out_seed: Of those sets.
        size_pixels, frame_rate: Of the mp4 files.
    """

    num_groups: int = 750
    group_size: int = 4
    captions_per_clip: int = 4
    num_validation: int = 200
    num_held_out: int = 500
    seed: int = 5
    validation_seed: int = 1000
    held_out_seed: int = 2207
    size_pixels: int = 96
    frame_rate: int = 4

    def __post_init__(self) -> None:
        if min(self.num_groups, self.group_size, self.captions_per_clip, self.num_validation) < 1:
            raise ConfigError(
                "a corpus needs at least one group, clip in a group, caption and validation clip"
            )
        if self.num_held_out < 2:
            raise ConfigError("a held-out set needs at least two clips")

    @property
    def num_clips(self) -> int:
        """Clips in all files together, at most: the held-out sets may share some."""
        return self.num_groups * self.group_size + self.num_validation + 2 * self.num_held_out


def write_training_corpus(
    directory: Path,
    recipe: CorpusRecipe,
    num_processes: int = 1,
    on_progress: Callable[[int, int], None] = lambda num_done, num_clips: None,
) -> None:
    """Write clips and manifests into a directory, made if absent. Existing clips are kept.

    A clip is written once, whichever sets it is in; the manifests come last, so that one that exists is
    complete. `on_progress(num_done, num_clips)` is called in this thread.
    """
    rows = _rows(recipe)
    scenes = {video_id(scene): scene for scene, _ in chain.from_iterable(rows.values())}
    folder = directory / _CLIPS_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    absent = [scene for name, scene in scenes.items() if not (folder / f"{name}.mp4").exists()]
    num_done = len(scenes) - len(absent)
    on_progress(num_done, len(scenes))
    for num_written in _write_clips(folder, absent, recipe, num_processes):
        num_done += num_written
        on_progress(num_done, len(scenes))
    for name, chosen in rows.items():
        text = "".join(json.dumps(_row(scene, captions)) + "\n" for scene, captions in chosen)
        unfinished = directory / f"{name}.part"
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(directory / name)


def _rows(recipe: CorpusRecipe) -> dict[str, list[tuple[Scene, list[str]]]]:
    """Scenes with their captions, by the manifest that they stand in."""
    rng = random.Random(f"captions {recipe.seed}")
    train = [
        (scene, [say(full_description(scene), rng) for _ in range(recipe.captions_per_clip)])
        for scene in training_scenes(recipe.seed, recipe.num_groups, recipe.group_size)
    ]
    held_out = {
        "val.jsonl": random_set(recipe.num_validation, recipe.validation_seed),
        HELD_OUT_SETS["random"]: random_set(recipe.num_held_out, recipe.held_out_seed),
        HELD_OUT_SETS["sibling-hard"]: sibling_hard_set(recipe.num_held_out, recipe.held_out_seed),
    }
    return {
        "train.jsonl": train,
        **{name: [(scene, [caption]) for scene, caption in pairs] for name, pairs in held_out.items()},
    }


def training_scenes(seed: int, num_groups: int, group_size: int) -> list[Scene]:
    """Scenes of `num_groups` groups of siblings (`training.demo_model.training_set.make_groups`)."""
    groups = make_groups(Recipe(seed=seed, num_groups=num_groups, group_size=group_size))
    return [scene for group in groups for scene in group]


def _row(scene: Scene, captions: list[str]) -> dict[str, object]:
    name = video_id(scene)
    texts: dict[str, object] = (
        {"caption": captions[0]} if len(captions) == 1 else {"captions": list(dict.fromkeys(captions))}
    )
    return {"path": f"{_CLIPS_FOLDER}/{name}.mp4", "id": name, **texts}


def _write_clips(
    folder: Path, scenes: list[Scene], recipe: CorpusRecipe, num_processes: int
) -> Iterable[int]:
    """Yields how many clips were written, piece by piece."""
    pieces = [scenes[first : first + _CLIPS_AT_ONCE] for first in range(0, len(scenes), _CLIPS_AT_ONCE)]
    sizes = (recipe.size_pixels, recipe.frame_rate)
    if num_processes < 2 or len(pieces) < 2:
        yield from (_write_piece(folder, piece, *sizes) for piece in pieces)
        return
    with ProcessPoolExecutor(num_processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_write_piece, *zip(*((folder, piece, *sizes) for piece in pieces), strict=True))


def _write_piece(folder: Path, scenes: list[Scene], size_pixels: int, frame_rate: int) -> int:
    for scene in scenes:
        write_video(folder / f"{video_id(scene)}.mp4", scene, size_pixels, frame_rate)
    return len(scenes)


@dataclass(frozen=True)
class StartRecipe:
    """How the towers are trained.

    A small CLIP with transformers for both towers, as the official ones are; each has `width` channels.

    Attributes:
        num_groups, group_size: Scenes of whose frames the pictures are, none of a held-out set.
        seed: Of those scenes, of the weights and of the order.
        num_steps, batch_size, learning_rate: See `recipe.Stage`.
    """

    num_groups: int = 1000
    group_size: int = 4
    captions_per_picture: int = 2
    seed: int = 11
    num_steps: int = 800
    batch_size: int = 384
    learning_rate: float = 1e-3
    image_size: int = 64
    patch_size: int = 16
    width: int = 128
    vision_layers: int = 4
    text_layers: int = 3
    num_words: int = 32
    num_frames: int = 8

    def demo_recipe(self) -> Recipe:
        """The same as the record that the demo model's stages take."""
        return replace(
            Recipe(),
            seed=self.seed,
            num_groups=self.num_groups,
            group_size=self.group_size,
            captions_per_video=0,
            brief_captions_per_video=0,
            captions_per_frame=self.captions_per_picture,
            vision={
                "image_size": self.image_size,
                "patch_size": self.patch_size,
                "width": self.width,
                "layers": self.vision_layers,
                "head_width": 32,
            },
            embedding_dim=self.width,
            text_width=self.width,
            text_layers=self.text_layers,
            temporal_layers=0,
            num_words=self.num_words,
            num_frames=self.num_frames,
            names_weight=0.0,
            pictures=Stage(self.num_steps, self.batch_size, self.batch_size, self.learning_rate),
        )


def make_starting_point(
    directory: Path,
    recipe: StartRecipe,
    num_threads: int,
    on_progress: Callable[[str, int, int], None] = lambda what, num_done, num_all: None,
) -> None:
    """Train the towers and save them as a model directory; nothing happens where it exists already.

    Args:
        num_threads: Of the processor, for drawing and for training.
        on_progress: What is done, how much of it, of how much.
    """
    if directory.is_dir():
        return
    demo_recipe = recipe.demo_recipe()
    num_threads_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            model = XClip(demo_recipe.model_config(sorted(vocabulary()))).train()
        num_scenes, num_drawn = recipe.num_groups * recipe.group_size, 0

        def on_drawn(count: int) -> None:
            nonlocal num_drawn
            num_drawn += count
            on_progress("drawing pictures", num_drawn, num_scenes)

        scenes = training_scenes(recipe.seed, recipe.num_groups, recipe.group_size)
        frames = draw_scenes(scenes, recipe.num_frames, recipe.image_size, num_threads, on_drawn)
        data = make_training_set(demo_recipe, scenes, frames, model.tokenizer)
        learn_pictures(
            model,
            data,
            demo_recipe,
            np.random.default_rng(recipe.seed),
            lambda stage, step, loss: on_progress("learning from pictures", step, recipe.num_steps),
        )
    finally:
        torch.set_num_threads(num_threads_before)
    model.eval()
    unfinished = directory.with_name(f"{directory.name}.unfinished")
    model.save(unfinished)
    unfinished.rename(directory)
