"""A decoded frame as a player shows it: upright, with square pixels, in BT.709 colours, without combing.

Features, thumbnails, previews and the facts of a video all see this one view. A frame that needs none of it
keeps its pixels to the bit: one conversion to RGB, as FFmpeg does it by default.

    decoded frame -> one field of it, where it is interlaced
                  -> RGB, in the same step scaled to square pixels, and smaller where the caller wants less
                  -> BT.709, where it is HDR or BT.2020
                  -> mirrored and turned as the container's display matrix says
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any, Final, NamedTuple

import av
import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorTrc, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image, ImageFilter

_LEAST_PIXEL_ASPECT: Final = Fraction(102, 100)
"""Encoders that need even sizes leave almost square pixels: 640:639 where 4:3 is stored as 426 x 320,
for one. The least of any format is 16:15 (PAL)."""

_MAX_PIXEL_ASPECT: Final = 10
"""No disc, broadcast or camera has pixels longer than 3 : 1; beyond this it is a damaged header."""

_SILENT_CONTAINERS: Final = frozenset({"mpegts", "mpeg"})
"""FFmpeg's names of containers that have no field for the pixel aspect: the pictures' own counts, and may
change from one programme to the next."""

# Code points of ITU-T H.273, which FFmpeg's numbers are.
_BT709, _UNTAGGED, _BT470BG, _BT2020 = 1, 2, 5, 9
_MATRICES: Final = frozenset({1, 4, 5, 6, 7, 9})
"""Matrix coefficients that swscale converts to RGB from. It refuses the reserved 3, YCgCo (8) and 10 to 17,
which in people's files are a wrong tag on BT.709 pictures; 0 says that the pictures are RGB already."""

_TRANSFERS: Final = frozenset({int(ColorTrc.SMPTE2084), int(ColorTrc.ARIB_STD_B67)})
"""PQ and HLG."""

_PRIMARIES: Final = frozenset(
    {int(ColorPrimaries.BT709), int(ColorPrimaries.BT2020), int(ColorPrimaries.SMPTE432)}
)
"""What HDR files say; any other is a wrong tag on BT.2020."""

_HD_WIDTH, _HD_HEIGHT = 1280, 576
"""Untagged pictures at least as wide, or higher, are BT.709, others BT.601: mpv's rule, which agrees with
Chromium's for all usual sizes. See docs/decisions/0012."""

_INTERPOLATION: Final = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
"""The default truncates, a whole code below on average, of which HDR makes three to four."""

_TABLE_SIZE: Final = 65
"""Grid points a colour: Pillow's most."""


class Orientation(NamedTuple):
    """How stored pixels become upright: mirrored left to right or not, then turned counter-clockwise."""

    is_mirrored: bool
    quarter_turns: int

    def apply(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Stored pixels [H, W, 3], upright."""
        if self == UPRIGHT:
            return pixels
        return np.ascontiguousarray(
            np.rot90(pixels[:, ::-1] if self.is_mirrored else pixels, self.quarter_turns)
        )


UPRIGHT: Final = Orientation(is_mirrored=False, quarter_turns=0)


class Size(NamedTuple):
    """Pixels."""

    width: int
    height: int


def orientation_of_matrix(matrix: tuple[int, ...]) -> Orientation:
    """The nearest of the eight orientations.

    Args:
        matrix: the first five or more numbers of a display matrix in FFmpeg's order (a, b, u, c, d, ...),
            which moves the point (x, y), y downwards, to (ax + cy, bx + dy).

    >>> orientation_of_matrix((-65536, 0, 0, 0, 65536))
    Orientation(is_mirrored=True, quarter_turns=0)
    """
    a, b, _, c, d = matrix[:5]
    is_mirrored = a * d - b * c < 0
    clockwise = math.atan2(-b, -a) if is_mirrored else math.atan2(b, a)
    return Orientation(is_mirrored, -round(clockwise / (math.pi / 2)) % 4)


def orientation_of(frame: VideoFrame) -> Orientation:
    """What the display matrix of a decoded frame says."""
    try:
        kinds: Mapping[Any, Any] = frame.side_data  # Typed as one of `str`.
        matrix = kinds.get(Type.DISPLAYMATRIX)
    except ValueError:  # PyAV does not know the name of some other side data, as of 3D videos.
        return Orientation(is_mirrored=False, quarter_turns=round(frame.rotation / 90) % 4)
    return UPRIGHT if matrix is None else orientation_of_matrix(struct.unpack("=9i", bytes(matrix)[:36]))


def pixel_aspect(stream: VideoStream) -> Fraction:
    """Width by height of one stored pixel; 1 where nothing usable is said.

    As players have it: the container's word counts, then that of the pictures.
    """
    by_pictures = stream.codec_context.sample_aspect_ratio
    by_container = stream.sample_aspect_ratio
    silent = stream.container.format.name in _SILENT_CONTAINERS
    aspect = by_pictures or by_container if silent else by_container or by_pictures
    if not aspect or aspect < 0:
        return Fraction(1)
    is_said = _LEAST_PIXEL_ASPECT <= max(aspect, 1 / aspect) <= _MAX_PIXEL_ASPECT
    return aspect if is_said else Fraction(1)


def square_size(width: int, height: int, aspect: Fraction) -> Size:
    """The size with square pixels: one side longer, none shorter.

    >>> square_size(720, 576, Fraction(64, 45)), square_size(720, 480, Fraction(8, 9))
    (Size(width=1024, height=576), Size(width=720, height=540))
    """
    return Size(round(width * aspect), height) if aspect > 1 else Size(width, round(height / aspect))


class View:
    """Shows frames of one stream. Keeps what the next frame of the same size can use again."""

    def __init__(self, stream: VideoStream) -> None:
        self._stream = stream
        self._reformatter = VideoReformatter()
        self._fields: _Fields | None = None

    def size(self, frame: VideoFrame) -> Size:
        """Of a frame just decoded, as shown."""
        size = self._square_size(frame)
        return Size(size.height, size.width) if orientation_of(frame).quarter_turns % 2 else size

    def is_plain(self, frame: VideoFrame) -> bool:
        """Whether FFmpeg's conversion to RGB, turned by whole quarters, shows the frame as players do."""
        return (
            not frame.interlaced_frame
            and not _is_wide(frame)
            and _matrix(frame) == frame.colorspace
            and self._square_size(frame) == (frame.width, frame.height)
            and not orientation_of(frame).is_mirrored
        )

    def show(self, frame: VideoFrame, min_side: int | None = None) -> NDArray[np.uint8]:
        """uint8 [H, W, 3] RGB of a frame just decoded, as shown.

        Args:
            frame: of the stream.
            min_side: where pixels must be resampled anyway, no more are made than this shorter side needs.
        """
        size = self._square_size(frame)
        is_wide, orientation = _is_wide(frame), orientation_of(frame)
        frame.colorspace = _matrix(frame)
        if not frame.interlaced_frame and not is_wide and size == (frame.width, frame.height):
            return orientation.apply(_pixels(self._reformatter.reformat(frame, format="rgb24", threads=1)))
        if frame.interlaced_frame and frame.height > 1:
            if self._fields is None or not self._fields.takes(frame):
                self._fields = _Fields(frame)
            frame = self._fields.first(frame)
        if min_side is not None:
            scale = min(1.0, min_side / min(size))
            size = Size(max(1, round(size.width * scale)), max(1, round(size.height * scale)))
        rgb = _pixels(
            self._reformatter.reformat(
                frame, size.width, size.height, "rgb24", interpolation=_INTERPOLATION, threads=1
            )
        )
        if is_wide:
            rgb = np.asarray(Image.fromarray(rgb).filter(_table_for(frame)))
        return orientation.apply(rgb)

    def _square_size(self, frame: VideoFrame) -> Size:
        return square_size(frame.width, frame.height, pixel_aspect(self._stream))


def _pixels(frame: VideoFrame) -> NDArray[np.uint8]:
    pixels: Any = frame.to_ndarray()  # typed for all formats, of up to 32 bits
    rgb: NDArray[np.uint8] = pixels
    return rgb


def _is_wide(frame: VideoFrame) -> bool:
    """HDR, or SDR of BT.2020."""
    return frame.color_trc in _TRANSFERS or frame.color_primaries == ColorPrimaries.BT2020


def _matrix(frame: VideoFrame) -> int:
    """The matrix coefficients to convert a frame with; for one without a usable tag, what players guess."""
    tag = int(frame.colorspace)
    if tag in _MATRICES or frame.format.is_rgb or frame.format.has_palette:
        return tag
    if _is_wide(frame):
        return _BT2020
    if frame.width >= _HD_WIDTH or frame.height > _HD_HEIGHT:
        return _BT709
    return _UNTAGGED  # swscale takes BT.601


class _Fields:
    """Takes the upper field of interlaced frames of one size and format.

    One field has the lines of one instant, so that nothing is combed, and needs no frame before or after it.
    Its lines are half of the picture's: 540 of 1080, 288 of 576.
    """

    def __init__(self, frame: VideoFrame) -> None:
        self._shape = (frame.width, frame.height, frame.format.name)
        self._graph = Graph()
        self._graph.threads = 1
        self._source = self._graph.add(
            "buffer",
            video_size=f"{frame.width}x{frame.height}",
            pix_fmt=frame.format.name,
            time_base="1/1000",
            colorspace=str(int(frame.colorspace)),
            range=str(int(frame.color_range)),
        )
        field, self._sink = self._graph.add("field", "top"), self._graph.add("buffersink")
        self._graph.link_nodes(self._source, field, self._sink)
        self._graph.configure()

    def takes(self, frame: VideoFrame) -> bool:
        return self._shape == (frame.width, frame.height, frame.format.name)

    def first(self, frame: VideoFrame) -> VideoFrame:
        self._source.push(frame)
        field: Any = self._sink.pull()
        upper: VideoFrame = field
        return upper


def _table_for(frame: VideoFrame) -> ImageFilter.Color3DLUT:
    transfer, primaries = int(frame.color_trc), int(frame.color_primaries)
    return _table_to_bt709(
        transfer if transfer in _TRANSFERS else int(ColorTrc.BT709),
        primaries if primaries in _PRIMARIES else int(ColorPrimaries.BT2020),
    )


@lru_cache(maxsize=6)
def _table_to_bt709(transfer: int, primaries: int) -> ImageFilter.Color3DLUT:
    """R'G'B' of these code points to BT.709, a table made by FFmpeg's scaler.

    It takes the scaler 2.6 s of processor time to work a conversion out, and it does so again for each size
    of picture: here each conversion is worked out once a process. White of 203 cd/m2 (ITU-R BT.2408) becomes
    white; what is brighter is clipped.
    """
    steps = np.linspace(0, 65535, _TABLE_SIZE).round().astype(np.uint16)
    blue, green, red = np.meshgrid(steps, steps, steps, indexing="ij")  # Pillow's order: red changes first.
    every = np.stack([red, green, blue], axis=-1).reshape(_TABLE_SIZE**2, _TABLE_SIZE, 3)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(every), format="rgb48le")
    frame.color_trc, frame.color_primaries = transfer, primaries
    converted = frame.reformat(
        format="rgb48le", dst_color_trc=ColorTrc.BT709, dst_color_primaries=ColorPrimaries.BT709
    )
    values: Any = converted.to_ndarray()
    return ImageFilter.Color3DLUT(_TABLE_SIZE, (values / 65535).astype(np.float32).ravel())
