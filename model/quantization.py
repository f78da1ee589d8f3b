"""Frames in 8 bits, each with a scale of its own; without torch, as what only writes or verifies features is.

`python -m benchmarks.recall.frame_precision` measures what that costs.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

SCALE_BYTES: Final = 4
"""Behind the integers of a frame: what they are multiplied with, float32, little-endian."""

_LARGEST: Final = 127


def quantized(frames: NDArray[Any]) -> NDArray[np.int8]:
    """Frames float [..., D] as int8 [..., D + SCALE_BYTES]; the largest value of each becomes 127 or -127."""
    frames = frames.astype(np.float32)
    scale = np.abs(frames).max(axis=-1, keepdims=True) / np.float32(_LARGEST)
    integers = np.rint(frames / np.where(scale > 0, scale, 1)).astype(np.int8)
    return np.concatenate([integers, scale.astype("<f4").view(np.int8)], axis=-1)


def dequantized(frames: NDArray[np.int8]) -> NDArray[np.float16]:
    """What `quantized` made as float16 [..., D], equal to the frames within half a scale."""
    scale = np.ascontiguousarray(frames[..., -SCALE_BYTES:]).view("<f4")
    found: NDArray[np.float16] = (frames[..., :-SCALE_BYTES] * scale).astype(np.float16)
    return found
