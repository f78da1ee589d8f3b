"""Small videos for tests: each frame shows its own number in squares that survive any codec.

16 squares of 16 x 16 pixels, two rows of eight; white is 1; the first row holds the high byte.
"""

from __future__ import annotations

import wave
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

SQUARE = 16
WIDTH, HEIGHT = 8 * SQUARE, 2 * SQUARE
MILLISECOND = Fraction(1, 1000)


def numbered_picture(number: int) -> NDArray[np.uint8]:
    """uint8 [32, 128, 3] that shows `number`, 0 to 65535."""
    bits = (number >> np.arange(15, -1, -1)) & 1
    squares = np.kron(bits.reshape(2, 8) * 255, np.ones((SQUARE, SQUARE)))
    return np.repeat(squares[:, :, None], 3, axis=2).astype(np.uint8)


def shown_number(picture: NDArray[np.uint8]) -> int:
    """The number that a decoded picture shows."""
    assert picture.shape == (HEIGHT, WIDTH, 3), picture.shape
    squares = picture.mean(axis=2).reshape(2, SQUARE, 8, SQUARE)[:, 4:12, :, 4:12].mean(axis=(1, 3))
    assert np.all((squares < 64) | (squares > 192)), squares
    return int((squares.reshape(16) > 128) @ (1 << np.arange(15, -1, -1)))


def write_numbered_video(
    path: Path,
    num_frames: int,
    rate: int | Fraction = 30,
    *,
    codec: str = "libx264",
    times_milliseconds: Sequence[int] | None = None,
    rotation_degrees: int = 0,
    keyframe_interval: int = 24,
    options: Mapping[str, str] | None = None,
    container_options: Mapping[str, str] | None = None,
    first_number: int = 0,
) -> Path:
    """Write frames 0, 1, 2, ... The container follows the path's ending.

    times_milliseconds: when each frame starts (variable frame rate); constant `rate` where None.
    rotation_degrees: what the container says a player must turn, clockwise.
    """
    pictures = [numbered_picture(first_number + number) for number in range(num_frames)]
    return write_pictures(
        path,
        pictures,
        rate,
        codec=codec,
        times_milliseconds=times_milliseconds,
        rotation_degrees=rotation_degrees,
        keyframe_interval=keyframe_interval,
        options=options,
        container_options=container_options,
    )


def write_pictures(
    path: Path,
    pictures: Sequence[NDArray[np.uint8]],
    rate: int | Fraction = 30,
    *,
    codec: str = "libx264",
    times_milliseconds: Sequence[int] | None = None,
    rotation_degrees: int = 0,
    keyframe_interval: int = 24,
    options: Mapping[str, str] | None = None,
    container_options: Mapping[str, str] | None = None,
) -> Path:
    """Write pictures, uint8 [H, W, 3], all of one even size, as a video."""
    height, width = pictures[0].shape[:2]
    if codec == "libx264":
        options = {"preset": "veryfast", "crf": "20", **(options or {})}
    with av.open(str(path), "w", container_options=dict(container_options or {})) as container:
        stream = container.add_stream(codec, rate=rate, options=dict(options or {}))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.gop_size = keyframe_interval
        if times_milliseconds is not None:
            stream.codec_context.time_base = MILLISECOND
            stream.time_base = MILLISECOND
        if rotation_degrees:
            stream.set_display_rotation(-rotation_degrees)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            if times_milliseconds is None:
                frame.pts, frame.time_base = number, 1 / Fraction(rate)
            else:
                frame.pts, frame.time_base = times_milliseconds[number], MILLISECOND
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_coloured_video(
    path: Path, colour: tuple[int, int, int], seconds: float = 2, rate: int = 5, size: int = 64
) -> Path:
    """A square of one colour (RGB) that a white bar crosses, as MPEG-4, which is quick to write."""
    pictures = []
    for number in range(max(1, round(seconds * rate))):
        picture = np.full((size, size, 3), colour, dtype=np.uint8)
        picture[:, (number * 7) % size][:] = 255
        pictures.append(picture)
    return write_pictures(path, pictures, rate, codec="mpeg4", keyframe_interval=12)


def write_sound(path: Path, seconds: float = 0.5) -> Path:
    """A tone, as WAV."""
    samples = (np.sin(np.arange(int(8000 * seconds)) * 0.3) * 8000).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(samples.tobytes())
    return path
