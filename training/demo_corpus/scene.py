"""What happens in a demo video: one or two events, each an actor doing an action, before a background.

A clip lasts `CLIP_SECONDS`. A single event fills it; of two events the first takes the first half and the
second the other half, and only the active actor is visible. Everything here is data without pixels or words.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

CLIP_SECONDS = 8.0

KINDS = (
    "car", "boat", "rocket", "plane", "bicycle", "tree", "flower", "mushroom", "fish", "bird",
    "cat", "butterfly", "apple", "house", "balloon", "key", "umbrella", "cup", "lamp", "book",
    "guitar", "ball", "hat", "clock", "star", "heart", "bell", "crown", "anchor", "chair",
)  # fmt: skip
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
BACKGROUNDS = ("night", "meadow", "beach", "sea", "desert", "snow", "city", "room")
ACTIONS = (
    "moves right", "moves left", "rises", "falls", "grows", "shrinks",
    "spins", "blinks", "bounces", "sways", "appears", "disappears",
)  # fmt: skip

NUM_VARIATIONS = 1 << 31
_ONE_EVENT_SHARE = 0.25
_SAME_ACTOR_SHARE = 0.2


@dataclass(frozen=True)
class Actor:
    """A pictogram in a colour: `kind` is one of `KINDS`, `colour` one of `COLOURS`."""

    kind: str
    colour: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.colour not in COLOURS:
            raise ValueError(f"unknown kind or colour: {self.kind!r}, {self.colour!r}")


@dataclass(frozen=True)
class Event:
    """An actor doing an action (one of `ACTIONS`)."""

    actor: Actor
    action: str

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise ValueError(f"unknown action: {self.action!r}")


@dataclass(frozen=True)
class Scene:
    """A whole clip. `variation_seed` decides what no caption describes: jitter of place and size, scenery."""

    background: str
    events: tuple[Event, ...]
    variation_seed: int = 0

    def __post_init__(self) -> None:
        if self.background not in BACKGROUNDS:
            raise ValueError(f"unknown background: {self.background!r}")
        if len(self.events) not in (1, 2):
            raise ValueError(f"a scene has one or two events, not {len(self.events)}")
        if len(self.events) == 2 and self.events[0] == self.events[1]:
            raise ValueError("the two events of a scene must differ")

    @property
    def phase_seconds(self) -> float:
        """How long each event lasts."""
        return CLIP_SECONDS / len(self.events)

    @property
    def same_actor(self) -> bool:
        """True where one actor does two things in a row."""
        return len(self.events) == 2 and self.events[0].actor == self.events[1].actor


SceneKey = tuple[str, ...]


def scene_key(scene: Scene) -> SceneKey:
    """Everything that a caption can describe: two scenes with equal keys differ only in `variation_seed`."""
    parts = [scene.background]
    for event in scene.events:
        parts += [event.actor.kind, event.actor.colour, event.action]
    return tuple(parts)


def sample_actor(rng: random.Random) -> Actor:
    """A kind and a colour, evenly."""
    return Actor(rng.choice(KINDS), rng.choice(COLOURS))


def sample_scene(rng: random.Random) -> Scene:
    """A scene at random: three in four have two events, one in five of those one actor for both."""
    first = Event(sample_actor(rng), rng.choice(ACTIONS))
    events: tuple[Event, ...] = (first,)
    if rng.random() >= _ONE_EVENT_SHARE:
        second = first
        while second == first:
            actor = first.actor if rng.random() < _SAME_ACTOR_SHARE else sample_actor(rng)
            second = Event(actor, rng.choice(ACTIONS))
        events = (first, second)
    return Scene(rng.choice(BACKGROUNDS), events, rng.randrange(NUM_VARIATIONS))


def swapped_order(scene: Scene) -> Scene:
    """The same two events in the other order."""
    if len(scene.events) != 2:
        raise ValueError("only a scene of two events has an order")
    return replace(scene, events=(scene.events[1], scene.events[0]))


def swapped_actors(scene: Scene) -> Scene:
    """The same two actions in the same order, each done by the other's actor."""
    if len(scene.events) != 2:
        raise ValueError("only a scene of two events has actors to swap")
    first, second = scene.events
    return replace(scene, events=(Event(second.actor, first.action), Event(first.actor, second.action)))


def siblings(
    scene: Scene, rng: random.Random, num: int, keep: Callable[[Scene], bool] | None = None
) -> list[Scene]:
    """Scenes that differ from `scene` in exactly one thing, each with a variation of its own.

    The thing is the background, or the kind, colour or action of one event, or (with two events) their order
    or which actor does which action. An actor that does both actions changes in both. The order sibling,
    where there is one, comes first; the others are drawn so that each kind of change is as frequent as
    another. At most `num` come back, fewer only where no more exist; their keys differ from each other and
    from the scene's. `keep`, where given, says which may come back at all.
    """
    changes: dict[str, list[tuple[int, str]]] = {
        "background": [(0, name) for name in BACKGROUNDS],
        "kind": _positions_and_values(scene, KINDS, scene.same_actor),
        "colour": _positions_and_values(scene, COLOURS, scene.same_actor),
        "action": _positions_and_values(scene, ACTIONS, False),
    }
    if len(scene.events) == 2:
        changes["actors"] = [(0, "")]
    for choices in changes.values():
        rng.shuffle(choices)
    found: dict[SceneKey, Scene] = {}
    order = [swapped_order(scene)] if len(scene.events) == 2 else []
    for candidate in chain(order, _interleaved(scene, changes, rng)):
        if len(found) == num:
            break
        key = scene_key(candidate)
        if key != scene_key(scene) and key not in found and (keep is None or keep(candidate)):
            found[key] = replace(candidate, variation_seed=rng.randrange(NUM_VARIATIONS))
    return list(found.values())


def _positions_and_values(scene: Scene, values: tuple[str, ...], together: bool) -> list[tuple[int, str]]:
    """Which event may get which value; `together`: a change of the first event is one of the second, too."""
    return [(position, value) for position in range(1 if together else len(scene.events)) for value in values]


def _interleaved(
    scene: Scene, changes: dict[str, list[tuple[int, str]]], rng: random.Random
) -> Iterator[Scene]:
    """Scenes with one change each, the kinds of change taking turns in random order; consumes `changes`."""
    while changes:
        for change in rng.sample(list(changes), len(changes)):
            position, value = changes[change].pop()
            if not changes[change]:
                del changes[change]
            candidate = _changed(scene, change, position, value)
            if candidate is not None:
                yield candidate


def _changed(scene: Scene, change: str, position: int, value: str) -> Scene | None:
    """The scene with one thing changed; None where both events would become the same."""
    if change == "background":
        return replace(scene, background=value)
    if change == "actors":
        return swapped_actors(scene)
    events = list(scene.events)
    if change == "action":
        events[position] = Event(events[position].actor, value)
    else:
        old = events[position].actor
        new = Actor(value, old.colour) if change == "kind" else Actor(old.kind, value)
        for index in range(len(events)) if scene.same_actor else (position,):
            events[index] = Event(new, events[index].action)
    if len(events) == 2 and events[0] == events[1]:
        return None
    return replace(scene, events=tuple(events))
