"""Things made by people: each function draws one pictogram with a `Pen`, main colour first."""

from __future__ import annotations

from training.demo_corpus.pen import CREAM, GLASS, INK, STEEL, WOOD, Pen, arc_points, curve


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
    pen.line([(50, 4), (50, 82), *arc_points(60, 82, 10, 12, 180, 20)], 5, WOOD)
    lower = []
    for centre in (83, 61, 39, 17):
        lower += arc_points(centre, 54, 11, 7, 0, -180)
    pen.polygon([*arc_points(50, 54, 46, 46, 180, 360), *lower], pen.main)
    middle = [*arc_points(61, 54, 11, 7, 0, -180), *arc_points(39, 54, 11, 7, 0, -180)]
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
    pen.polygon([*arc_points(50, 96, 28, 14, 180, 360)], pen.shade)
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
        rim = arc_points(50, 50, 47, 47, start, start + 60)
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
        pen.polygon(arc_points(50 + side * 27, 18, 20, 15, 180, 360, turn=side * 38), pen.main)
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
    pen.line(arc_points(50, 56, 36, 36, 10, 170), 11, pen.main)
    for side in (1, -1):
        pen.polygon([(50 + side * 47, 44), (50 + side * 48, 72), (50 + side * 22, 62)], pen.main)


def chair(pen: Pen) -> None:
    """Seen from the side, its back to the left."""
    pen.line([(22, 6), (26, 56)], 13, pen.main)
    pen.rectangle(18, 50, 86, 66, pen.main, corner=6)
    pen.rectangle(18, 60, 86, 66, pen.shade, corner=3)
    pen.line([(26, 66), (20, 96)], 9, pen.shade)
    pen.line([(78, 66), (84, 96)], 9, pen.shade)
