"""Draws guards: outlines of regions and, while a guard fires, a red frame and the reasons at the bottom.

The middle of the image stays free, because the operator looks there during an alarm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from overlays.render.text import RED, WHITE, LegendLayout, TextLine, plate_tile, text_size
from pipeline.frames import Box, Explanation, Image, Region
from pipeline.guards.state import GuardState

ALARM: Final = (255, 59, 48)
"""RGB colour of alarms, a stronger red than ``RED`` for wrong classifications."""
CALM: Final = (90, 200, 250)
"""RGB colour of a region's outline while no guard fires."""
_DARK: Final = (16, 18, 22)
_SHIFT: Final = 4
_MAX_COORDINATE: Final = 1 << 20
_MAX_LISTED: Final = 3
"""Maximum number of alarms listed."""


def draw_guards(image: Image, explanation: Explanation) -> None:
    """Draw an explanation's regions and alarms onto ``image``, a writable copy of the frame's size."""
    firing = explanation.firing
    draw_regions(image, explanation.regions, ALARM if firing else CALM)
    if firing:
        _frame(image)
        draw_footer(image, alarm_lines(firing))


def alarm_lines(firing: Sequence[GuardState]) -> list[TextLine]:
    """Return the text for firing guards: name, duration and reason of the first three, and the number of others."""
    lines = []
    for state in firing[:_MAX_LISTED]:
        lines.append(TextLine(f"! {state.name} · {state.seconds:.1f} s", RED, weight=700))
        lines.append(TextLine(state.message, WHITE, scale=0.75))
    if len(firing) > _MAX_LISTED:
        lines.append(TextLine(f"and {len(firing) - _MAX_LISTED} more", RED, scale=0.75))
    return lines


def draw_regions(image: Image, regions: Sequence[Region], colour: tuple[int, int, int]) -> None:
    """Draw outlines and names of regions onto ``image``; a dark edge keeps them visible on any background."""
    if not regions:
        return
    size = text_size(image.shape[0], image.shape[1])
    stroke = max(1, size // 12)
    for region in regions:
        vertices, shift = scaled_corners(region.polygon)
        cv2.polylines(image, [vertices], True, _DARK, stroke + 2, cv2.LINE_AA, shift)
        cv2.polylines(image, [vertices], True, colour, stroke, cv2.LINE_AA, shift)
        _draw_name(image, region, size, colour)


def scaled_corners(polygon: Sequence[tuple[float, float]]) -> tuple[npt.NDArray[np.int32], int]:
    """Return a polygon's corners as OpenCV fixed-point numbers, and the number of fractional bits."""
    # OpenCV's fixed-point coordinates overflow beyond ``_MAX_COORDINATE``.
    clipped = np.clip(polygon, -_MAX_COORDINATE, _MAX_COORDINATE)
    return np.rint(clipped * (1 << _SHIFT)).astype(np.int32), _SHIFT


def _draw_name(image: Image, region: Region, size: int, colour: tuple[int, int, int]) -> None:
    """Write a region's name inside its upper right corner, because the legend is on the left."""
    height, width = image.shape[:2]
    right = min(max(x for x, _ in region.polygon), width)
    top = max(min(y for _, y in region.polygon), 0.0)
    tile = plate_tile(region.name, max(9, round(0.75 * size)), 500, max(width // 3, 1), colour)
    margin = max(1, size // 6)
    plate = LegendLayout((tile,), margin)
    left, row = round(right) - plate.width - margin, round(top) + margin
    if tile.shape[1] and left >= 0 and row + plate.height <= height:
        plate.fill(image[row : row + plate.height, left : left + plate.width])


def frame_stroke(height: int, width: int) -> int:
    """Return the width of an alarm's red frame in pixels."""
    return max(2, text_size(height, width) // 4)


def _frame(image: Image) -> None:
    stroke = frame_stroke(image.shape[0], image.shape[1])
    image[:stroke] = image[-stroke:] = ALARM
    image[:, :stroke] = image[:, -stroke:] = ALARM


def draw_footer(image: Image, lines: Sequence[TextLine]) -> None:
    """Draw lines on a dark plate in the lower left corner, at most a third of the image's height."""
    plate = footer_plate(image.shape[0], image.shape[1], lines)
    if plate is not None:
        top, left = image.shape[0] - plate.margin - plate.height, plate.margin
        plate.fill(image[top : top + plate.height, left : left + plate.width])


def footer_area(height: int, width: int, lines: Sequence[TextLine]) -> Box | None:
    """Return the area that ``draw_footer`` covers in an image of this size; None if no line fits."""
    plate = footer_plate(height, width, lines)
    return None if plate is None else plate.area(height - plate.margin - plate.height)


def footer_plate(height: int, width: int, lines: Sequence[TextLine]) -> LegendLayout | None:
    """Return the plate of ``draw_footer`` for an image of this size; None if no line fits."""
    size = text_size(height, width)
    margin = max(2, size // 2)
    max_width = max(width - 4 * margin, 1)
    tiles, used = [], 2 * margin
    for line in lines:
        tile = plate_tile(line.text, max(9, round(size * line.scale)), line.weight, max_width, line.colour)
        used += tile.shape[0]
        if used > height // 3:
            break
        if tile.shape[1]:
            tiles.append(tile)
    return LegendLayout(tuple(tiles), margin) if tiles else None
