"""Positions of points relative to zones and counting lines. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pipeline.frames import Box
from pipeline.polygons import Point


def anchor_point(box: Box, anchor: Literal["centre", "bottom"]) -> Point:
    """Return the anchor of a box: its centre, or the middle of its lower edge."""
    x = (box.left + box.right) / 2.0
    return x, box.bottom if anchor == "bottom" else (box.top + box.bottom) / 2.0


def depth_inside(point: Point, polygon: Sequence[Point]) -> float:
    """Return the distance of a point from the border of a polygon: positive inside, negative outside.

    A point is inside if a ray from it crosses the border an odd number of times.
    """
    inside = False
    nearest = math.inf
    x, y = point
    for index, corner in enumerate(polygon):
        before = polygon[index - 1]
        if (corner[1] > y) != (before[1] > y):
            fraction = (y - corner[1]) / (before[1] - corner[1])
            inside ^= x < corner[0] + fraction * (before[0] - corner[0])
        nearest = min(nearest, _distance(point, before, corner))
    return nearest if inside else -nearest


def _distance(point: Point, start: Point, end: Point) -> float:
    """Return the distance of a point from a segment."""
    across, down = end[0] - start[0], end[1] - start[1]
    length = across * across + down * down
    along = ((point[0] - start[0]) * across + (point[1] - start[1]) * down) / length if length else 0.0
    along = min(max(along, 0.0), 1.0)
    return math.hypot(point[0] - start[0] - along * across, point[1] - start[1] - along * down)


def signed_distance(point: Point, line: tuple[Point, Point]) -> float:
    """Return the signed distance of a point from the infinite line through two points.

    It is positive on the right side, seen from the first point towards the second, in an image whose y points down.
    """
    (x, y), (end_x, end_y) = line
    across, down = end_x - x, end_y - y
    return (across * (point[1] - y) - down * (point[0] - x)) / math.hypot(across, down)


def crosses(start: Point, end: Point, line: tuple[Point, Point]) -> bool:
    """Return whether the segment from ``start`` to ``end`` meets the segment ``line``, its ends included.

    ``start`` and ``end`` lie on different sides of the line.
    """
    before, after = signed_distance(start, line), signed_distance(end, line)
    fraction = before / (before - after)
    x, y = start[0] + fraction * (end[0] - start[0]), start[1] + fraction * (end[1] - start[1])
    first, second = line
    across, down = second[0] - first[0], second[1] - first[1]
    along = ((x - first[0]) * across + (y - first[1]) * down) / (across * across + down * down)
    return 0.0 <= along <= 1.0
