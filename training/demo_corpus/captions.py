"""Captions: what they claim of a scene (descriptions), and the sentences that say it (phrases).

A description may be partial: it may leave out the background, a colour, a kind, the actions, or one of two
events. It is read as a claim about the video, not as a complete account: "a red car spins" is true of a
video in which a red car spins and then a blue boat grows.

The order of mention is not always the order in time ("a blue boat grows after a red car spins"): telling them
apart is part of what the demo model learns. `vocabulary` is read off the same tables, so it cannot go stale.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from training.demo_corpus.motion import Placement, place
from training.demo_corpus.scene import ACTIONS, BACKGROUNDS, COLOURS, KINDS, Event, Scene


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


def describe_briefly(scene: Scene, rng: random.Random) -> Description:
    """A short query: one thing, by its kind or colour or both, perhaps with its action or the background."""
    event = rng.choice(scene.events)
    attributes = rng.choice((("kind",), ("kind", "colour"), ("colour",)))
    said = EventDescription(
        kind=event.actor.kind if "kind" in attributes else None,
        colour=event.actor.colour if "colour" in attributes else None,
        action=event.action if rng.random() < 0.65 else None,
    )
    return Description(scene.background if rng.random() < 0.15 else None, (said,))


# The same claims as numbers, for whole batches.

NOT_SAID = -1
NOTHING_SHOWN = -2
NUM_CLAIMS = 9
NUM_FACTS = 9
"""Columns of both: background, number of events, same actor, then kind, colour, action of two events."""
FIRST_KIND = 3


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
    """Whether each caption is true of each video, as `satisfies` has it: bool [T, V].

    Args:
        claims: int64 [T, NUM_CLAIMS], from `claims_of`.
        facts: int64 [V, NUM_FACTS], from `facts_of`.
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


# Each action's phrases: as a verb ("a car ...") and as a participle ("a video of a car ...").
ACTION_PHRASES: dict[str, tuple[tuple[str, str], ...]] = {
    "moves right": (
        ("moves right", "moving right"),
        ("moves to the right", "moving to the right"),
        ("goes to the right", "going to the right"),
        ("slides right", "sliding right"),
        ("moves from left to right", "moving from left to right"),
    ),
    "moves left": (
        ("moves left", "moving left"),
        ("moves to the left", "moving to the left"),
        ("goes to the left", "going to the left"),
        ("slides left", "sliding left"),
        ("moves from right to left", "moving from right to left"),
    ),
    "rises": (
        ("rises", "rising"),
        ("moves up", "moving up"),
        ("goes up", "going up"),
        ("climbs", "climbing"),
    ),
    "falls": (
        ("falls", "falling"),
        ("moves down", "moving down"),
        ("goes down", "going down"),
        ("drops", "dropping"),
    ),
    "grows": (
        ("grows", "growing"),
        ("gets bigger", "getting bigger"),
        ("gets larger", "getting larger"),
    ),
    "shrinks": (
        ("shrinks", "shrinking"),
        ("gets smaller", "getting smaller"),
    ),
    "spins": (
        ("spins", "spinning"),
        ("turns around", "turning around"),
        ("rotates", "rotating"),
    ),
    "blinks": (
        ("blinks", "blinking"),
        ("flashes", "flashing"),
        ("blinks on and off", "blinking on and off"),
    ),
    "bounces": (
        ("bounces", "bouncing"),
        ("jumps up and down", "jumping up and down"),
        ("bounces up and down", "bouncing up and down"),
    ),
    "sways": (
        ("sways", "swaying"),
        ("swings", "swinging"),
        ("swings from side to side", "swinging from side to side"),
    ),
    "appears": (
        ("appears", "appearing"),
        ("shows up", "showing up"),
        ("comes into view", "coming into view"),
    ),
    "disappears": (
        ("disappears", "disappearing"),
        ("vanishes", "vanishing"),
        ("goes out of view", "going out of view"),
    ),
}

BACKGROUND_PHRASES: dict[str, tuple[str, ...]] = {
    "night": ("at night", "under the night sky", "in the dark"),
    "meadow": ("in a meadow", "on the grass", "in a field"),
    "beach": ("on a beach", "at the beach", "at the seaside"),
    "sea": ("at sea", "on the sea", "on the ocean"),
    "desert": ("in a desert", "in the desert"),
    "snow": ("in the snow", "in winter"),
    "city": ("in a city", "in the city", "in town"),
    "room": ("in a room", "indoors"),
}

_SYNONYMS = {"plane": ("plane", "airplane"), "bicycle": ("bicycle", "bike"), "cup": ("cup", "mug")}
KIND_WORDS: dict[str, tuple[str, ...]] = {kind: _SYNONYMS.get(kind, (kind,)) for kind in KINDS}

# A thing of which only the colour is said.
ANYTHING = ("something {colour}", "a {colour} thing")

# Two events, {first} and {second} in time, each a whole clause ("a red car spins").
TWO_CLAUSES: tuple[str, ...] = (
    "{first}, then {second}",
    "{first} and then {second}",
    "first {first}, then {second}",
    "{first}, and after that {second}",
    "{first} before {second}",
    "after {first}, {second}",
    "{second} after {first}",
    "before {second}, {first}",
    "{second}, but first {first}",
)
# One actor doing two things: {first} and {second} are verbs.
ONE_ACTOR_TWO_VERBS: tuple[str, ...] = (
    "{actor} {first}, then it {second}",
    "{actor} {first} and then {second}",
    "first {actor} {first}, then it {second}",
    "{actor} {first}, and after that it {second}",
    "{actor} {first} before it {second}",
    "after {actor} {first}, it {second}",
    "{actor} {second} after it {first}",
    "before {actor} {second}, it {first}",
    "{actor} {second}, but first it {first}",
)
# The same without verbs, as users type into a search box: "a red car spinning", "a red car".
TWO_PARTICIPLE_CLAUSES: tuple[str, ...] = (
    "{first}, then {second}",
    "{first} and then {second}",
    "{first}, followed by {second}",
)
ONE_ACTOR_TWO_PARTICIPLES: tuple[str, ...] = (
    "{actor} {first}, then {second}",
    "{actor} {first} and then {second}",
)

WITH_BACKGROUND: tuple[str, ...] = ("{said} {where}", "{said} {where}", "{where}, {said}")
TWO_WITH_BACKGROUND: tuple[str, ...] = ("{said}, {where}", "{where}, {said}")

PLACES: dict[tuple[int, int], tuple[str, ...]] = {
    (-1, -1): ("at the top left",),
    (0, -1): ("at the top",),
    (1, -1): ("at the top right",),
    (-1, 0): ("on the left",),
    (0, 0): ("in the middle",),
    (1, 0): ("on the right",),
    (-1, 1): ("at the bottom left",),
    (0, 1): ("at the bottom",),
    (1, 1): ("at the bottom right",),
}
SIZES: dict[int, tuple[str, ...]] = {-1: ("small",), 0: ("",), 1: ("large", "big")}
TURNED = "tilted"
UPSIDE_DOWN = "upside down"
NOTHING = "nothing"

_PARTICIPLE_SHARE = 0.3


def say(description: Description, rng: random.Random) -> str:
    """The description as a sentence in lower case, in one of many wordings."""
    as_participles = rng.random() < _PARTICIPLE_SHARE or None in [said.action for said in description.events]
    if len(description.events) == 1:
        said = _clause(description.events[0], as_participles, rng)
        patterns = WITH_BACKGROUND
    else:
        said = _two_events(description, as_participles, rng)
        patterns = TWO_WITH_BACKGROUND
    if description.background is None:
        return said
    where = rng.choice(BACKGROUND_PHRASES[description.background])
    return rng.choice(patterns).format(said=said, where=where)


def plain_caption(scene: Scene) -> str:
    """The full description in its plainest wording, events in the order of time; the same every time."""
    clauses = [
        f"{_with_article(f'{event.actor.colour} {event.actor.kind}')} {ACTION_PHRASES[event.action][0][0]}"
        for event in scene.events
    ]
    if scene.same_actor:
        clauses[1] = f"it {ACTION_PHRASES[scene.events[1].action][0][0]}"
    where = BACKGROUND_PHRASES[scene.background][0]
    return f"{clauses[0]} {where}" if len(clauses) == 1 else f"{clauses[0]}, then {clauses[1]}, {where}"


def _two_events(description: Description, as_participles: bool, rng: random.Random) -> str:
    first, second = description.events
    if description.same_actor:
        patterns = ONE_ACTOR_TWO_PARTICIPLES if as_participles else ONE_ACTOR_TWO_VERBS
        return rng.choice(patterns).format(
            actor=_actor(first, rng),
            first=_action(first, as_participles, rng),
            second=_action(second, as_participles, rng),
        )
    patterns = TWO_PARTICIPLE_CLAUSES if as_participles else TWO_CLAUSES
    return rng.choice(patterns).format(
        first=_clause(first, as_participles, rng), second=_clause(second, as_participles, rng)
    )


def _clause(said: EventDescription, as_participle: bool, rng: random.Random) -> str:
    action = _action(said, as_participle, rng)
    return f"{_actor(said, rng)} {action}".rstrip()


def _action(said: EventDescription, as_participle: bool, rng: random.Random) -> str:
    if said.action is None:
        return ""
    return rng.choice(ACTION_PHRASES[said.action])[1 if as_participle else 0]


def _actor(said: EventDescription, rng: random.Random) -> str:
    if said.kind is None:
        return _with_article_corrected(rng.choice(ANYTHING).format(colour=said.colour))
    words = [said.colour] if said.colour is not None else []
    return _with_article(" ".join([*words, rng.choice(KIND_WORDS[said.kind])]))


def _with_article_corrected(said: str) -> str:
    return said.replace("a orange", "an orange")


def _with_article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def describe_frame(scene: Scene, time_seconds: float, rng: random.Random) -> str:
    """What one frame shows, in words: size, colour, kind, place, and mostly the background.

    "a small red car at the top left, on a beach"; "nothing, in the snow" while the actor is hidden.
    """
    placement = place(scene, time_seconds)
    where = rng.choice(BACKGROUND_PHRASES[scene.background])
    if placement is None or placement.opacity < 0.5:
        return f"{NOTHING}, {where}"
    turned = _turned(placement)
    words = [
        rng.choice(SIZES[-1 if placement.size < 0.32 else 1 if placement.size > 0.58 else 0]),
        TURNED if turned == TURNED else "",
        placement.actor.colour,
        rng.choice(KIND_WORDS[placement.actor.kind]),
        UPSIDE_DOWN if turned == UPSIDE_DOWN else "",
    ]
    spot = rng.choice(PLACES[_third(placement.centre_x), _third(placement.centre_y)])
    said = f"{_with_article(' '.join(word for word in words if word))} {spot}"
    return said if rng.random() < 0.2 else f"{said}, {where}"


def shown(scene: Scene, time_seconds: float) -> tuple[int, int]:
    """Kind and colour of what one frame shows, as numbers; `NOTHING_SHOWN` twice while it is hidden."""
    placement = place(scene, time_seconds)
    if placement is None or placement.opacity < 0.5:
        return NOTHING_SHOWN, NOTHING_SHOWN
    return KINDS.index(placement.actor.kind), COLOURS.index(placement.actor.colour)


def names() -> Iterator[tuple[tuple[str, str], tuple[int, int]]]:
    """Every kind, every colour and both together, in two wordings, with kind and colour as numbers.

    A number is `NOT_SAID` where the name leaves it open; the wordings are the same where there is only one.
    """
    for colour_number, colour in enumerate(COLOURS):
        first, second = (pattern.format(colour=colour) for pattern in ANYTHING)
        yield (_with_article_corrected(first), _with_article_corrected(second)), (NOT_SAID, colour_number)
    for kind_number, kind in enumerate(KINDS):
        words = KIND_WORDS[kind]
        for colour_number, said in ((NOT_SAID, ""), *((n, f"{name} ") for n, name in enumerate(COLOURS))):
            wordings = (_with_article(said + words[0]), _with_article(said + words[-1]))
            yield wordings, (kind_number, colour_number)


def named_by(claims: NDArray[np.int64], facts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each name is true of each frame: bool [M, N].

    Args:
        claims: int64 [M, 2], of `names`.
        facts: int64 [N, 2], of `shown`.
    """
    claimed = claims[:, None, :]
    true: NDArray[np.bool_] = ((claimed == NOT_SAID) | (claimed == facts)).all(axis=-1)
    return true


def _third(fraction: float) -> int:
    return -1 if fraction < 0.39 else 1 if fraction > 0.61 else 0


def _turned(placement: Placement) -> str:
    degrees = placement.turn_degrees % 360.0
    away = min(degrees, 360.0 - degrees)
    return UPSIDE_DOWN if away > 135.0 else TURNED if away > 30.0 else ""


@lru_cache(maxsize=1)
def vocabulary() -> frozenset[str]:
    """Every word that a caption can contain, in lower case, gathered from the tables of this file."""
    phrases = [
        *COLOURS,
        *(word for words in KIND_WORDS.values() for word in words),
        *(phrase for pairs in ACTION_PHRASES.values() for pair in pairs for phrase in pair),
        *(phrase for words in BACKGROUND_PHRASES.values() for phrase in words),
        *(phrase for words in PLACES.values() for phrase in words),
        *(phrase for words in SIZES.values() for phrase in words),
        *ANYTHING,
        *TWO_CLAUSES,
        *ONE_ACTOR_TWO_VERBS,
        *TWO_PARTICIPLE_CLAUSES,
        *ONE_ACTOR_TWO_PARTICIPLES,
        *WITH_BACKGROUND,
        *TWO_WITH_BACKGROUND,
        *(TURNED, UPSIDE_DOWN, NOTHING, "a", "an"),
    ]
    without_slots = (re.sub(r"\{\w+\}", " ", phrase) for phrase in phrases)
    return frozenset(word for phrase in without_slots for word in re.findall(r"[a-z]+", phrase))
