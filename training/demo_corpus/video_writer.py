"""A scene as an mp4 file that every browser plays: H.264, yuv420p, no sound, index at the front."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av

from training.demo_corpus.rendering import render_frame
from training.demo_corpus.scene import CLIP_SECONDS, Scene

_SMPTE_170M = 6  # the matrix that conversion from RGB uses below; said in the file, so that colours come back
_LIMITED_RANGE = 1

_MACROBLOCK_TREE_PIXELS = 128
"""In rows that are no multiple of eight macroblocks x264's macroblock tree reads memory that nobody wrote
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
            context.colorspace = context.color_primaries = context.color_trc = _SMPTE_170M
            context.color_range = _LIMITED_RANGE
            for index in range(round(CLIP_SECONDS * frame_rate)):
                pixels = render_frame(scene, index / frame_rate, size_pixels)
                picture = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                    format="yuv420p", dst_colorspace=_SMPTE_170M, dst_color_range=_LIMITED_RANGE
                )
                picture.pts = index
                picture.time_base = Fraction(1, frame_rate)
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
