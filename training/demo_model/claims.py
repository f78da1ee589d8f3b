"""Which captions are true of which videos, for a whole batch at once: descriptions and scenes as numbers.

The same relation as `training.demo_corpus.description.satisfies`, which a test holds it to.
"""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray

from training.demo_corpus.description import Description, EventDescription
from training.demo_corpus.scene import ACTIONS, BACKGROUNDS, COLOURS, KINDS, Scene

NOT_SAID = -1
NUM_CLAIMS = 9
NUM_FACTS = 9
"""Columns of both: background, number of events, same actor, then kind, colour, action of two events."""


def describe_briefly(scene: Scene, rng: random.Random) -> Description:
    """What a person in a hurry types: one thing, by its kind or colour or both, and perhaps more."""
    event = rng.choice(scene.events)
    attributes = rng.choice((("kind",), ("kind", "colour"), ("colour",)))
    said = EventDescription(
        kind=event.actor.kind if "kind" in attributes else None,
        colour=event.actor.colour if "colour" in attributes else None,
        action=event.action if rng.random() < 0.5 else None,
    )
    return Description(scene.background if rng.random() < 0.3 else None, (said,))


def facts_of(scene: Scene) -> list[int]:
    """A scene as `NUM_FACTS` numbers; a second event that is not there has kind, colour and action -2."""
    row = [BACKGROUNDS.index(scene.background), len(scene.events), int(scene.same_actor)]
    for event in scene.events:
        row += [KINDS.index(event.actor.kind), COLOURS.index(event.actor.colour), ACTIONS.index(event.action)]
    return row + [-2] * (NUM_FACTS - len(row))


def claims_of(description: Description) -> list[int]:
    """A description as `NUM_CLAIMS` numbers, `NOT_SAID` where it says nothing."""

    def number(value: str | None, values: tuple[str, ...]) -> int:
        return NOT_SAID if value is None else values.index(value)

    row = [number(description.background, BACKGROUNDS), len(description.events), int(description.same_actor)]
    for said in description.events:
        row += [number(said.kind, KINDS), number(said.colour, COLOURS), number(said.action, ACTIONS)]
    return row + [NOT_SAID] * (NUM_CLAIMS - len(row))


def true_of(claims: NDArray[np.int64], facts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each caption is true of each video: bool [T, V].

    claims: int64 [T, NUM_CLAIMS], from `claims_of`. facts: int64 [V, NUM_FACTS], from `facts_of`.
    """
    claimed, actual = claims[:, None, :], facts[None, :, :]  # [T, 1, 9], [1, V, 9]

    def matches(said: int, event: int) -> NDArray[np.bool_]:
        of_caption = claimed[..., 3 + 3 * said : 6 + 3 * said]
        of_video = actual[..., 3 + 3 * event : 6 + 3 * event]
        same: NDArray[np.bool_] = ((of_caption == NOT_SAID) | (of_caption == of_video)).all(axis=-1)
        return same

    has_two = actual[..., 1] == 2
    background = (claimed[..., 0] == NOT_SAID) | (claimed[..., 0] == actual[..., 0])
    one = matches(0, 0) | (matches(0, 1) & has_two)
    two = matches(0, 0) & matches(1, 1) & has_two & ((claimed[..., 2] == 0) | (actual[..., 2] == 1))
    true: NDArray[np.bool_] = background & np.where(claimed[..., 1] == 1, one, two)
    return true
