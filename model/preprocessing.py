"""From a decoded picture to the network's square, as open_clip does it.

NumPy and Pillow only: decoders use this in processes that never load torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ResizeMode = Literal["shortest", "longest", "squash"]
Interpolation = Literal["bicubic", "bilinear"]

PREPROCESSING = "pil-bicubic-short-side, centre-crop, rgb/255"
"""Names this file's arithmetic in the model fingerprint; other ways of resizing stand in the config next to
it. Change it when the pixels change."""

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""CLIP's channel means, RGB, of pixels in 0..1 (openai/CLIP clip/clip.py)."""

PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's channel standard deviations, RGB, of pixels in 0..1 (openai/CLIP clip/clip.py)."""

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class Resizing:
    """How a picture becomes the square that a model sees; the defaults are CLIP's.

    Equal to what open_clip does with a PIL image (open_clip/transform.py `image_transform`), which for CLIP
    is torchvision's Resize and CenterCrop, as in the official code.

    Attributes:
        image_size: R, side of the square, in pixels.
        resize_mode: `shortest`: the shorter side becomes R, then the centre square is cut out; `squash`: both
            sides become R, whatever the shape; `longest`: the longer side becomes R, and bars of `fill_color`
            fill the rest.
        interpolation: Antialiased either way.
        fill_color: Of bars, 0 to 255 for each channel.

    >>> Resizing(32)(np.zeros((48, 64, 3), np.uint8)).shape
    (32, 32, 3)
    """

    image_size: int
    resize_mode: ResizeMode = "shortest"
    interpolation: Interpolation = "bicubic"
    fill_color: int = 0

    def __call__(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Uint8 [H, W, 3] to uint8 [R, R, 3]."""
        height, width = rgb.shape[:2]
        size = self._resized(width, height)
        if size != (width, height):
            rgb = np.asarray(Image.fromarray(rgb).resize(size, _RESAMPLING[self.interpolation]))
        return self._centre(rgb)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height before the square is cut out or filled up."""
        side = self.image_size
        if self.resize_mode == "squash":
            return side, side
        if self.resize_mode == "longest":
            # open_clip's ResizeKeepRatio rounds.
            ratio = max(width, height) / side
            return round(width / ratio), round(height / ratio)
        # torchvision truncates the longer side (`_compute_resized_output_size`), and leaves a picture alone
        # whose shorter side is right.
        if min(width, height) == side:
            return width, height
        return (side, int(side * height / width)) if width <= height else (int(side * width / height), side)

    def _centre(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        side = self.image_size
        missing = [max(0, side - length) for length in rgb.shape[:2]]
        if any(missing):
            bars = [(length // 2, (length + 1) // 2) for length in missing]
            rgb = np.pad(rgb, [*bars, (0, 0)], constant_values=self.fill_color)
        top, left = (round((length - side) / 2.0) for length in rgb.shape[:2])
        return np.ascontiguousarray(rgb[top : top + side, left : left + side])
