"""Frames of a scene: the scenery with the active actor on it, smooth in time and position; and mp4 files.

The files play in every browser: H.264, yuv420p, no sound, index at the front.
"""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

from indexer.media.preview import LIMITED_RANGE, SMPTE_170M
from training.demo_corpus.backgrounds import NUM_VARIANTS, background_image
from training.demo_corpus.motion import Placement, place
from training.demo_corpus.pictograms import LEVELS, premultiplied_pictogram
from training.demo_corpus.scene import CLIP_SECONDS, Scene


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


_MACROBLOCK_TREE_PIXELS = 128
"""In rows that are no multiple of eight macroblocks x264's macroblock tree reads uninitialised memory
(seen with its vector code at 64 and 96 pixels, not at 128 and 256), so bytes differ from run to run."""


def write_video(path: Path, scene: Scene, size_pixels: int = 256, frame_rate: int = 12) -> None:
    """Writes the whole clip, frame `i` showing the scene at `i / frame_rate` seconds.

    The file appears under its name only when it is complete. The same scene, encoder and sizes give the same
    bytes. `size_pixels` must be even, as yuv420p halves the colour planes.

    Raises:
        ValueError: an odd or non-positive size, or a frame rate below 1.
    """
    if size_pixels < 2 or size_pixels % 2 or frame_rate < 1:
        raise ValueError(f"cannot write {size_pixels} pixels at {frame_rate} frames per second")
    unfinished = path.with_name(f"{path.name}.part")
    container_options = {"movflags": "+faststart", "fflags": "+bitexact"}
    try:
        with av.open(str(unfinished), "w", format="mp4", options=container_options) as container:
            stream = container.add_stream("libx264", rate=frame_rate)
            stream.width = stream.height = size_pixels
            stream.pix_fmt = "yuv420p"
            # One encoder thread: the bytes do not depend on the machine. Key frames every 2 s: quick seeking.
            stream.options = {"crf": "20", "preset": "veryfast", "g": str(2 * frame_rate)}
            if size_pixels % _MACROBLOCK_TREE_PIXELS:
                stream.options = {**stream.options, "x264-params": "mbtree=0"}
            context = stream.codec_context
            context.thread_count = 1
            context.flags |= av.codec.context.Flags.bitexact
            context.colorspace = context.color_primaries = context.color_trc = SMPTE_170M
            context.color_range = LIMITED_RANGE
            for index in range(round(CLIP_SECONDS * frame_rate)):
                pixels = render_frame(scene, index / frame_rate, size_pixels)
                picture = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                    format="yuv420p", dst_colorspace=SMPTE_170M, dst_color_range=LIMITED_RANGE
                )
                picture.pts = index
                picture.time_base = Fraction(1, frame_rate)
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
