"""Where the names of points go, so that none covers another one or a point."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

_CHARACTER, _LINE = 6.6, 13.0  # pixels of a label's letters, which are 11 high: wider than most, so that estimates are safe
_WIDE = 11.0  # of a letter that takes two cells
_RADIUS, _APART = 7.0, 9.0  # of a point; and how far other points' names keep from it
_STEP = 4.0  # between the boxes along a line
_LATIN = 0x2E80  # scripts from here on are written in wide letters


class Place(NamedTuple):
    """Where a name stands, from its point: pixels, and on which side of them it is."""

    dx: float
    dy: float
    align: Literal["left", "center", "right"]


Box = tuple[float, float, float, float]


def places(
    points: Sequence[tuple[float, float]],
    names: Sequence[str],
    width: float,
    height: float,
    line: Sequence[tuple[float, float]] = (),
) -> list[Place | None]:
    """Beside each point, above or below it: wherever its name is first free; `None` where there is no room.

    Args:
        points: in pixels, from the top left; those that come first choose first.
        names: as they are drawn.
        width, height: of the picture.
        line: the corners of a line that is crossed only where there is no other room.

    Examples:
        >>> places([(50, 50), (50, 52)], ["a", "b"], 100, 100)
        [Place(dx=9.0, dy=0.0, align='left'), Place(dx=-9.0, dy=0.0, align='right')]
    """
    taken: list[Box] = [(x - _APART, y - _APART, x + _APART, y + _APART) for x, y in points]
    crossed = _along(line)
    found: list[Place | None] = []
    for n, ((x, y), name) in enumerate(zip(points, names, strict=True)):
        long = sum(_WIDE if ord(c) >= _LATIN else _CHARACTER for c in name)
        others = [box for at, box in enumerate(taken) if at != n]
        free = [
            (place, box)
            for place, box in _candidates(x, y, long)
            if box[0] >= 0 and box[1] >= 0 and box[2] <= width and box[3] <= height
            if not any(_overlap(box, other) for other in others)
        ]
        clear = [one for one in free if not any(_overlap(one[1], other) for other in crossed)]
        place, box = next(iter((*clear, *free)), (None, None))
        found.append(place)
        taken += [] if box is None else [box]
    return found


def _along(line: Sequence[tuple[float, float]]) -> list[Box]:
    """Small boxes along a line."""
    found = []
    for (x, y), (to_x, to_y) in pairwise(line):
        parts = int(max(abs(to_x - x), abs(to_y - y)) / _STEP) + 1
        for n in range(parts + 1):
            at_x, at_y = x + (to_x - x) * n / parts, y + (to_y - y) * n / parts
            found.append((at_x - 1, at_y - 1, at_x + 1, at_y + 1))
    return found


def _candidates(x: float, y: float, long: float) -> list[tuple[Place, Box]]:
    side, half, far = _RADIUS + 2, _LINE / 2, _RADIUS + _LINE / 2 + 1
    below, above = (
        (x - long / 2, y + far - half, x + long / 2, y + far + half),
        (x - long / 2, y - far - half, x + long / 2, y - far + half),
    )
    return [
        (Place(side, 0.0, "left"), (x + side, y - half, x + side + long, y + half)),
        (Place(-side, 0.0, "right"), (x - side - long, y - half, x - side, y + half)),
        (Place(0.0, far, "center"), below),
        (Place(0.0, -far, "center"), above),
        (Place(side, far, "left"), (x + side, y + far - half, x + side + long, y + far + half)),
        (Place(side, -far, "left"), (x + side, y - far - half, x + side + long, y - far + half)),
        (Place(-side, far, "right"), (x - side - long, y + far - half, x - side, y + far + half)),
        (Place(-side, -far, "right"), (x - side - long, y - far - half, x - side, y - far + half)),
    ]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
