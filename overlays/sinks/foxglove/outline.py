"""Outlines of the hot cells of a heat map, as polygons along the edges of the cells. Pure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Corner = tuple[int, int]
"""A corner of the grid's cells: (column, row)."""


def outlines(cells: npt.NDArray[np.bool_]) -> list[list[Corner]]:
    """Return the outlines of the true cells: closed polygons of corners, without corners on a straight line.

    Each connected area (by sides, not by corners) has an outer polygon and one for each hole.

    Args:
        cells: bool, (rows, columns).

    Returns:
        Polygons of (column, row), 0 to the number of columns and rows; the last corner joins the first.
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
    """Return the steps that lead along the border of the true cells from each corner, the cells to the right."""
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
    """Return the step to the right of ``heading`` where two cells touch at a corner: they are separate areas."""
    right = (-heading[1], heading[0])
    return right if right in steps else steps[0]
