"""A pen for drawing pictograms: shapes on a grid of 100 x 100 units, y downwards, turned at will."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from PIL import Image, ImageDraw

Rgb = tuple[int, int, int]
Point = tuple[float, float]

PALETTE: dict[str, Rgb] = {
    "red": (222, 38, 44),
    "orange": (250, 132, 12),
    "yellow": (252, 218, 38),
    "green": (38, 158, 66),
    "blue": (36, 98, 228),
    "purple": (132, 58, 192),
    "pink": (252, 138, 196),
    "white": (248, 248, 246),
}
INK: Rgb = (34, 36, 52)
STEEL: Rgb = (150, 156, 168)
CREAM: Rgb = (252, 242, 214)
WOOD: Rgb = (136, 92, 60)
GLASS: Rgb = (196, 226, 240)
STALK: Rgb = (78, 116, 82)


def mixed(colour: Rgb, other: Rgb, share: float) -> Rgb:
    """`colour` with `share` (0 to 1) of `other` in it."""
    return (
        round(colour[0] + (other[0] - colour[0]) * share),
        round(colour[1] + (other[1] - colour[1]) * share),
        round(colour[2] + (other[2] - colour[2]) * share),
    )


class Pen:
    """Draws on one RGBA image. `main` is the pictogram's colour; `shade` is darker, `tint` is lighter."""

    def __init__(self, image: Image.Image, colour: Rgb, margin: float) -> None:
        self._draw = ImageDraw.Draw(image)
        self._scale = image.width / (100.0 + 2.0 * margin)
        self._margin = margin
        self._cos, self._sin = 1.0, 0.0
        self.main = colour
        self.shade = mixed(colour, (60, 16, 40), 0.22)
        self.tint = mixed(colour, (255, 255, 255), 0.32)

    def turn(self, degrees: float) -> None:
        """Everything drawn from now on is turned clockwise about the middle of the grid."""
        self._cos, self._sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))

    def _pixel(self, point: Point) -> Point:
        x, y = point[0] - 50.0, point[1] - 50.0
        turned = (x * self._cos - y * self._sin + 50.0, x * self._sin + y * self._cos + 50.0)
        return ((turned[0] + self._margin) * self._scale, (turned[1] + self._margin) * self._scale)

    def polygon(self, points: Sequence[Point], fill: Rgb) -> None:
        """A filled polygon."""
        self._draw.polygon([self._pixel(point) for point in points], fill=(*fill, 255))

    def ellipse(
        self, x: float, y: float, radius_x: float, radius_y: float, fill: Rgb, turn: float = 0.0
    ) -> None:
        """A filled ellipse about (x, y), turned clockwise by `turn` degrees."""
        self.polygon(arc_points(x, y, radius_x, radius_y, 0, 360, turn), fill)

    def circle(self, x: float, y: float, radius: float, fill: Rgb) -> None:
        """A filled circle about (x, y)."""
        self.ellipse(x, y, radius, radius, fill)

    def rectangle(
        self, left: float, top: float, right: float, bottom: float, fill: Rgb, corner: float = 0.0
    ) -> None:
        """A filled rectangle with rounded corners."""
        if corner <= 0.0:
            self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], fill)
            return
        points: list[Point] = []
        for x, y, start in (
            (right - corner, top + corner, -90),
            (right - corner, bottom - corner, 0),
            (left + corner, bottom - corner, 90),
            (left + corner, top + corner, 180),
        ):
            points += arc_points(x, y, corner, corner, start, start + 90)
        self.polygon(points, fill)

    def line(self, points: Sequence[Point], width: float, fill: Rgb) -> None:
        """A line with round ends and joints."""
        for (x0, y0), (x1, y1) in pairwise(points):
            length = math.hypot(x1 - x0, y1 - y0)
            if length == 0.0:
                continue
            dx, dy = (y1 - y0) / length * width / 2.0, (x0 - x1) / length * width / 2.0
            self.polygon(
                [(x0 + dx, y0 + dy), (x1 + dx, y1 + dy), (x1 - dx, y1 - dy), (x0 - dx, y0 - dy)], fill
            )
        for x, y in points:
            self.circle(x, y, width / 2.0, fill)

    def ring(self, x: float, y: float, radius: float, width: float, fill: Rgb) -> None:
        """A circle's line: its middle lies at `radius`; what is inside stays as it was."""
        points = arc_points(x, y, radius, radius, 0, 360)
        self.line([*points, points[0]], width, fill)


def arc_points(
    x: float, y: float, radius_x: float, radius_y: float, start: float, stop: float, turn: float = 0.0
) -> list[Point]:
    """Points along an ellipse from `start` to `stop` degrees (0 to the right, clockwise), then turned."""
    num = max(6, math.ceil(abs(stop - start) / 6.0))
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    points: list[Point] = []
    for index in range(num + 1):
        angle = math.radians(start + (stop - start) * index / num)
        dx, dy = radius_x * math.cos(angle), radius_y * math.sin(angle)
        points.append((x + dx * cos - dy * sin, y + dx * sin + dy * cos))
    return points


def curve(start: Point, control: Point, other: Point, end: Point, num: int = 16) -> list[Point]:
    """Points along a cubic Bezier curve, both ends included."""
    points: list[Point] = []
    for index in range(num + 1):
        t = index / num
        weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
        corners = (start, control, other, end)
        points.append(
            (
                sum(w * c[0] for w, c in zip(weights, corners, strict=True)),
                sum(w * c[1] for w, c in zip(weights, corners, strict=True)),
            )
        )
    return points
