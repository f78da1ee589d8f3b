"""Vehicles, plants, animals and signs: each function draws one pictogram with a `Pen`, main colour first."""

from __future__ import annotations

from training.demo_corpus.pen import CREAM, GLASS, INK, STALK, STEEL, WOOD, Pen, arc_points, curve


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
        x, y = arc_points(50, 34, 20, 20, index * 60 + 30, index * 60 + 390)[0]
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
        [*arc_points(50, 56, 46, 50, 180, 360), *curve((96, 56), (80, 66), (20, 66), (4, 56))], pen.main
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
    pen.line(arc_points(60, 50, 10, 18, -70, 70), 3.5, pen.shade)
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
            *arc_points(72, 24, 16, 16, 180, 360),
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
        pen.line(arc_points(50 + side * 6.5, 74, 6.5, 6, 0, 180), 2.8, INK)
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
        points.append(arc_points(50, 54, radius, radius, index * 36 - 90, index * 36 + 270)[0])
    pen.polygon(points, pen.main)
    pen.polygon([(50, 54), points[0], points[1]], pen.tint)
    for index in (3, 5, 7):
        pen.polygon([(50, 54), points[index - 1], points[index]], pen.shade)


def heart(pen: Pen) -> None:
    """A heart with a glint."""
    right = [*curve((50, 28), (58, 4), (98, 2), (97, 38)), *curve((97, 38), (96, 62), (66, 78), (50, 96))]
    pen.polygon([*right, *[(100 - x, y) for x, y in reversed(right)]], pen.main)
    pen.ellipse(26, 30, 11, 7, pen.tint, turn=-40)
