"""What a caption claims of a scene, without words: predicates that a scene satisfies or not.

A description may be partial: it may leave out the background, a colour, a kind, the actions, or one of two
events. It is read as a claim about the video, not as a complete account: "a red car spins" is true of a
video in which a red car spins and then a blue boat grows.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from training.demo_corpus.scene import Event, Scene


@dataclass(frozen=True)
class EventDescription:
    """What is said of one event; None: nothing is. A kind or a colour is always said."""

    kind: str | None
    colour: str | None
    action: str | None

    def __post_init__(self) -> None:
        if self.kind is None and self.colour is None:
            raise ValueError("an event's description needs a kind or a colour")

    def matches(self, event: Event) -> bool:
        """True where nothing said contradicts the event."""
        return (
            self.kind in (None, event.actor.kind)
            and self.colour in (None, event.actor.colour)
            and self.action in (None, event.action)
        )


@dataclass(frozen=True)
class Description:
    """One event that takes place, or two in their order in time; and where.

    `same_actor` says of two events that one actor does both.
    """

    background: str | None
    events: tuple[EventDescription, ...]
    same_actor: bool = False

    def __post_init__(self) -> None:
        if len(self.events) not in (1, 2):
            raise ValueError(f"a description has one or two events, not {len(self.events)}")
        if self.same_actor:
            if len(self.events) != 2 or None in (self.events[0].action, self.events[1].action):
                raise ValueError("one actor for both events needs two events with actions")
            if _actor_of(self.events[0]) != _actor_of(self.events[1]):
                raise ValueError("the same actor cannot be described in two ways")


def _actor_of(described: EventDescription) -> tuple[str | None, str | None]:
    return (described.kind, described.colour)


def satisfies(description: Description, scene: Scene) -> bool:
    """True where the description is true of the scene."""
    if description.background not in (None, scene.background):
        return False
    if len(description.events) == 1:
        return any(description.events[0].matches(event) for event in scene.events)
    if len(scene.events) != 2 or (description.same_actor and not scene.same_actor):
        return False
    return all(said.matches(event) for said, event in zip(description.events, scene.events, strict=True))


def full_description(scene: Scene) -> Description:
    """Everything there is to say. With two events, true of no scene with another key."""
    events = tuple(EventDescription(e.actor.kind, e.actor.colour, e.action) for e in scene.events)
    return Description(scene.background, events, scene.same_actor)


def describe(scene: Scene, rng: random.Random, partial_share: float = 0.25) -> Description:
    """A true description: the full one, or with a chance of `partial_share` a partial one."""
    full = full_description(scene)
    if rng.random() >= partial_share:
        return full
    omission = rng.choices(("background", "attribute", "actions", "event"), (40, 25, 15, 20))[0]
    if omission == "background":
        return replace(full, background=None)
    background = full.background if rng.random() < 0.6 else None
    if omission == "attribute":
        return replace(_without_an_attribute(full, rng), background=background)
    if omission == "event" and len(full.events) == 2:
        return Description(background, (rng.choice(full.events),))
    events = tuple(replace(said, action=None) for said in full.events)
    return Description(background, events[:1] if full.same_actor else events)


def _without_an_attribute(description: Description, rng: random.Random) -> Description:
    """Without the kind or the colour of one actor, in both events where it is the only one."""
    attribute = rng.choice(("kind", "colour"))
    position = rng.randrange(len(description.events))
    events = list(description.events)
    for index in range(len(events)) if description.same_actor else (position,):
        events[index] = (
            replace(events[index], kind=None) if attribute == "kind" else replace(events[index], colour=None)
        )
    return replace(description, events=tuple(events))
