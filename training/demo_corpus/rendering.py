"""Frames of a scene: the scenery with the active actor placed on it, smooth in time and in place."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.demo_corpus.backgrounds import NUM_VARIANTS, background_image
from training.demo_corpus.motion import Placement, place
from training.demo_corpus.pictograms import LEVELS, premultiplied_pictogram
from training.demo_corpus.scene import Scene


def render_frame(scene: Scene, time_seconds: float, size_pixels: int = 256) -> npt.NDArray[np.uint8]:
    """The frame at a time in [0, 8] seconds as RGB, uint8 [S,S,3]. The same arguments give the same bytes."""
    frame = background_image(scene.background, scene.variation_seed % NUM_VARIANTS, size_pixels)
    placement = place(scene, time_seconds)
    if placement is not None:
        frame = frame.copy()
        _paste(frame, placement)
    return np.array(frame)


def render_clip(scene: Scene, times_seconds: npt.ArrayLike, size_pixels: int = 256) -> npt.NDArray[np.uint8]:
    """Several frames, uint8 [F,S,S,3]."""
    times = np.asarray(times_seconds, dtype=np.float64)
    return np.stack([render_frame(scene, float(time), size_pixels) for time in times])


def _paste(frame: Image.Image, placement: Placement) -> None:
    """Draws the pictogram with sub-pixel position, scale and turn by one affine transform of a small box."""
    side = frame.width
    size = placement.size * side
    level = max(index for index, pixels in enumerate(LEVELS) if index == 0 or pixels >= size)
    picture = premultiplied_pictogram(placement.actor.kind, placement.actor.colour, level)
    cos, sin = math.cos(math.radians(placement.turn_degrees)), math.sin(math.radians(placement.turn_degrees))
    centre_x, centre_y = placement.centre_x * side, placement.centre_y * side
    reach = size / 2.0 * (abs(cos) + abs(sin)) + 1.0
    left, top = max(0, math.floor(centre_x - reach)), max(0, math.floor(centre_y - reach))
    right, bottom = min(side, math.ceil(centre_x + reach)), min(side, math.ceil(centre_y + reach))
    if right <= left or bottom <= top:
        return
    # Box pixel (x, y) shows picture point (a x + b y + c, d x + e y + f).
    scale = picture.width / size
    half = picture.width / 2.0
    dx, dy = left - centre_x, top - centre_y
    matrix = (
        scale * cos, scale * sin, half + scale * (cos * dx + sin * dy),
        -scale * sin, scale * cos, half + scale * (cos * dy - sin * dx),
    )  # fmt: skip
    box = picture.transform(
        (right - left, bottom - top), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    ).convert("RGBA")
    mask = box.getchannel("A")
    if placement.opacity < 1.0:
        mask = mask.point([round(value * placement.opacity) for value in range(256)])
    frame.paste(box.convert("RGB"), (left, top), mask)
