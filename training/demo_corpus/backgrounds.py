"""Scenery: eight drawn places in soft colours, each in `NUM_VARIANTS` versions.

Nothing in a scenery looks like a pictogram (no houses, trees or big stars to be searched for), and its
colours are paler or darker than the pictograms' own.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from training.demo_corpus.pictograms import Point, Rgb, mixed
from training.demo_corpus.scene import BACKGROUNDS

NUM_VARIANTS = 24  # few, so that a training run finds its scenery in the cache
_SIDE = 512  # pixels drawn; reduced to what is asked for


class _Canvas:
    """Draws in fractions of the frame's side, (0, 0) the top left."""

    def __init__(self, stops: Sequence[tuple[float, Rgb]]) -> None:
        """`stops`: height and colour of a vertical gradient, from the top down."""
        heights = [height for height, _ in stops]
        rows = np.linspace(0.0, 1.0, _SIDE)
        columns = [np.interp(rows, heights, [colour[channel] for _, colour in stops]) for channel in range(3)]
        gradient = np.repeat(np.stack(columns, axis=-1)[:, None, :], _SIDE, axis=1)
        self.image = Image.fromarray(np.round(gradient).astype(np.uint8))
        self.draw = ImageDraw.Draw(self.image)

    def circle(self, x: float, y: float, radius: float, fill: Rgb) -> None:
        self.ellipse(x, y, radius, radius, fill)

    def ellipse(self, x: float, y: float, radius_x: float, radius_y: float, fill: Rgb) -> None:
        box = (x - radius_x, y - radius_y, x + radius_x, y + radius_y)
        self.draw.ellipse([value * _SIDE for value in box], fill=fill)

    def rectangle(self, left: float, top: float, right: float, bottom: float, fill: Rgb) -> None:
        self.draw.rectangle([value * _SIDE for value in (left, top, right, bottom)], fill=fill)

    def polygon(self, points: Sequence[Point], fill: Rgb) -> None:
        self.draw.polygon([(x * _SIDE, y * _SIDE) for x, y in points], fill=fill)

    def land(self, height: Callable[[float], float], fill: Rgb) -> None:
        """Fills everything below a line y = height(x)."""
        line = [(index / 64, height(index / 64)) for index in range(65)]
        self.polygon([*line, (1.0, 1.0), (0.0, 1.0)], fill)


def _hills(rng: random.Random, level: float, swell: float) -> Callable[[float], float]:
    """A rolling line about a height: two waves with random phases."""
    first, second = rng.uniform(0, 6.28), rng.uniform(0, 6.28)
    slow, quick = rng.uniform(4.0, 6.5), rng.uniform(8.0, 12.0)
    return lambda x: level + swell * (math.sin(slow * x + first) + 0.4 * math.sin(quick * x + second))


def _waves(level: float, rise: float, width: float, phase: float) -> Callable[[float], float]:
    """A line of round troughs and pointed crests."""
    return lambda x: level - rise * math.sqrt(abs(math.sin(width * x / 2 + phase)))


def _lower(line: Callable[[float], float], by: float) -> Callable[[float], float]:
    """The same line further down."""
    return lambda x: line(x) + by


def _cloud(canvas: _Canvas, x: float, y: float, size: float, fill: Rgb) -> None:
    for dx, dy, radius in ((-1.0, 0.1, 0.55), (-0.35, -0.25, 0.75), (0.4, -0.1, 0.7), (1.05, 0.15, 0.5)):
        canvas.ellipse(x + dx * size, y + dy * size, radius * size, radius * size * 0.8, fill)
    canvas.rectangle(x - size, y + 0.1 * size, x + 1.05 * size, y + 0.52 * size, fill)


def _night(rng: random.Random) -> _Canvas:
    canvas = _Canvas([(0.0, (12, 14, 42)), (0.6, (36, 34, 84)), (1.0, (70, 58, 112))])
    for _ in range(rng.randint(70, 100)):
        light = rng.uniform(0.35, 1.0)
        colour = mixed((40, 40, 90), (236, 236, 255), light)
        canvas.circle(rng.random(), rng.uniform(0.0, 0.86), rng.choice((0.0025, 0.0035, 0.0055)), colour)
    canvas.land(_hills(rng, 0.86, 0.025), (24, 22, 58))
    canvas.land(_hills(rng, 0.93, 0.018), (12, 12, 36))
    return canvas


def _meadow(rng: random.Random) -> _Canvas:
    canvas = _Canvas([(0.0, (150, 204, 238)), (0.6, (222, 240, 246)), (1.0, (222, 240, 246))])
    for _ in range(rng.randint(2, 3)):
        _cloud(canvas, rng.random(), rng.uniform(0.08, 0.3), rng.uniform(0.05, 0.09), (246, 250, 252))
    canvas.land(_hills(rng, 0.55, 0.04), (168, 206, 142))
    canvas.land(_hills(rng, 0.68, 0.035), (142, 190, 112))
    canvas.land(_hills(rng, 0.84, 0.025), (118, 172, 92))
    for _ in range(70):
        x, y = rng.random(), rng.uniform(0.74, 0.99)
        for lean in (-0.006, 0.0, 0.006):
            canvas.polygon([(x - 0.003, y), (x + 0.003, y), (x + lean, y - 0.026)], (92, 148, 74))
    return canvas


def _beach(rng: random.Random) -> _Canvas:
    canvas = _Canvas([(0.0, (136, 206, 236)), (0.36, (214, 240, 246)), (1.0, (214, 240, 246))])
    _cloud(canvas, rng.random(), rng.uniform(0.08, 0.22), rng.uniform(0.05, 0.08), (248, 252, 252))
    canvas.rectangle(0.0, 0.36, 1.0, 1.0, (92, 184, 204))
    canvas.rectangle(0.0, 0.36, 1.0, 0.42, (74, 164, 194))
    shore = _hills(rng, 0.57, 0.022)
    canvas.land(_lower(shore, -0.05), (146, 216, 218))
    canvas.land(_lower(shore, -0.012), (250, 252, 248))
    canvas.land(_lower(shore, 0.012), (212, 186, 140))
    canvas.land(_lower(shore, 0.06), (240, 218, 168))
    for _ in range(60):
        x, y = rng.random(), rng.uniform(0.7, 0.99)
        canvas.ellipse(x, y, rng.uniform(0.003, 0.008), 0.003, rng.choice(((216, 188, 138), (250, 236, 204))))
    return canvas


def _sea(rng: random.Random) -> _Canvas:
    canvas = _Canvas([(0.0, (178, 214, 228)), (0.24, (228, 238, 238)), (1.0, (228, 238, 238))])
    if rng.random() < 0.7:
        _cloud(canvas, rng.random(), rng.uniform(0.06, 0.12), rng.uniform(0.04, 0.06), (248, 250, 250))
    num_waves = 7
    for index in range(num_waves):
        depth = index / (num_waves - 1)
        level, phase = 0.24 + 0.115 * index, rng.uniform(0, 6.28)
        width, rise = 20.0 - 8.0 * depth, 0.008 + 0.014 * depth
        fill = mixed((120, 188, 206), (22, 88, 128), depth)

        crest = _waves(level, rise, width, phase)
        canvas.land(_lower(crest, -0.008), mixed(fill, (255, 255, 255), 0.45))
        canvas.land(crest, fill)
    return canvas


def _desert(rng: random.Random) -> _Canvas:
    canvas = _Canvas([(0.0, (250, 214, 160)), (0.5, (252, 236, 206)), (1.0, (252, 236, 206))])
    canvas.circle(rng.uniform(0.15, 0.85), rng.uniform(0.12, 0.24), 0.07, (255, 248, 226))
    for level, swell, fill in (
        (0.5, 0.05, (230, 186, 128)),
        (0.64, 0.045, (214, 160, 100)),
        (0.8, 0.035, (194, 134, 80)),
    ):
        line = _hills(rng, level, swell)
        canvas.land(line, mixed(fill, (255, 240, 210), 0.35))
        canvas.land(_lower(line, 0.012), fill)
    for _ in range(rng.randint(1, 2)):
        x, y, tall = rng.uniform(0.06, 0.94), rng.uniform(0.62, 0.8), rng.uniform(0.08, 0.13)
        green = (112, 132, 92)
        canvas.rectangle(x - 0.011, y - tall, x + 0.011, y, green)
        canvas.circle(x, y - tall, 0.011, green)
        for side, share in ((1, 0.45), (-1, 0.6)):
            arm = y - tall * share
            canvas.rectangle(min(x, x + side * 0.04), arm, max(x, x + side * 0.04), arm + 0.014, green)
            canvas.rectangle(
                x + side * 0.033 - 0.007, arm - 0.035, x + side * 0.033 + 0.007, arm + 0.014, green
            )
    return canvas


def _snow(rng: random.Random) -> _Canvas:
    canvas = _Canvas([(0.0, (176, 190, 212)), (0.6, (222, 228, 238)), (1.0, (222, 228, 238))])
    for _ in range(3):
        x, top, half = rng.random(), rng.uniform(0.28, 0.4), rng.uniform(0.2, 0.3)
        canvas.polygon([(x - half, 0.68), (x, top), (x + half, 0.68)], (160, 174, 200))
        share = 0.36
        drop = (0.68 - top) * share
        canvas.polygon(
            [
                (x - half * share, top + drop),
                (x, top),
                (x + half * share, top + drop),
                (x + half * share * 0.4, top + drop * 0.72),
                (x, top + drop * 1.1),
                (x - half * share * 0.4, top + drop * 0.72),
            ],
            (240, 244, 250),
        )
    canvas.land(_hills(rng, 0.6, 0.025), (212, 222, 238))
    canvas.land(_hills(rng, 0.72, 0.03), (228, 236, 246))
    canvas.land(_hills(rng, 0.87, 0.025), (242, 246, 252))
    for _ in range(110):
        canvas.circle(rng.random(), rng.random(), rng.choice((0.004, 0.006, 0.008)), (252, 254, 255))
    return canvas


def _city(rng: random.Random) -> _Canvas:
    canvas = _Canvas(
        [(0.0, (112, 116, 158)), (0.5, (206, 160, 172)), (0.8, (244, 206, 176)), (1.0, (244, 206, 176))]
    )
    for fill, low, high, lit in (
        ((148, 132, 158), 0.3, 0.52, False),
        ((92, 88, 122), 0.42, 0.68, True),
    ):
        x = rng.uniform(-0.1, 0.0)
        while x < 1.0:
            width, top = rng.uniform(0.09, 0.17), rng.uniform(low, high)
            canvas.rectangle(x, top, x + width, 1.0, fill)
            if rng.random() < 0.3:
                canvas.rectangle(x + width * 0.46, top - 0.06, x + width * 0.54, top, fill)
            if lit:
                _windows(canvas, rng, x, top, width)
            x += width + rng.uniform(0.0, 0.015)
    canvas.rectangle(0.0, 0.9, 1.0, 1.0, (70, 70, 84))
    canvas.rectangle(0.0, 0.89, 1.0, 0.905, (150, 148, 156))
    for index in range(6):
        canvas.rectangle(0.03 + index * 0.18, 0.948, 0.11 + index * 0.18, 0.958, (206, 204, 196))
    return canvas


def _windows(canvas: _Canvas, rng: random.Random, left: float, top: float, width: float) -> None:
    columns = max(2, int(width / 0.035))
    gap = width / columns
    y = top + 0.02
    while y < 0.86:
        for column in range(columns):
            x = left + (column + 0.5) * gap
            fill = (246, 222, 160) if rng.random() < 0.45 else (70, 68, 100)
            canvas.rectangle(x - 0.008, y, x + 0.008, y + 0.02, fill)
        y += 0.042


def _room(rng: random.Random) -> _Canvas:
    wall, stripe = rng.choice(
        (
            ((234, 224, 210), (226, 212, 194)),
            ((222, 228, 222), (212, 220, 212)),
            ((232, 222, 226), (222, 210, 216)),
            ((224, 226, 234), (214, 216, 228)),
        )
    )
    canvas = _Canvas([(0.0, wall), (1.0, wall)])
    width = rng.uniform(0.05, 0.08)
    for index in range(0, 24, 2):
        canvas.rectangle(index * width, 0.0, (index + 1) * width, 1.0, stripe)
    floor = 0.76
    canvas.rectangle(0.0, floor, 1.0, 1.0, (186, 146, 110))
    for index in range(4):
        y = floor + 0.24 * (index / 4) ** 1.3
        canvas.rectangle(0.0, y, 1.0, y + 0.004, (158, 120, 88))
        for _ in range(3):
            x = rng.random()
            canvas.rectangle(x, y, x + 0.004, y + 0.06, (158, 120, 88))
    canvas.rectangle(0.0, floor - 0.035, 1.0, floor, (250, 248, 242))
    canvas.rectangle(0.0, floor - 0.004, 1.0, floor + 0.004, (150, 130, 112))
    left = rng.choice((0.06, 0.62))
    canvas.rectangle(left, 0.1, left + 0.32, 0.46, (250, 248, 242))
    for column in range(2):
        for row in range(2):
            x, y = left + 0.02 + column * 0.145, 0.12 + row * 0.165
            canvas.rectangle(x, y, x + 0.135, y + 0.155, (190, 216, 230))
            canvas.polygon(
                [(x + 0.02, y + 0.155), (x + 0.1, y), (x + 0.125, y), (x + 0.045, y + 0.155)], (210, 230, 240)
            )
    canvas.rectangle(left - 0.02, 0.46, left + 0.34, 0.482, (236, 232, 224))
    return canvas


_PAINTERS: dict[str, Callable[[random.Random], _Canvas]] = {
    "night": _night,
    "meadow": _meadow,
    "beach": _beach,
    "sea": _sea,
    "desert": _desert,
    "snow": _snow,
    "city": _city,
    "room": _room,
}


@lru_cache(maxsize=512)
def background_image(name: str, variant: int, size_pixels: int) -> Image.Image:
    """A scenery as an RGB image, drawn once and shared: copy it before drawing on it.

    Raises:
        ValueError: an unknown name.
    """
    if name not in BACKGROUNDS:
        raise ValueError(f"unknown background: {name!r}")
    canvas = _PAINTERS[name](random.Random(f"{name} {variant % NUM_VARIANTS}"))
    return canvas.image.resize((size_pixels, size_pixels), Image.Resampling.LANCZOS, reducing_gap=3.0)
