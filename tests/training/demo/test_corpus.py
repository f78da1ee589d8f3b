"""Scenes of the demo corpus: what their siblings, movements and pixels promise."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.demo_corpus.captions import EventDescription
from training.demo_corpus.motion import place
from training.demo_corpus.pictograms import draw_pictogram
from training.demo_corpus.rendering import render_clip, render_frame
from training.demo_corpus.scene import (
    ACTIONS,
    BACKGROUNDS,
    COLOURS,
    KINDS,
    Actor,
    Event,
    Scene,
    scene_key,
    siblings,
    swapped_order,
)

actors = st.builds(Actor, st.sampled_from(KINDS), st.sampled_from(COLOURS))
events = st.builds(Event, actors, st.sampled_from(ACTIONS))
seeds = st.integers(0, 2**31 - 1)
one_event_scenes = st.builds(lambda b, e, s: Scene(b, (e,), s), st.sampled_from(BACKGROUNDS), events, seeds)
two_event_scenes = st.builds(
    lambda b, e, s: Scene(b, e, s),
    st.sampled_from(BACKGROUNDS),
    st.tuples(events, events).filter(lambda pair: pair[0] != pair[1]),
    seeds,
)
same_actor_scenes = st.builds(
    lambda b, a, acts, s: Scene(b, (Event(a, acts[0]), Event(a, acts[1])), s),
    st.sampled_from(BACKGROUNDS),
    actors,
    st.permutations(ACTIONS),
    seeds,
)
scenes = one_event_scenes | two_event_scenes | same_actor_scenes
RED_CAR = Actor("car", "red")
BLUE_BOAT = Actor("boat", "blue")


def _things_changed(old: Scene, new: Scene) -> list[str]:
    """The sorts of change between two scenes; a list of one for siblings."""
    if old.background != new.background:
        assert old.events == new.events
        return ["background"]
    if len(old.events) == 2:
        if new.events == (old.events[1], old.events[0]):
            return ["order"]
        old_actors, new_actors = [e.actor for e in old.events], [e.actor for e in new.events]
        same_actions = [e.action for e in old.events] == [e.action for e in new.events]
        if same_actions and new_actors == old_actors[::-1]:
            return ["actors"]
        if same_actions and old.same_actor and new.same_actor:
            (first, _), (second, _) = old_actors, new_actors
            return [name for name in ("kind", "colour") if getattr(first, name) != getattr(second, name)]
    changed = []
    for before, after in zip(old.events, new.events, strict=True):
        changed += [
            name for name in ("kind", "colour") if getattr(before.actor, name) != getattr(after.actor, name)
        ]
        changed += ["action"] if before.action != after.action else []
    return changed


@settings(deadline=None)
@given(scenes, seeds)
def test_every_sibling_differs_in_exactly_one_thing(scene: Scene, seed: int) -> None:
    found = siblings(scene, random.Random(seed), 12)
    assert len(found) == 12
    assert len({scene_key(other) for other in [scene, *found]}) == 13
    assert all(len(_things_changed(scene, other)) == 1 for other in found)


@settings(deadline=None)
@given(two_event_scenes | same_actor_scenes, seeds)
def test_the_other_order_is_the_first_sibling_of_two_events(scene: Scene, seed: int) -> None:
    assert scene_key(siblings(scene, random.Random(seed), 1)[0]) == scene_key(swapped_order(scene))


@settings(deadline=None)
@given(one_event_scenes, seeds)
def test_siblings_end_when_there_are_no_more(scene: Scene, seed: int) -> None:
    found = siblings(scene, random.Random(seed), 10_000)
    num = len(KINDS) + len(COLOURS) + len(ACTIONS) + len(BACKGROUNDS) - 4
    assert len({scene_key(other) for other in found}) == len(found) == num


@pytest.mark.parametrize(
    "build",
    [
        lambda: Actor("dragon", "red"),
        lambda: Event(RED_CAR, "explodes"),
        lambda: Scene("moon", (Event(RED_CAR, "spins"),)),
        lambda: Scene("sea", ()),
        lambda: Scene("sea", (Event(RED_CAR, "spins"), Event(RED_CAR, "spins"))),
        lambda: EventDescription(None, None, "spins"),
        lambda: draw_pictogram("dragon", "red", 64),
        lambda: draw_pictogram("car", "red", 0),
    ],
)
def test_what_cannot_be_drawn_cannot_be_built(build: object) -> None:
    with pytest.raises(ValueError):
        build()  # type: ignore[operator]


@pytest.mark.parametrize("num_events", [1, 2])
@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_is_readable_from_one_frame_a_second(action: str, num_events: int) -> None:
    """Measured on the placements at whole seconds of the action's own phase, for many variations."""
    for seed in range(30):
        event = Event(RED_CAR, action)
        other = Event(BLUE_BOAT, "blinks")
        scene = Scene("sea", (other, event) if num_events == 2 else (event,), seed)
        times = range(4, 8) if num_events == 2 else range(8)
        places = [place(scene, float(time)) for time in times]
        hidden = [found is None for found in places]
        num = len(places)
        if action == "blinks":
            assert hidden == [False, True] * (num // 2)
        elif action == "appears":
            assert hidden == [True] * (num // 2) + [False] * (num // 2)
        elif action == "disappears":
            assert hidden == [False] * (num // 2) + [True] * (num // 2)
        seen = [found for found in places if found is not None]
        assert all(found.actor == RED_CAR and found.opacity > 0.99 for found in seen)
        x, y = [p.centre_x for p in seen], [p.centre_y for p in seen]
        sizes, turns = [p.size for p in seen], [p.turn_degrees for p in seen]
        assert all(0.18 <= value <= 0.82 for value in x + y)
        assert (x[-1] - x[0] > 0.5) == (action == "moves right")
        assert (x[0] - x[-1] > 0.5) == (action == "moves left")
        assert (y[-1] - y[0] > 0.5) == (action == "falls")
        assert (y[0] - y[-1] > 0.5) == (action == "rises")
        assert (sizes[-1] / sizes[0] > 2.5) == (action == "grows")
        assert (sizes[0] / sizes[-1] > 2.5) == (action == "shrinks")
        assert (max(turns) > 100) == (action == "spins")
        if action == "bounces":
            assert all(abs(b - a) > 0.35 for a, b in pairwise(y))
        elif action == "sways":
            assert all(abs(b - a) > 0.35 for a, b in pairwise(x))


@settings(deadline=None, max_examples=30)
@given(scenes, st.floats(0, 8))
def test_rendering_is_deterministic(scene: Scene, time: float) -> None:
    frame = render_frame(scene, time, 64)
    assert frame.shape == (64, 64, 3)
    assert frame.dtype == np.uint8
    assert np.array_equal(frame, render_frame(scene, time, 64))


@settings(deadline=None, max_examples=30)
@given(scenes)
def test_the_variation_changes_the_pixels_and_not_the_key(scene: Scene) -> None:
    other = Scene(scene.background, scene.events, scene.variation_seed + 1)
    assert scene_key(other) == scene_key(scene)
    assert not np.array_equal(render_clip(scene, range(8), 48), render_clip(other, range(8), 48))


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("colour", COLOURS)
def test_no_colour_disappears_into_a_background(background: str, colour: str) -> None:
    """Outline and halo leave strong contrasts in a frame that are not there without the actor."""
    shown = render_frame(Scene(background, (Event(Actor("heart", colour), "appears"),), 1), 7.0, 64).astype(
        int
    )
    empty = render_frame(Scene(background, (Event(Actor("heart", colour), "appears"),), 1), 0.0, 64).astype(
        int
    )
    changed = np.abs(shown - empty).max(axis=-1)
    assert (changed > 40).mean() > 0.03


def test_pictograms_differ_by_their_silhouettes() -> None:
    """No two kinds cover nearly the same pixels at the size that the model sees."""
    masks = {kind: np.array(draw_pictogram(kind, "red", 32))[..., 3] > 127 for kind in KINDS}
    for kind, mask in masks.items():
        for other, other_mask in masks.items():
            overlap = (mask & other_mask).sum() / (mask | other_mask).sum()
            assert kind == other or overlap < 0.97, (kind, other)


def test_movement_is_smooth_within_a_phase() -> None:
    scene = Scene("room", (Event(RED_CAR, "moves right"),), 3)
    xs = [place(scene, index / 12) for index in range(96)]
    steps = np.diff([found.centre_x for found in xs if found is not None])
    assert len(steps) == 95
    assert steps.max() < 0.01
    assert steps.min() >= 0.0
