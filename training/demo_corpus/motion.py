"""Where the active actor of a scene is at any time: centre, size, turn and opacity.

Every action is readable from the frames at whole seconds: a motion is over one second before its phase ends
(the last whole second shows its end), a blink, bounce or sway is at one extreme on even seconds and at the
other on odd ones, and the two phases change over between whole seconds.

    phase of 4 s     0 . . . 1 . . . 2 . . . 3 . . . 4
    motion           |=======================| held
    appears          hidden .... |shown .............        (at 1.5 s)
    change-over                                 \\ /         (out 3.35-3.55 s, in 3.65-3.85 s)
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import lru_cache

from training.demo_corpus.scene import Actor, Event, Scene

DEGREES_PER_SECOND = 54.0  # a full turn takes 6.7 s, so no whole second repeats an earlier one's orientation
_FADE_SECONDS = 0.2
_FADE_OUT_START_BEFORE_END = 0.65
_FADE_IN_START_BEFORE_START = 0.35


@dataclass(frozen=True)
class Placement:
    """One visible actor, in fractions of the frame's side from the top left; `turn_degrees` is clockwise."""

    actor: Actor
    centre_x: float
    centre_y: float
    size: float
    turn_degrees: float
    opacity: float


@dataclass(frozen=True)
class _Variation:
    """What `variation_seed` decides about one event."""

    size: float  # share of the frame's side, 0.42 to 0.54, of which the halo and outline are a seventh
    along: float  # -1 to 1: shifts a path's two ends
    offset_x: float  # -1 to 1
    offset_y: float  # -1 to 1
    speed: float  # 0.95 to 1.08, of a spin


@lru_cache(maxsize=4096)
def _variation(scene: Scene, position: int) -> _Variation:
    # An actor that acts twice keeps its size, so that it is seen to be the same one.
    size = random.Random(scene.variation_seed * 2 + (0 if scene.same_actor else position)).uniform(0.42, 0.54)
    rng = random.Random(scene.variation_seed * 2 + position + 1_000_003)
    return _Variation(
        size=size,
        along=rng.uniform(-1, 1),
        offset_x=rng.uniform(-1, 1),
        offset_y=rng.uniform(-1, 1),
        speed=rng.uniform(0.95, 1.08),
    )


def place(scene: Scene, time_seconds: float) -> Placement | None:
    """The active actor at a time in [0, 8]; None while it is hidden."""
    phase = scene.phase_seconds
    position = 0
    fade = 1.0
    if len(scene.events) == 2:
        leaving = _ramp(time_seconds, phase - _FADE_OUT_START_BEFORE_END, _FADE_SECONDS)
        entering = _ramp(time_seconds, phase - _FADE_IN_START_BEFORE_START, _FADE_SECONDS)
        position = 1 if entering > 0.0 else 0
        fade = entering if position else 1.0 - leaving
    local = max(0.0, time_seconds - position * phase)
    placement = _act(scene.events[position], _variation(scene, position), local, phase, fade)
    return placement if placement.opacity > 0.004 else None


def _ramp(time_seconds: float, start_seconds: float, length_seconds: float) -> float:
    """0 before the start, 1 after the length, smooth between."""
    x = min(1.0, max(0.0, (time_seconds - start_seconds) / length_seconds))
    return x * x * (3.0 - 2.0 * x)


def _act(event: Event, variation: _Variation, local: float, phase: float, fade: float) -> Placement:
    progress = min(1.0, local / (phase - 1.0))
    middle = phase / 2.0 - 0.5  # between two whole seconds
    size = variation.size
    x = 0.5 + 0.12 * variation.offset_x
    y = 0.5 + 0.12 * variation.offset_y
    turn = 0.0
    opacity = 1.0
    path = 0.22 + 0.56 * progress + 0.03 * variation.along
    swing = 0.5 - 0.5 * math.cos(math.pi * local)  # 0 on even seconds, 1 on odd ones
    match event.action:
        case "moves right":
            x = path
        case "moves left":
            x = 1.0 - path
        case "falls":
            y = path
        case "rises":
            y = 1.0 - path
        case "grows":
            size *= 0.4 + 1.0 * progress
        case "shrinks":
            size *= 1.4 - 1.0 * progress
        case "spins":
            turn = DEGREES_PER_SECOND * variation.speed * local
        case "blinks":
            opacity = 1.0 - _ramp(swing, 0.4, 0.2)
        case "bounces":
            height = (
                1.0 - (2.0 * abs(local % 2.0 - 1.0) / 2.0) ** 2
            )  # parabola: 0 on even seconds, 1 on odd ones
            y = 0.73 - 0.46 * height + 0.03 * variation.offset_y
        case "sways":
            x = 0.27 + 0.46 * swing + 0.03 * variation.offset_x
            turn = 24.0 * (swing - 0.5)
        case "appears":
            shown = _ramp(local, middle - 0.2, 0.4)
            opacity = shown
            size *= 0.6 + 0.4 * shown
        case "disappears":
            shown = 1.0 - _ramp(local, middle - 0.2, 0.4)
            opacity = shown
            size *= 0.6 + 0.4 * shown
    return Placement(event.actor, x, y, size, turn, opacity * fade)
