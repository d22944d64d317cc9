"""Geometry of polygons: area, crossing sides, and the fraction of each cell of a grid inside a polygon."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.frames import Box

Point = tuple[float, float]
Side = tuple[Point, Point]
Flat = npt.NDArray[np.float32]
"""One number per cell of a grid, float32, (rows * columns,)."""


def polygon_area(polygon: Sequence[Point]) -> float:
    """Return the area of a polygon, at least 0 in either orientation (shoelace formula)."""
    return abs(sum(x * next_y - next_x * y for (x, y), (next_x, next_y) in _sides(polygon))) / 2.0


def pixels_inside(polygon: Sequence[Point], cut: tuple[int, int, int, int]) -> npt.NDArray[np.bool_]:
    """Return which pixels of a rectangle have their centre inside a polygon: bool, (rows, columns).

    Args:
        polygon: corners in frame pixels; if its sides cross, the even-odd rule decides.
        cut: left, top, right and bottom of the rectangle, in whole frame pixels.
    """
    left, top, right, bottom = cut
    inside = np.zeros((bottom - top, right - left), np.bool_)
    centres = np.arange(left, right) + 0.5
    for (x, y), (next_x, next_y) in _sides(polygon):
        low, high = (min(max(math.ceil(edge - 0.5), top), bottom) for edge in sorted((y, next_y)))
        if low < high:  # in rows whose centres the side passes, pixels right of the side change between in and out
            crossings = x + (np.arange(low, high) + 0.5 - y) * ((next_x - x) / (next_y - y))
            inside[low - top : high - top] ^= centres >= crossings[:, None]
    return inside


def _sides(polygon: Sequence[Point]) -> list[Side]:
    return [(polygon[index - 1], corner) for index, corner in enumerate(polygon)]


def self_intersects(polygon: Sequence[Point]) -> bool:
    """Return whether two non-adjacent sides of a polygon cross."""
    sides = _sides(polygon)
    for (i, side), (j, other) in itertools.combinations(enumerate(sides), 2):
        adjacent = j - i in {1, len(sides) - 1}
        if not adjacent and _cross(side, other):
            return True
    return False


def _cross(side: Side, other: Side) -> bool:
    (a, b), (c, d) = side, other
    return _turn(a, b, c) * _turn(a, b, d) < 0 and _turn(c, d, a) * _turn(c, d, b) < 0


def _turn(a: Point, b: Point, c: Point) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


@functools.lru_cache(maxsize=256)
def cell_weights(polygon: tuple[Point, ...], region: Box, grid: tuple[int, int]) -> Flat:
    """Return the exact fraction of each cell's area inside a polygon: float32 in [0, 1], (rows * columns,).

    Args:
        polygon: corners in frame pixels, without crossing sides.
        region: the rectangle of the frame that the grid covers, in pixels.
        grid: rows and columns.
    """
    rows, columns = grid
    fractions = np.zeros((rows, columns), np.float32)
    cell_height, cell_width = region.height / rows, region.width / columns
    for row in range(rows):
        top = region.top + row * cell_height
        band = _clip(_clip(list(polygon), 1, top, 1.0), 1, top + cell_height, -1.0)
        for column in range(columns) if len(band) > 2 else ():
            left = region.left + column * cell_width
            piece = _clip(_clip(band, 0, left, 1.0), 0, left + cell_width, -1.0)
            fractions[row, column] = polygon_area(piece) / (cell_height * cell_width)
    flat = np.clip(fractions.ravel(), 0.0, 1.0)
    flat.flags.writeable = False
    return flat


def _clip(points: list[Point], axis: int, bound: float, side: float) -> list[Point]:
    """Clip a polygon at ``bound`` on an axis; ``side`` 1 keeps the part above the bound, -1 the part below.

    Source: Sutherland and Hodgman, 1974.
    """
    clipped: list[Point] = []
    for index, point in enumerate(points):
        before = points[index - 1]
        now, then = side * (point[axis] - bound), side * (before[axis] - bound)
        if (now >= 0.0) != (then >= 0.0):
            fraction = then / (then - now)
            clipped.append(
                (before[0] + fraction * (point[0] - before[0]), before[1] + fraction * (point[1] - before[1]))
            )
        if now >= 0.0:
            clipped.append(point)
    return clipped
