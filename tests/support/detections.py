"""Builders of a detector's explanations: boxes with heat maps whose evidence lies where a test puts it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from pipeline.frames import NO_HEAT, Box, BoxMap, Explanation, Finding, Frame, Heat

WIDTH, HEIGHT = 160, 120
WHOLE = Box(0.0, 0.0, WIDTH, HEIGHT)
GRID = (12, 16)
"""Rows and columns: square cells of 10 pixels."""


def detection_frame(index: int, *, camera: str = "road", rate: float = 25.0, source_name: str = "") -> Frame:
    """Return a black frame at its time in the stream."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    return Frame(image, camera, index, index / rate, index / rate, source_name=source_name)


def heat_at(*rectangles: Box) -> Heat:
    """Return a map on ``GRID`` with a heat of 1 in each cell whose centre lies in a rectangle, and 0 elsewhere."""
    rows, columns = GRID
    heat = np.zeros(GRID, np.float32)
    for row in range(rows):
        for column in range(columns):
            heat[row, column] = any(each.holds(10.0 * column + 5.0, 10.0 * row + 5.0) for each in rectangles)
    return heat


def detection(
    box: Box,
    *,
    track: int | None = 1,
    heat: Heat | None = None,
    label: str = "car",
    score: float = 0.9,
    mode: Literal["keep", "drop"] = "keep",
    index: int = 0,
    age_seconds: float = 0.0,
) -> Finding:
    """Return a box; without ``heat`` it has no map. ``index`` is that of the frame in which its map was made."""
    if heat is None:
        return Finding(label, score, NO_HEAT, 2, box=box, track=track)
    against = np.zeros_like(heat) if mode == "drop" else None
    lowest_score = score - 0.5 * float(heat.max()) if mode == "drop" else None
    box_map = BoxMap(mode, "complete", WHOLE, 0.5, against, lowest_score, index, age_seconds)
    return Finding(label, score, heat, 2, box=box, track=track, box_map=box_map)


def detections(frame: Frame, findings: Sequence[Finding] = ()) -> Explanation:
    """Return the explanation of a detector."""
    return Explanation(frame, tuple(findings), "recipro-cam/keep", "cut")
