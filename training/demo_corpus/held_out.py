"""Sets to judge a model by: scenes that no training run may see, each with a caption true of it alone.

Which scenes are held out is a property of the scene, not of a list: a tenth of all, by a hash of what a caption
can speak of. Whatever the seed, a held-out set and a training run therefore never share a scene. Both orders of
two events fall on the same side, so a model cannot tell one from the other by having seen one of them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

from training.demo_corpus.description import Description, describe, full_description, satisfies
from training.demo_corpus.grammar import say
from training.demo_corpus.scene import Scene, SceneKey, sample_scene, scene_key, siblings

HELD_OUT_SHARE = 0.1
_GROUP_SIZE = 5
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
    rng = random.Random(f"random set {seed}")
    scenes: dict[SceneKey, Scene] = {}
    while len(scenes) < num:
        scene = sample_held_out_scene(rng)
        if _stays_unique(scene, scenes):
            scenes[scene_key(scene)] = scene
    return _captioned(list(scenes.values()), rng)


def sibling_hard_set(num: int, seed: int, group_size: int = _GROUP_SIZE) -> list[CaptionedScene]:
    """`num` held-out scenes in groups whose members differ from the group's first in exactly one thing.

    Groups of two-event scenes contain the other order of the same events. Members of a group follow one
    another; the last group may be cut short. As in `random_set`, each caption is true of its scene alone.
    """
    rng = random.Random(f"sibling hard set {seed}")
    scenes: dict[SceneKey, Scene] = {}
    while len(scenes) < num:
        base = sample_held_out_scene(rng)
        group = [base, *siblings(base, rng, group_size - 1, keep=is_held_out)]
        members: dict[SceneKey, Scene] = {}
        for scene in group:
            if _stays_unique(scene, {**scenes, **members}):
                members[scene_key(scene)] = scene
        if len(members) == group_size:
            scenes.update(members)
    return _captioned(list(scenes.values())[:num], rng)


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


def _captioned(scenes: list[Scene], rng: random.Random) -> list[CaptionedScene]:
    return [(scene, say(_unique_description(index, scenes, rng), rng)) for index, scene in enumerate(scenes)]


def _unique_description(index: int, scenes: list[Scene], rng: random.Random) -> Description:
    for _ in range(_TRIES):
        description = describe(scenes[index], rng)
        if sum(satisfies(description, scene) for scene in scenes) == 1:
            return description
    return full_description(scenes[index])
