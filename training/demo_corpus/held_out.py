"""Sets to evaluate a model on: scenes that no training run may see, each with a caption true of it alone.

Which scenes are held out is a property of the scene, not of a list: a tenth of all, by a hash of what a
caption can describe. Whatever the seed, a held-out set and a training run therefore never share a
scene. Both orders of two events fall on the same side, so a model cannot distinguish them by having
seen one of them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

from training.demo_corpus.captions import Description, describe, full_description, satisfies, say
from training.demo_corpus.scene import Scene, SceneKey, sample_scene, scene_key, siblings

HELD_OUT_SHARE = 0.1
GROUP_SIZE = 5
_TRIES = 3

CaptionedScene = tuple[Scene, str]


def is_held_out(scene: Scene) -> bool:
    """True for the tenth of all scenes that is kept from training; the order of events does not matter."""
    events = sorted(f"{event.actor.kind} {event.actor.colour} {event.action}" for event in scene.events)
    digest = hashlib.sha256("\n".join([scene.background, *events]).encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def is_for_training(scene: Scene) -> bool:
    """The opposite of `is_held_out`."""
    return not is_held_out(scene)


def sample_held_out_scene(rng: random.Random) -> Scene:
    """A scene that no training run sees."""
    return _sample_until(is_held_out, rng)


def sample_training_scene(rng: random.Random) -> Scene:
    """A scene that no held-out set contains."""
    return _sample_until(is_for_training, rng)


def _sample_until(keep: Callable[[Scene], bool], rng: random.Random) -> Scene:
    while True:
        scene = sample_scene(rng)
        if keep(scene):
            return scene


def training_siblings(scene: Scene, rng: random.Random, num: int) -> list[Scene]:
    """Siblings of a training scene (see `scene.siblings`) that may themselves be trained on."""
    return siblings(scene, rng, num, keep=is_for_training)


def random_set(num: int, seed: int) -> list[CaptionedScene]:
    """`num` held-out scenes drawn at random, each with a caption that is true of no other scene in the list.

    A caption is partial, as `describe` has it, where that still singles its scene out, and full otherwise.
    """
    return mixed_set(num, 0, seed)


def sibling_hard_set(num: int, seed: int) -> list[CaptionedScene]:
    """`num` held-out scenes in groups of `GROUP_SIZE` that differ from the first of the group in one thing.

    Groups of two-event scenes contain the other order of the same events. Members of a group follow one
    another; the last group may be incomplete. As in `random_set`, each caption is true of its scene alone.
    """
    return mixed_set(0, num, seed)


def mixed_set(num_random: int, num_siblings: int, seed: int) -> list[CaptionedScene]:
    """A random set and, after it, a sibling-hard one, with captions that are unique in the whole list."""
    rng = random.Random(f"held-out set {seed}")
    scenes: dict[SceneKey, Scene] = {}
    while len(scenes) < num_random:
        scene = sample_held_out_scene(rng)
        if _stays_unique(scene, scenes):
            scenes[scene_key(scene)] = scene
    while len(scenes) < num_random + num_siblings:
        base = sample_held_out_scene(rng)
        group: dict[SceneKey, Scene] = {}
        for scene in (base, *siblings(base, rng, GROUP_SIZE - 1, keep=is_held_out)):
            if _stays_unique(scene, scenes) and _stays_unique(scene, group):
                group[scene_key(scene)] = scene
        if len(group) == GROUP_SIZE:
            scenes.update(group)
    chosen = list(scenes.values())[: num_random + num_siblings]
    return [(scene, say(_unique_description(scene, chosen, rng), rng)) for scene in chosen]


def _stays_unique(scene: Scene, others: dict[SceneKey, Scene]) -> bool:
    """True where the full description of the scene is false of all others, and theirs of the scene.

    With two events a full description is true of one key alone, so only single events need a look.
    """
    if scene_key(scene) in others:
        return False
    parts = [(scene.background, event.actor.kind, event.actor.colour, event.action) for event in scene.events]
    if any(part in others for part in parts):
        return False
    if len(scene.events) == 2:
        return True
    description = full_description(scene)
    return not any(satisfies(description, other) for other in others.values())


def _unique_description(scene: Scene, scenes: list[Scene], rng: random.Random) -> Description:
    for _ in range(_TRIES):
        description = describe(scene, rng)
        if sum(satisfies(description, other) for other in scenes) == 1:
            return description
    return full_description(scene)
