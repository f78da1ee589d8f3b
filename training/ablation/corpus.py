"""The drawn corpus as a data set like any other: mp4 files, and manifests of captions for each split.

    DIR/train.jsonl          groups of siblings, full descriptions in several wordings
    DIR/val.jsonl            held-out scenes at random, to watch a training run by
    DIR/test.jsonl           other held-out scenes at random
    DIR/sibling-hard.jsonl   held-out scenes in groups that differ in one thing only
    DIR/clips/ID.mp4

`load_split("captions", DIR, ...)` reads the first three, `load_split("captions", DIR / "sibling-hard.jsonl",
"test")` the last.
"""

from __future__ import annotations

import json
import multiprocessing
import random
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from training.demo_corpus.corpus import video_id
from training.demo_corpus.description import full_description
from training.demo_corpus.grammar import say
from training.demo_corpus.held_out import random_set, sibling_hard_set
from training.demo_corpus.scene import Scene
from training.demo_corpus.video_writer import write_video
from training.errors import ConfigError

HELD_OUT_SETS = {"random": "test.jsonl", "sibling-hard": "sibling-hard.jsonl"}
"""What models are judged by, and the manifest of each."""

_CLIPS_FOLDER = "clips"
_CLIPS_AT_ONCE = 16


@dataclass(frozen=True)
class CorpusRecipe:
    """What is drawn.

    num_groups, group_size: training scenes, a scene and its siblings in each group.
    captions_per_clip: wordings of the full description of each training clip.
    num_validation, num_held_out: clips of the held-out sets.
    seed: of the training scenes and their wordings. validation_seed, held_out_seed: of those sets.
    size_pixels, frame_rate: of the mp4 files.
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
    """Write clips and manifests into a directory, made if absent. What is there already is kept.

    A clip is written once, whichever sets it is in; the manifests come last, so that one that is there is
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
    from training.demo_model.recipe import Recipe
    from training.demo_model.training_set import make_groups

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
