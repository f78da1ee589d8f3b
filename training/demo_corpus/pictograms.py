"""Pictograms as images: drawn large, outlined and haloed, reduced, and cached.

A `Pen` draws shapes on a grid of 100 x 100 units, y downwards; each of the functions named after a kind of
thing draws one pictogram with it, main colour first. A dark outline and a white halo are grown from the
silhouette, so that every colour stands out on every background and a white thing is seen in the snow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise

from PIL import Image, ImageDraw, ImageFilter

from training.demo_corpus.scene import COLOURS, KINDS

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
        self.polygon(arc_points((x, y), (radius_x, radius_y), 0, 360, turn), fill)

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
            points += arc_points((x, y), (corner, corner), start, start + 90)
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
        points = arc_points((x, y), (radius, radius), 0, 360)
        self.line([*points, points[0]], width, fill)


def arc_points(centre: Point, radii: Point, start: float, stop: float, turn: float = 0.0) -> list[Point]:
    """Points along an ellipse from `start` to `stop` degrees (0 to the right, clockwise), then turned."""
    (x, y), (radius_x, radius_y) = centre, radii
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


def car(pen: Pen) -> None:
    """Side view, facing right."""
    pen.polygon([(18, 52), (32, 24), (66, 24), (84, 52)], pen.main)
    pen.rectangle(2, 46, 98, 76, pen.main, corner=11)
    pen.rectangle(4, 64, 96, 76, pen.shade, corner=5)
    pen.polygon([(28, 47), (37, 31), (48, 31), (48, 47)], GLASS)
    pen.polygon([(53, 47), (53, 31), (63, 31), (73, 47)], GLASS)
    pen.circle(94, 57, 4.5, CREAM)
    for x in (25, 75):
        pen.circle(x, 76, 14, INK)
        pen.circle(x, 76, 6, STEEL)


def boat(pen: Pen) -> None:
    """A sailing boat."""
    pen.line([(46, 4), (46, 68)], 4, WOOD)
    pen.polygon([(51, 6), *curve((51, 6), (72, 20), (84, 40), (88, 60)), (51, 60)], pen.main)
    pen.polygon([(41, 16), *curve((41, 16), (28, 30), (18, 44), (14, 60)), (41, 60)], pen.tint)
    pen.polygon([(2, 67), (98, 67), (80, 93), (18, 93)], pen.main)
    pen.polygon([(9, 78), (91, 78), (80, 93), (18, 93)], pen.shade)


def rocket(pen: Pen) -> None:
    """Upright, nose up."""
    pen.polygon([(34, 56), (12, 80), (12, 94), (36, 82)], pen.shade)
    pen.polygon([(66, 56), (88, 80), (88, 94), (64, 82)], pen.shade)
    pen.polygon([(40, 80), (60, 80), (66, 97), (34, 97)], STEEL)
    right = curve((50, 2), (74, 22), (74, 56), (64, 86))
    pen.polygon([*right, *[(100 - x, y) for x, y in reversed(right)]], pen.main)
    nose = curve((50, 2), (59, 10), (64, 17), (67, 26))
    pen.polygon([*nose, *[(100 - x, y) for x, y in reversed(nose)]], pen.shade)
    pen.circle(50, 44, 11, INK)
    pen.circle(50, 44, 8, GLASS)


def plane(pen: Pen) -> None:
    """Seen from above, flying to the right."""
    for side in (1, -1):

        def at(x: float, y: float, side: int = side) -> tuple[float, float]:
            return (x, 50 + side * y)

        pen.polygon([at(64, 6), at(44, 46), at(28, 46), at(40, 6)], pen.shade)
        pen.polygon([at(18, 4), at(8, 24), at(0, 24), at(4, 4)], pen.shade)
    pen.polygon(
        [
            (2, 46),
            *curve((14, 40), (40, 39), (70, 39), (86, 41)),
            *curve((86, 41), (102, 45), (102, 55), (86, 59)),
            *curve((86, 59), (70, 61), (40, 61), (14, 60)),
            (2, 54),
        ],
        pen.main,
    )
    pen.polygon([(82, 43), (91, 45), (91, 55), (82, 57)], GLASS)
    for x in (36, 48, 60):
        pen.circle(x, 50, 3, GLASS)


def bicycle(pen: Pen) -> None:
    """Side view, facing right."""
    for x in (23, 77):
        pen.ring(x, 66, 18, 7, pen.main)
        pen.circle(x, 66, 4, INK)
    frame = [(23, 66), (38, 36), (68, 36), (48, 66), (23, 66)]
    pen.line(frame, 6.5, pen.main)
    pen.line([(48, 66), (36, 30)], 6.5, pen.shade)
    pen.line([(77, 66), (66, 24)], 6.5, pen.shade)
    pen.line([(66, 24), (80, 22)], 6, INK)
    pen.line([(27, 28), (44, 28)], 7, INK)
    pen.circle(48, 66, 6, INK)


def tree(pen: Pen) -> None:
    """A fir of three storeys."""
    pen.rectangle(42, 78, 58, 98, WOOD)
    pen.polygon([(50, 42), (94, 84), (6, 84)], pen.shade)
    pen.polygon([(50, 22), (86, 62), (14, 62)], pen.main)
    pen.polygon([(50, 2), (76, 40), (24, 40)], pen.tint)


def flower(pen: Pen) -> None:
    """Six petals on a stalk with two leaves."""
    pen.line([(50, 40), (50, 96)], 6, STALK)
    pen.ellipse(33, 80, 17, 7, STALK, turn=28)
    pen.ellipse(67, 80, 17, 7, STALK, turn=-28)
    for index in range(6):
        x, y = arc_points((50, 34), (20, 20), index * 60 + 30, index * 60 + 390)[0]
        pen.circle(x, y, 14.5, pen.main if index % 2 else pen.shade)
    pen.circle(50, 34, 11, CREAM)
    pen.circle(50, 34, 7, WOOD)


def mushroom(pen: Pen) -> None:
    """A spotted cap on a thick stem."""
    pen.polygon(
        [
            (37, 54),
            *curve((38, 60), (38, 76), (34, 84), (30, 94)),
            *curve((70, 94), (66, 84), (62, 76), (62, 60)),
            (63, 54),
        ],
        CREAM,
    )
    pen.polygon(
        [*arc_points((50, 56), (46, 50), 180, 360), *curve((96, 56), (80, 66), (20, 66), (4, 56))], pen.main
    )
    for x, y, radius in ((50, 24, 9), (25, 42, 7), (75, 42, 7), (50, 50, 6)):
        pen.ellipse(x, y, radius, radius * 0.85, CREAM)


def fish(pen: Pen) -> None:
    """Swimming to the right."""
    pen.polygon(
        [
            (30, 50),
            *curve((30, 50), (18, 36), (10, 28), (2, 24)),
            *curve((2, 24), (10, 42), (10, 58), (2, 76)),
            *curve((2, 76), (10, 72), (18, 64), (30, 50)),
        ],
        pen.shade,
    )
    pen.polygon([(40, 32), (54, 12), (72, 30)], pen.shade)
    pen.polygon([(48, 68), (56, 84), (68, 68)], pen.shade)
    pen.polygon(
        [*curve((22, 50), (38, 20), (78, 16), (98, 50)), *curve((98, 50), (78, 84), (38, 80), (22, 50))],
        pen.main,
    )
    pen.line(arc_points((60, 50), (10, 18), -70, 70), 3.5, pen.shade)
    pen.circle(82, 44, 6.5, CREAM)
    pen.circle(83, 44, 3.8, INK)


def bird(pen: Pen) -> None:
    """Standing, facing right."""
    pen.line([(44, 76), (40, 95), (48, 95)], 4, INK)
    pen.line([(56, 76), (54, 95), (62, 95)], 4, INK)
    pen.polygon([(84, 20), (100, 28), (84, 34)], STEEL)
    pen.polygon([(2, 34), (10, 62), (34, 72), (34, 52)], pen.shade)
    pen.polygon(
        [
            *curve((16, 56), (40, 50), (52, 40), (56, 24)),
            *arc_points((72, 24), (16, 16), 180, 360),
            *curve((88, 26), (90, 62), (74, 80), (50, 80)),
            *curve((50, 80), (34, 80), (22, 72), (16, 56)),
        ],
        pen.main,
    )
    pen.polygon(
        [*curve((26, 54), (40, 50), (54, 48), (66, 50)), *curve((66, 50), (60, 68), (42, 72), (26, 54))],
        pen.shade,
    )
    pen.circle(75, 22, 4.2, INK)


def cat(pen: Pen) -> None:
    """A cat's face."""
    for side in (1, -1):
        pen.polygon([(50 + side * 44, 4), (50 + side * 44, 52), (50 + side * 8, 26)], pen.main)
        pen.polygon([(50 + side * 38, 16), (50 + side * 38, 40), (50 + side * 20, 28)], pen.shade)
    pen.ellipse(50, 58, 46, 38, pen.main)
    for side in (1, -1):
        pen.ellipse(50 + side * 19, 52, 7.5, 9.5, CREAM)
        pen.ellipse(50 + side * 18, 52, 4, 8, INK)
        pen.line([(50 + side * 20, 72), (50 + side * 42, 68)], 2.6, INK)
        pen.line([(50 + side * 20, 77), (50 + side * 40, 81)], 2.6, INK)
        pen.line(arc_points((50 + side * 6.5, 74), (6.5, 6), 0, 180), 2.8, INK)
    pen.polygon([(43, 66), (57, 66), (50, 74)], INK)


def butterfly(pen: Pen) -> None:
    """Wings spread, seen from above."""
    for side in (1, -1):

        def across(x: float, side: int = side) -> float:
            return 50 + side * x

        pen.ellipse(across(22), 72, 20, 17, pen.shade, turn=side * 38)
        pen.ellipse(across(28), 36, 25, 22, pen.main, turn=-side * 42)
        pen.circle(across(32), 33, 8.5, CREAM)
        pen.circle(across(23), 74, 6, CREAM)
        pen.line(
            [(across(2), 24), *curve((across(2), 24), (across(4), 10), (across(12), 6), (across(18), 6))],
            3,
            INK,
        )
    pen.ellipse(50, 52, 6, 32, INK)


def apple(pen: Pen) -> None:
    """With a stem and a leaf."""
    pen.line([(50, 28), *curve((50, 28), (50, 18), (52, 12), (56, 6))], 5.5, WOOD)
    right = [*curve((50, 28), (64, 18), (94, 22), (92, 52)), *curve((92, 52), (90, 84), (66, 106), (50, 92))]
    pen.polygon([*right, *[(100 - x, y) for x, y in reversed(right)]], pen.main)
    pen.polygon(
        [*curve((58, 20), (66, 2), (82, 2), (92, 6)), *curve((92, 6), (88, 20), (74, 28), (58, 20))], STALK
    )
    pen.ellipse(26, 46, 6, 13, pen.tint, turn=18)


def star(pen: Pen) -> None:
    """Five points."""
    points = []
    for index in range(10):
        radius = 52 if index % 2 == 0 else 22
        points.append(arc_points((50, 54), (radius, radius), index * 36 - 90, index * 36 + 270)[0])
    pen.polygon(points, pen.main)
    pen.polygon([(50, 54), points[0], points[1]], pen.tint)
    for index in (3, 5, 7):
        pen.polygon([(50, 54), points[index - 1], points[index]], pen.shade)


def heart(pen: Pen) -> None:
    """A heart with a glint."""
    right = [*curve((50, 28), (58, 4), (98, 2), (97, 38)), *curve((97, 38), (96, 62), (66, 78), (50, 96))]
    pen.polygon([*right, *[(100 - x, y) for x, y in reversed(right)]], pen.main)
    pen.ellipse(26, 30, 11, 7, pen.tint, turn=-40)


def house(pen: Pen) -> None:
    """Front view with a chimney."""
    pen.rectangle(70, 10, 82, 40, pen.shade)
    pen.rectangle(14, 44, 86, 96, pen.main)
    pen.polygon([(50, 4), (98, 48), (2, 48)], pen.shade)
    pen.rectangle(42, 64, 60, 96, WOOD)
    pen.circle(56, 81, 2.2, CREAM)
    for left in (20, 66):
        pen.rectangle(left, 58, left + 15, 74, GLASS)
        pen.line([(left + 7.5, 58), (left + 7.5, 74)], 2, INK)


def balloon(pen: Pen) -> None:
    """With a wavy string."""
    pen.line([*curve((50, 72), (60, 80), (40, 86), (50, 98))], 3.2, INK)
    pen.polygon([(50, 64), (59, 76), (41, 76)], pen.shade)
    right = [*curve((50, 2), (74, 2), (86, 18), (84, 36)), *curve((84, 36), (82, 54), (66, 66), (50, 70))]
    pen.polygon([*right, *[(100 - x, y) for x, y in reversed(right)]], pen.main)
    pen.ellipse(34, 24, 6, 11, pen.tint, turn=28)


def key(pen: Pen) -> None:
    """Lying, its bow to the left."""
    pen.line([(40, 42), (96, 42)], 12, pen.main)
    pen.rectangle(66, 42, 76, 68, pen.main)
    pen.rectangle(86, 42, 97, 74, pen.main)
    pen.ring(25, 42, 17, 13, pen.main)
    pen.line([(48, 45), (94, 45)], 3, pen.shade)


def umbrella(pen: Pen) -> None:
    """Open, with a hooked handle."""
    pen.line([(50, 4), (50, 82), *arc_points((60, 82), (10, 12), 180, 20)], 5, WOOD)
    lower = []
    for centre in (83, 61, 39, 17):
        lower += arc_points((centre, 54), (11, 7), 0, -180)
    pen.polygon([*arc_points((50, 54), (46, 46), 180, 360), *lower], pen.main)
    middle = [*arc_points((61, 54), (11, 7), 0, -180), *arc_points((39, 54), (11, 7), 0, -180)]
    pen.polygon(
        [
            *curve((28, 54), (30, 30), (38, 14), (50, 8)),
            *curve((50, 8), (62, 14), (70, 30), (72, 54)),
            *middle,
        ],
        pen.tint,
    )


def cup(pen: Pen) -> None:
    """A mug of coffee, handle to the right."""
    pen.line([*curve((68, 42), (100, 34), (100, 78), (64, 74))], 9, pen.main)
    pen.polygon(
        [
            (8, 30),
            *curve((8, 30), (9, 60), (12, 78), (18, 92)),
            *curve((62, 92), (68, 78), (71, 60), (72, 30)),
        ],
        pen.main,
    )
    pen.polygon([(56, 34), (66, 34), (63, 66), (57, 88)], pen.shade)
    pen.ellipse(40, 30, 32, 11, pen.tint)
    pen.ellipse(40, 31, 26, 7.5, WOOD)


def lamp(pen: Pen) -> None:
    """A table lamp."""
    pen.ellipse(50, 55, 20, 7, CREAM)
    pen.line([(50, 56), (50, 88)], 7, STEEL)
    pen.polygon([*arc_points((50, 96), (28, 14), 180, 360)], pen.shade)
    pen.polygon([(34, 4), (66, 4), (92, 54), (8, 54)], pen.main)
    pen.polygon([(56, 4), (66, 4), (92, 54), (70, 54)], pen.shade)


def book(pen: Pen) -> None:
    """Closed, its spine to the left and its pages showing below."""
    pen.rectangle(12, 4, 88, 96, pen.shade, corner=7)
    pen.polygon([(22, 78), (84, 78), (84, 90), (22, 90)], CREAM)
    pen.line([(24, 84), (84, 84)], 1.6, STEEL)
    pen.rectangle(22, 4, 88, 78, pen.main, corner=4)
    pen.rectangle(12, 4, 26, 90, pen.shade, corner=7)
    pen.rectangle(36, 18, 76, 40, CREAM, corner=3)
    for y, right in ((25, 70), (33, 62)):
        pen.line([(42, y), (right, y)], 3, INK)


def guitar(pen: Pen) -> None:
    """Leaning to the right."""
    pen.turn(38)
    pen.line([(50, -4), (50, 36)], 8, WOOD)
    pen.rectangle(42, -16, 58, 0, INK, corner=3)
    pen.ellipse(50, 50, 21, 18, pen.main)
    pen.ellipse(50, 78, 28, 24, pen.main)
    pen.rectangle(34, 50, 66, 72, pen.main)
    pen.circle(50, 60, 10, INK)
    pen.line([(40, 86), (60, 86)], 5, INK)
    pen.line([(50, -10), (50, 86)], 2, CREAM)
    pen.turn(0)


def ball(pen: Pen) -> None:
    """A beach ball of six strips, its pole off the middle so that a turn shows."""
    pen.circle(50, 50, 47, pen.main)
    pole = (40.0, 32.0)
    for start in (-10, 110, 230):
        rim = arc_points((50, 50), (47, 47), start, start + 60)
        out = curve(pole, _between(pole, rim[0], 0.4, 7), _between(pole, rim[0], 0.8, 7), rim[0])
        back = curve(rim[-1], _between(pole, rim[-1], 0.8, 7), _between(pole, rim[-1], 0.4, 7), pole)
        pen.polygon([*out, *rim, *back], CREAM)
    pen.circle(pole[0], pole[1], 7, pen.shade)


def _between(
    start: tuple[float, float], end: tuple[float, float], share: float, bend: float
) -> tuple[float, float]:
    """A point on the way from start to end, pushed sideways by `bend` units."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = (dx * dx + dy * dy) ** 0.5
    return (start[0] + dx * share - dy / length * bend, start[1] + dy * share + dx / length * bend)


def hat(pen: Pen) -> None:
    """A top hat."""
    pen.polygon([(22, 12), (78, 12), (72, 80), (28, 80)], pen.main)
    pen.polygon([(27, 58), (73, 58), (72, 74), (28, 74)], INK)
    pen.ellipse(50, 80, 48, 13, pen.shade)
    pen.polygon([(28, 74), (72, 74), (71, 82), (29, 82)], INK)
    pen.ellipse(50, 12, 28, 7, pen.shade)


def clock(pen: Pen) -> None:
    """An alarm clock with two bells."""
    for side in (1, -1):
        pen.line([(50 + side * 24, 84), (50 + side * 34, 96)], 8, INK)
        pen.polygon(arc_points((50 + side * 27, 18), (20, 15), 180, 360, turn=side * 38), pen.main)
    pen.circle(50, 54, 40, pen.main)
    pen.circle(50, 54, 28, CREAM)
    pen.line([(50, 54), (50, 34)], 5, INK)
    pen.line([(50, 54), (66, 62)], 5, INK)
    pen.circle(50, 54, 4, INK)


def bell(pen: Pen) -> None:
    """A hand bell without its handle."""
    pen.circle(50, 88, 10, INK)
    pen.circle(50, 9, 8, pen.shade)
    right = [*curve((50, 10), (78, 12), (74, 50), (80, 62)), (94, 80)]
    pen.polygon([*right, *[(100 - x, y) for x, y in reversed(right)]], pen.main)
    pen.rectangle(6, 76, 94, 86, pen.shade, corner=5)
    pen.line([*curve((34, 30), (30, 40), (31, 52), (28, 62))], 5, pen.tint)


def crown(pen: Pen) -> None:
    """Five points with round tips."""
    pen.polygon([(12, 84), (3, 30), (28, 54), (50, 12), (72, 54), (97, 30), (88, 84)], pen.main)
    pen.rectangle(11, 74, 89, 90, pen.shade, corner=3)
    for x, y in ((5, 28), (50, 11), (95, 28)):
        pen.circle(x, y, 7.5, pen.main)
    for x in (28, 50, 72):
        pen.circle(x, 82, 4.5, CREAM)


def anchor(pen: Pen) -> None:
    """Upright, with a ring."""
    pen.ring(50, 14, 9, 8, pen.main)
    pen.line([(50, 24), (50, 90)], 11, pen.main)
    pen.line([(26, 36), (74, 36)], 10, pen.main)
    pen.line(arc_points((50, 56), (36, 36), 10, 170), 11, pen.main)
    for side in (1, -1):
        pen.polygon([(50 + side * 47, 44), (50 + side * 48, 72), (50 + side * 22, 62)], pen.main)


def chair(pen: Pen) -> None:
    """Seen from the side, its back to the left."""
    pen.line([(22, 6), (26, 56)], 13, pen.main)
    pen.rectangle(18, 50, 86, 66, pen.main, corner=6)
    pen.rectangle(18, 60, 86, 66, pen.shade, corner=3)
    pen.line([(26, 66), (20, 96)], 9, pen.shade)
    pen.line([(78, 66), (84, 96)], 9, pen.shade)


_DRAWERS: dict[str, Callable[[Pen], None]] = {
    drawer.__name__: drawer
    for drawer in (
        car, boat, rocket, plane, bicycle, tree, flower, mushroom, fish, bird, cat, butterfly, apple, star,
        heart, house, balloon, key, umbrella, cup, lamp, book, guitar, ball, hat, clock, bell, crown, anchor,
        chair,
    )
}  # fmt: skip

_CANVAS_PIXELS = 560
_MARGIN = 9.0  # grid units around the 100 for outline and halo
_OUTLINE = 2.6  # grid units
_HALO = 5.0  # grid units, outline included
LEVELS = (280, 192, 128, 96, 64, 44, 30, 20)
"""Cached sizes in pixels; frames use the next larger."""


def _paint(kind: str, colour: Rgb) -> Image.Image:
    image = Image.new("RGBA", (_CANVAS_PIXELS, _CANVAS_PIXELS), (0, 0, 0, 0))
    _DRAWERS[kind](Pen(image, colour, _MARGIN))
    return image


def _grown(mask: Image.Image, units: float) -> Image.Image:
    """The mask widened by about `units` with round corners: a blur, cut where it has faded."""
    pixels = units * _CANVAS_PIXELS / (100.0 + 2.0 * _MARGIN)
    # A straight edge blurred with standard deviation s is at 12 % (30 of 255) 1.2 s outside and at 5 % (12)
    # 1.7 s outside, so with s = 0.7 units the new edge fades out about one `units` away.
    blurred = mask.filter(ImageFilter.GaussianBlur(pixels * 0.7))
    low, high = 12, 30
    return blurred.point([min(255, max(0, (value - low) * 255 // (high - low))) for value in range(256)])


@lru_cache(maxsize=len(KINDS))
def _frame_of(kind: str) -> Image.Image:
    """Halo and outline of a kind, the same for all its colours."""
    silhouette = _paint(kind, PALETTE["white"]).getchannel("A")
    frame = Image.new("RGBA", silhouette.size, (255, 255, 255, 0))
    frame.putalpha(_grown(silhouette, _HALO))
    frame.paste((*INK, 255), (0, 0), _grown(silhouette, _OUTLINE))
    return frame


@lru_cache(maxsize=len(KINDS) * len(COLOURS))
def _master(kind: str, colour: str) -> Image.Image:
    """The pictogram at its largest kept size, as premultiplied "RGBa"."""
    image = _frame_of(kind).copy()
    image.alpha_composite(_paint(kind, PALETTE[colour]))
    return image.convert("RGBa").resize((LEVELS[0], LEVELS[0]), Image.Resampling.BOX)


@lru_cache(maxsize=len(KINDS) * len(COLOURS) * len(LEVELS))
def premultiplied_pictogram(kind: str, colour: str, level: int) -> Image.Image:
    """The pictogram at `LEVELS[level]` pixels in mode "RGBa". Cached and shared: do not draw on it."""
    master = _master(kind, colour)
    size = LEVELS[level]
    return (
        master
        if size == master.width
        else master.resize((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)
    )


@lru_cache(maxsize=512)
def draw_pictogram(kind: str, colour: str, size_pixels: int) -> Image.Image:
    """One pictogram, halo and outline included, as an RGBA image of `size_pixels` squared.

    Raises:
        ValueError: an unknown kind or colour, or a size below 1 or above 280.
    """
    if kind not in KINDS or colour not in COLOURS or not 1 <= size_pixels <= LEVELS[0]:
        raise ValueError(f"no such pictogram: {kind!r}, {colour!r}, {size_pixels} pixels")
    return _master(kind, colour).resize((size_pixels, size_pixels), Image.Resampling.LANCZOS).convert("RGBA")
