"""Pictograms as images: drawn large, outlined and haloed, reduced, and kept.

A dark outline and a white halo are grown from the silhouette, so that every colour stands out on every
background and a white thing is seen in the snow.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from PIL import Image, ImageFilter

from training.demo_corpus import pictogram_shapes as shapes
from training.demo_corpus import pictogram_things as things
from training.demo_corpus.pen import INK, PALETTE, Pen, Rgb
from training.demo_corpus.scene import COLOURS, KINDS

_DRAWERS: dict[str, Callable[[Pen], None]] = {
    **{
        drawer.__name__: drawer
        for drawer in (
            shapes.car, shapes.boat, shapes.rocket, shapes.plane, shapes.bicycle, shapes.tree, shapes.flower,
            shapes.mushroom, shapes.fish, shapes.bird, shapes.cat, shapes.butterfly, shapes.apple,
            shapes.star, shapes.heart,
        )
    },
    **{
        drawer.__name__: drawer
        for drawer in (
            things.house, things.balloon, things.key, things.umbrella, things.cup, things.lamp, things.book,
            things.guitar, things.ball, things.hat, things.clock, things.bell, things.crown, things.anchor,
            things.chair,
        )
    },
}  # fmt: skip

_CANVAS_PIXELS = 560
_MARGIN = 9.0  # grid units around the 100 for outline and halo
_OUTLINE = 2.6  # grid units
_HALO = 5.0  # grid units, outline included
LEVELS = (
    280,
    192,
    128,
    96,
    64,
    44,
    30,
    20,
)  # kept sizes in pixels; frames use the next larger


def _paint(kind: str, colour: Rgb) -> Image.Image:
    image = Image.new("RGBA", (_CANVAS_PIXELS, _CANVAS_PIXELS), (0, 0, 0, 0))
    _DRAWERS[kind](Pen(image, colour, _MARGIN))
    return image


def _grown(mask: Image.Image, units: float) -> Image.Image:
    """The mask widened by about `units` with round corners: a blur, cut where it has faded."""
    pixels = units * _CANVAS_PIXELS / (100.0 + 2.0 * _MARGIN)
    # A straight edge blurred with deviation s is at 12 % (30 of 255) 1.2 s outside and at 5 % (12) 1.7 s
    # outside, so with s = 0.7 units the new edge fades out about one `units` away.
    blurred = mask.filter(ImageFilter.GaussianBlur(pixels * 0.7))
    low, high = 12, 30
    return blurred.point([min(255, max(0, (value - low) * 255 // (high - low))) for value in range(256)])


@lru_cache(maxsize=len(KINDS))
def _frame_of(kind: str) -> Image.Image:
    """Halo and outline of a kind, the same for all its colours."""
    silhouette = _paint(kind, PALETTE["white"]).getchannel("A")
    frame = Image.new("RGBA", silhouette.size, (255, 255, 255, 0))
    frame.putalpha(_grown(silhouette, _HALO))
    frame.paste((*INK, 255), (0, 0), _grown(silhouette, _OUTLINE))
    return frame


@lru_cache(maxsize=len(KINDS) * len(COLOURS))
def _master(kind: str, colour: str) -> Image.Image:
    """The pictogram at its largest kept size, as premultiplied "RGBa"."""
    image = _frame_of(kind).copy()
    image.alpha_composite(_paint(kind, PALETTE[colour]))
    return image.convert("RGBa").resize((LEVELS[0], LEVELS[0]), Image.Resampling.BOX)


@lru_cache(maxsize=len(KINDS) * len(COLOURS) * len(LEVELS))
def premultiplied_pictogram(kind: str, colour: str, level: int) -> Image.Image:
    """The pictogram at `LEVELS[level]` pixels in mode "RGBa". Kept and shared: do not draw on it."""
    master = _master(kind, colour)
    size = LEVELS[level]
    return (
        master
        if size == master.width
        else master.resize((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)
    )


@lru_cache(maxsize=512)
def draw_pictogram(kind: str, colour: str, size_pixels: int) -> Image.Image:
    """One pictogram, halo and outline included, as an RGBA image of `size_pixels` squared.

    Raises:
        ValueError: an unknown kind or colour, or a size below 1 or above 280.
    """
    if kind not in KINDS or colour not in COLOURS or not 1 <= size_pixels <= LEVELS[0]:
        raise ValueError(f"no such pictogram: {kind!r}, {colour!r}, {size_pixels} pixels")
    return _master(kind, colour).resize((size_pixels, size_pixels), Image.Resampling.LANCZOS).convert("RGBA")
