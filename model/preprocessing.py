"""From a decoded picture to the network's square, as CLIP does it.

NumPy and Pillow only: decoders use this in processes that never load torch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PREPROCESSING = "pil-bicubic-short-side, centre-crop, rgb/255"
"""Names this file's arithmetic in the model fingerprint. Change it when the pixels change."""

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""CLIP's channel means, RGB, of pixels in 0..1 (openai/CLIP clip/clip.py)."""

PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's channel standard deviations, RGB, of pixels in 0..1 (openai/CLIP clip/clip.py)."""


def resize_and_crop(rgb: NDArray[np.uint8], image_size: int) -> NDArray[np.uint8]:
    """Shorter side to `image_size` by antialiased bicubic, then the centre square.

    Equal to torchvision's Resize(bicubic) and CenterCrop on a PIL image, which the official code uses.

    Args:
        rgb: uint8 [H, W, 3].
        image_size: Side of the square, in pixels.

    Returns:
        uint8 [image_size, image_size, 3].

    >>> resize_and_crop(np.zeros((48, 64, 3), np.uint8), 32).shape
    (32, 32, 3)
    """
    height, width = rgb.shape[:2]
    if min(height, width) != image_size:
        # torchvision truncates the longer side (`_compute_resized_output_size`).
        if width <= height:
            size = (image_size, int(image_size * height / width))
        else:
            size = (int(image_size * width / height), image_size)
        rgb = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC))
        height, width = rgb.shape[:2]
    top = round((height - image_size) / 2.0)
    left = round((width - image_size) / 2.0)
    return np.ascontiguousarray(rgb[top : top + image_size, left : left + image_size])
