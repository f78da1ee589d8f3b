"""Videos that a player has to rotate, scale or convert before it shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Colorspace
from numpy.typing import NDArray

CORNERS = ((220, 30, 30), (30, 200, 30), (30, 30, 220), (230, 230, 230))
"""Red, green, blue, white: top left, top right, bottom left, bottom right."""

# Code points of ITU-T H.273.
BT709, UNTAGGED, BT601, BT2020, PQ, HLG = 1, 2, 6, 9, 16, 18
_CONVERSIONS = {BT709: Colorspace.ITU709, BT601: Colorspace.SMPTE170M, BT2020: Colorspace.BT2020}

_BT709_TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
"""Linear RGB, ITU-R BT.2087."""
_WHITE_NITS = 203.0
"""Of HDR pictures, ITU-R BT.2408."""


@dataclass(frozen=True)
class Tags:
    """What a file says of its pictures, and how they are stored.

    primaries, transfer, matrix: code points. stored_matrix: what the pixels are really made with.
    aspect: of a pixel. display_matrix: nine numbers in FFmpeg's order.
    """

    primaries: int = UNTAGGED
    transfer: int = UNTAGGED
    matrix: int = UNTAGGED
    stored_matrix: int = BT601
    aspect: Fraction | None = None
    display_matrix: Sequence[int] | None = None
    codec: str = "libx264"
    pixel_format: str = "yuv420p"
    options: dict[str, str] = field(default_factory=lambda: {"preset": "ultrafast", "crf": "10"})


def corner_picture(width: int, height: int) -> NDArray[np.uint8]:
    """uint8 [H, W, 3], grey, each corner's quarter of the sides in its own colour."""
    picture = np.full((height, width, 3), 128, np.uint8)
    across, down = width // 4, height // 4
    for number, colour in enumerate(CORNERS):
        rows = slice(height - down, None) if number > 1 else slice(down)
        columns = slice(width - across, None) if number % 2 else slice(across)
        picture[rows, columns] = colour
    return picture


def corners_of(picture: NDArray[np.uint8]) -> list[tuple[int, ...]]:
    """The colour in the middle of each corner of a decoded `corner_picture`."""
    height, width = picture.shape[:2]
    across, down = width // 8, height // 8
    return [
        tuple(int(value) for value in picture[row, column])
        for row in (down, height - 1 - down)
        for column in (across, width - 1 - across)
    ]


def as_hdr(picture: NDArray[np.uint8], transfer: int) -> NDArray[np.uint16]:
    """An sRGB-like picture, uint8, as R'G'B' of BT.2020 with PQ or HLG (ITU-R BT.2100), uint16.

    White is at 203 cd/m2 in PQ and at 75 % in HLG.
    """
    linear = (picture / 255.0) ** 2.4 @ _BT709_TO_BT2020.T
    if transfer == PQ:
        power = (linear * _WHITE_NITS / 10000) ** (2610 / 16384)
        signal = ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)
    else:
        nits = linear * _WHITE_NITS
        luminance = nits @ np.array([0.2627, 0.6780, 0.0593])
        # The system gamma of 1.2 at 1000 cd/m2 undone: scene light 0 to 1.
        scene = nits / 1000 * (np.maximum(luminance, 1e-6) / 1000)[..., None] ** (1 / 1.2 - 1)
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        low, high = np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c
        signal = np.where(scene <= 1 / 12, low, high)
    return np.round(np.clip(signal, 0, 1) * 65535).astype(np.uint16)


def write_tagged_video(
    path: Path, pictures: Sequence[NDArray[np.uint8] | NDArray[np.uint16]], tags: Tags, rate: int = 5
) -> Path:
    """Write pictures [H, W, 3] with these tags. The container follows the path's ending."""
    height, width = pictures[0].shape[:2]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(tags.codec, rate=rate, options=dict(tags.options))
        stream.width, stream.height, stream.pix_fmt = width, height, tags.pixel_format
        context = stream.codec_context
        context.color_primaries, context.color_trc = tags.primaries, tags.transfer
        context.colorspace = tags.matrix
        if tags.aspect is not None:
            context.sample_aspect_ratio = tags.aspect
        if tags.display_matrix is not None:
            stream.set_display_matrix(tags.display_matrix)
        for number, picture in enumerate(pictures):
            kind = "rgb48le" if picture.dtype == np.uint16 else "rgb24"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=kind)
            stored = frame.reformat(format=tags.pixel_format, dst_colorspace=_CONVERSIONS[tags.stored_matrix])
            stored.pts, stored.time_base = number, Fraction(1, rate)
            stored.colorspace = tags.matrix
            stored.color_primaries, stored.color_trc = tags.primaries, tags.transfer
            container.mux(stream.encode(stored))
        container.mux(stream.encode())
    return path
