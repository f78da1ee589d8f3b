"""Captions of the demo corpus read back by a reader of their own, and the held-out sets made of them."""

from __future__ import annotations

import random
import re
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.demo_corpus import captions as grammar
from training.demo_corpus.captions import (
    Description,
    EventDescription,
    describe,
    describe_frame,
    full_description,
    plain_caption,
    satisfies,
    say,
    vocabulary,
)
from training.demo_corpus.held_out import (
    GROUP_SIZE,
    CaptionedScene,
    is_held_out,
    mixed_set,
    random_set,
    sample_training_scene,
    sibling_hard_set,
    training_siblings,
)
from training.demo_corpus.scene import (
    COLOURS,
    Actor,
    Event,
    Scene,
    sample_scene,
    scene_key,
    siblings,
    swapped_order,
)

seeds = st.integers(0, 2**31 - 1)
scenes = seeds.map(lambda seed: sample_scene(random.Random(seed)))
RED_CAR = Actor("car", "red")
BLUE_BOAT = Actor("boat", "blue")

_KIND_OF = {word: kind for kind, words in grammar.KIND_WORDS.items() for word in words}
_ACTION_OF = {
    phrase: name for name, pairs in grammar.ACTION_PHRASES.items() for pair in pairs for phrase in pair
}
_BACKGROUND_OF = {phrase: name for name, phrases in grammar.BACKGROUND_PHRASES.items() for phrase in phrases}
_COLOUR = "|".join(COLOURS)
_ACTOR = (
    rf"(?:something (?:{_COLOUR})|an? (?:{_COLOUR}) thing|an? (?:(?:{_COLOUR}) )?(?:{'|'.join(_KIND_OF)}))"
)
_ACTION = f"(?:{'|'.join(_ACTION_OF)})"


@cache
def _patterns() -> list[tuple[re.Pattern[str], bool]]:
    """Every sentence pattern of two events as a regular expression, and whether one actor does both."""
    clause = f"{_ACTOR}(?: {_ACTION})?"
    two = {"first": f"(?P<first>{clause})", "second": f"(?P<second>{clause})"}
    one = {
        "actor": f"(?P<actor>{_ACTOR})",
        "first": f"(?P<first>{_ACTION})",
        "second": f"(?P<second>{_ACTION})",
    }
    return [
        *(
            (re.compile(p.format(**two)), False)
            for p in (*grammar.TWO_CLAUSES, *grammar.TWO_PARTICIPLE_CLAUSES)
        ),
        *((re.compile(p.format(**one)), True) for p in grammar.ONE_ACTOR_TWO_VERBS),
        *((re.compile(p.format(**one)), True) for p in grammar.ONE_ACTOR_TWO_PARTICIPLES),
    ]


def _read_event(clause: str) -> EventDescription:
    actor = re.match(_ACTOR, clause)
    assert actor is not None
    words = actor.group().split()
    kinds = [_KIND_OF[word] for word in words if word in _KIND_OF]
    colours = [word for word in words if word in COLOURS]
    action = clause[actor.end() :].strip()
    return EventDescription(
        kinds[0] if kinds else None, colours[0] if colours else None, _ACTION_OF[action] if action else None
    )


def read(caption: str) -> Description:
    """The one description that a caption can mean. Fails where it can be read in two ways or in none."""
    background = None
    for phrase, name in _BACKGROUND_OF.items():
        if caption.startswith(f"{phrase}, "):
            background, caption = name, caption.removeprefix(f"{phrase}, ")
        elif re.search(rf",? {phrase}$", caption):
            background, caption = name, re.sub(rf",? {phrase}$", "", caption)
    readings = set()
    if re.fullmatch(f"{_ACTOR}(?: {_ACTION})?", caption):
        readings.add(Description(background, (_read_event(caption),)))
    for pattern, same_actor in _patterns():
        found = pattern.fullmatch(caption)
        if found is not None:
            lead = f"{found['actor']} " if same_actor else ""
            reported = (_read_event(lead + found["first"]), _read_event(lead + found["second"]))
            readings.add(Description(background, reported, same_actor))
    assert len(readings) == 1, (caption, readings)
    return readings.pop()


@settings(deadline=None)
@given(scenes, seeds)
def test_a_caption_reads_back_as_the_description_that_was_said(scene: Scene, seed: int) -> None:
    """The order in time included, whichever event is mentioned first."""
    rng = random.Random(seed)
    for partial_share in (0.0, 1.0):
        description = describe(scene, rng, partial_share)
        assert read(say(description, rng)) == description
    assert read(plain_caption(scene)) == full_description(scene)


@settings(deadline=None)
@given(scenes, seeds)
def test_a_scene_satisfies_its_own_description_full_or_partial(scene: Scene, seed: int) -> None:
    assert satisfies(full_description(scene), scene)
    assert satisfies(describe(scene, random.Random(seed), partial_share=1.0), scene)


@settings(deadline=None)
@given(scenes, seeds)
def test_no_sibling_satisfies_the_full_description(scene: Scene, seed: int) -> None:
    """The other order of the events is the first sibling, so it is among these."""
    for other in siblings(scene, random.Random(seed), 12):
        assert not satisfies(full_description(scene), other)
        assert not satisfies(full_description(other), scene)


def test_a_description_is_a_claim_and_not_a_complete_account() -> None:
    scene = Scene("beach", (Event(RED_CAR, "spins"), Event(BLUE_BOAT, "grows")))
    spins = EventDescription("car", "red", "spins")
    grows = EventDescription("boat", None, "grows")
    assert satisfies(Description(None, (spins,)), scene)
    assert satisfies(Description("beach", (spins, grows)), scene)
    assert not satisfies(Description("beach", (grows, spins)), scene)
    assert not satisfies(Description("sea", (spins,)), scene)
    assert not satisfies(Description(None, (EventDescription("car", "blue", None),)), scene)
    its_growing = Description(None, (spins, EventDescription("car", "red", "grows")), same_actor=True)
    assert not satisfies(its_growing, scene)


def test_the_plain_caption_gives_events_in_the_order_of_time() -> None:
    first, second = Event(RED_CAR, "spins"), Event(Actor("umbrella", "orange"), "moves left")
    assert plain_caption(Scene("beach", (first,))) == "a red car spins on a beach"
    two = Scene("sea", (first, second))
    assert plain_caption(two) == "a red car spins, then an orange umbrella moves left, at sea"
    twice = Scene("night", (first, Event(RED_CAR, "grows")))
    assert plain_caption(twice) == "a red car spins, then it grows, at night"


@settings(deadline=None)
@given(scenes, seeds)
def test_every_word_of_every_caption_is_in_the_vocabulary(scene: Scene, seed: int) -> None:
    rng = random.Random(seed)
    frame_captions = [describe_frame(scene, float(second), rng) for second in range(8)]
    for caption in (say(describe(scene, rng), rng), plain_caption(scene), *frame_captions):
        assert re.fullmatch(r"[a-z]+(,? [a-z]+)*", caption)
        assert set(re.findall(r"[a-z]+", caption)) <= vocabulary()
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", caption)


def test_captions_use_the_whole_vocabulary_and_it_is_small() -> None:
    rng = random.Random(0)
    used: set[str] = set()
    for _ in range(10_000):
        scene = sample_scene(rng)
        caption = f"{say(describe(scene, rng), rng)} {describe_frame(scene, rng.randrange(8), rng)}"
        used.update(re.findall(r"[a-z]+", caption))
    assert used == vocabulary()
    assert 100 <= len(used) <= 160


@settings(deadline=None)
@given(scenes, seeds)
def test_captions_are_short(scene: Scene, seed: int) -> None:
    """At most 30 tokens with start and end: one for each word and comma, two for words that CLIP cuts."""
    rng = random.Random(seed)
    cut = ("shrinks", "bounces", "blinking", "swaying", "sways", "rotates", "blinks", "tilted", "vanishes")
    pieces = re.findall(r"[a-z]+|,", say(describe(scene, rng), rng))
    assert len(pieces) + sum(piece in cut for piece in pieces) + 2 <= 30


@pytest.mark.slow
def test_captions_fit_thirty_tokens_of_the_real_tokenizer() -> None:
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    rng = random.Random(0)
    for _ in range(5000):
        scene = sample_scene(rng)
        for caption in (say(describe(scene, rng), rng), describe_frame(scene, rng.randrange(8), rng)):
            assert len(tokenizer.encode(caption)) + 2 <= 30


def _assert_each_caption_is_true_of_its_scene_alone(captioned: list[CaptionedScene]) -> None:
    for scene, caption in captioned:
        claim = read(caption)
        assert [other for other, _ in captioned if satisfies(claim, other)] == [scene], caption


@settings(max_examples=8, deadline=None)
@given(seeds)
def test_held_out_captions_are_unique_for_any_seed(seed: int) -> None:
    for captioned in (random_set(60, seed), sibling_hard_set(60, seed), mixed_set(30, 30, seed)):
        assert len(captioned) == 60
        assert all(is_held_out(scene) for scene, _ in captioned)
        _assert_each_caption_is_true_of_its_scene_alone(captioned)


def test_a_share_of_held_out_captions_is_partial() -> None:
    captioned = random_set(300, 2)
    num_partial = sum(read(caption) != full_description(scene) for scene, caption in captioned)
    assert 20 <= num_partial <= 90


def test_the_same_seed_gives_the_same_set_and_another_seed_another() -> None:
    assert random_set(20, 4) == random_set(20, 4)
    assert sibling_hard_set(20, 4) == sibling_hard_set(20, 4)
    assert random_set(20, 4) != random_set(20, 5)


def test_hard_groups_hold_the_other_order_of_two_events() -> None:
    captioned = sibling_hard_set(100, 9)
    num_orders = 0
    for start in range(0, 100, GROUP_SIZE):
        base, *others = [scene for scene, _ in captioned[start : start + GROUP_SIZE]]
        if len(base.events) == 2:
            assert scene_key(others[0]) == scene_key(swapped_order(base))
            num_orders += 1
    assert num_orders >= 10


@settings(deadline=None)
@given(seeds)
def test_training_never_sees_a_held_out_scene(seed: int) -> None:
    rng = random.Random(seed)
    scene = sample_training_scene(rng)
    assert not any(is_held_out(other) for other in [scene, *training_siblings(scene, rng, 6)])


@settings(deadline=None)
@given(scenes.filter(lambda scene: len(scene.events) == 2))
def test_both_orders_are_held_out_or_neither(scene: Scene) -> None:
    assert is_held_out(scene) == is_held_out(swapped_order(scene))


def test_a_tenth_of_all_scenes_is_held_out_and_most_have_two_events() -> None:
    rng = random.Random(0)
    drawn = [sample_scene(rng) for _ in range(4000)]
    assert 0.08 < sum(is_held_out(scene) for scene in drawn) / 4000 < 0.12
    assert 0.72 < sum(len(scene.events) == 2 for scene in drawn) / 4000 < 0.78
    assert 0.12 < sum(scene.same_actor for scene in drawn) / 4000 < 0.18
