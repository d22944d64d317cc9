"""Outlines of the hot cells of a heat map, as polygons along the edges of the cells. Pure functions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Corner = tuple[int, int]
"""A corner of the grid's cells: (column, row)."""


def outlines(cells: npt.NDArray[np.bool_]) -> list[list[Corner]]:
    """Return the outlines of the true cells: closed polygons, without corners on a straight line.

    Each area of cells that are connected by sides has one outer polygon, and one polygon for each hole.

    Args:
        cells: bool, (rows, columns).

    Returns:
        Polygons of corners (column, row), from 0 to the number of columns and rows; the last corner connects to the
        first.
    """
    following = _edges(np.pad(cells, 1))
    polygons = []
    while following:
        start = next(iter(following))
        polygon, here, heading = [start], start, (0, 0)
        while True:
            step = _next_step(following[here], heading)
            following[here].remove(step)
            if not following[here]:
                del following[here]
            if heading not in {(0, 0), step}:
                polygon.append(here)
            here, heading = (here[0] + step[0], here[1] + step[1]), step
            if here == start:
                break
        polygons.append(polygon)
    return polygons


def _edges(padded: npt.NDArray[np.bool_]) -> dict[Corner, list[Corner]]:
    """Return by corner the steps along the border of the true cells that start there, with the cells on the right."""
    steps: dict[Corner, list[Corner]] = {}
    for step, neighbour, corner in (
        ((1, 0), (-1, 0), (0, 0)),
        ((0, 1), (0, 1), (1, 0)),
        ((-1, 0), (1, 0), (1, 1)),
        ((0, -1), (0, -1), (0, 1)),
    ):
        beside = np.roll(padded, (-neighbour[0], -neighbour[1]), (0, 1))
        for row, column in np.argwhere(padded & ~beside):
            steps.setdefault((int(column) - 1 + corner[0], int(row) - 1 + corner[1]), []).append(step)
    return steps


def _next_step(steps: list[Corner], heading: Corner) -> Corner:
    """Return the next step; if two cells touch at a corner, the step to the right, because they are separate areas."""
    right = (-heading[1], heading[0])
    return right if right in steps else steps[0]
