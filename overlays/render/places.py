"""Draws zones and counting lines with their counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np

from overlays.render.text import LegendLayout, plate_tile, text_size
from pipeline.frames import Box, Explanation, Image
from pipeline.passages.passage import Place

COLOUR: Final = (255, 214, 10)
"""RGB colour of zones and lines, different from the colours of regions and alarms."""
_DARK: Final = (16, 18, 22)
_SHIFT: Final = 4
_MAX_COORDINATE: Final = 1 << 20
_MAX_CLASSES: Final = 4
"""Maximum number of classes in the text of a counting line."""


def draw_places(image: Image, explanation: Explanation) -> None:
    """Draw the zones and lines of an explanation onto ``image``, a writable copy of the frame's size."""
    size = max(9, round(0.75 * text_size(image.shape[0], image.shape[1])))
    for place in explanation.places:
        _outline(image, place, max(1, size // 8))
    taken: list[Box] = []
    for place in explanation.places:
        _write(image, place, size, taken)


def place_lines(place: Place) -> list[str]:
    """Return the text of a place: a zone's name and counts, or a line's name and counts per direction and class."""
    if place.kind == "zone":
        rejected = f" · {place.rejected} rejected" if any(each.is_ok is not None for each in place.counts) else ""
        return [f"{place.name}: {place.total}{rejected}"]
    lines = [place.name]
    for direction, sign in (("forward", "→"), ("backward", "←")):
        counts = sorted(
            ((each.count, each.label) for each in place.counts if each.direction == direction), reverse=True
        )
        shown = [f"{count} {label}" for count, label in counts[:_MAX_CLASSES]]
        others = sum(count for count, _ in counts[_MAX_CLASSES:])
        if counts:
            lines.append(f"{sign} {' · '.join([*shown, *([f'{others} other'] if others else [])])}")
    return lines if len(lines) > 1 else [f"{place.name}: 0"]


def _outline(image: Image, place: Place, stroke: int) -> None:
    """Draw a zone's border, or a line with an arrow in forward direction; a dark edge keeps them visible."""
    clipped = np.clip(place.points, -_MAX_COORDINATE, _MAX_COORDINATE)
    vertices = np.rint(clipped * (1 << _SHIFT)).astype(np.int32)
    for colour, width in ((_DARK, stroke + 2), (COLOUR, stroke)):
        cv2.polylines(image, [vertices], place.kind == "zone", colour, width, cv2.LINE_AA, _SHIFT)
        if place.kind == "line":
            start, end = _arrow(clipped.tolist(), 12.0 * (stroke + 1))
            cv2.arrowedLine(image, start, end, colour, width, cv2.LINE_AA, 0, 0.4)


def _arrow(ends: Sequence[Sequence[float]], length: float) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return start and tip of an arrow from the middle of a line to its right side, seen from the first end."""
    (x, y), (end_x, end_y) = ends
    across, down = end_x - x, end_y - y
    distance = math.hypot(across, down)
    middle_x, middle_y = (x + end_x) / 2.0, (y + end_y) / 2.0
    tip = (round(middle_x - down / distance * length), round(middle_y + across / distance * length))
    return (round(middle_x), round(middle_y)), tip


def _write(image: Image, place: Place, size: int, taken: list[Box]) -> None:
    """Write the text at a zone's lower left corner, or beside a line's second end; move it up if it overlaps others."""
    height, width = image.shape[:2]
    tiles = [plate_tile(text, size, 600, max(width // 2, 1), COLOUR) for text in place_lines(place)]
    margin = max(1, size // 6)
    plate = LegendLayout(tuple(tile for tile in tiles if tile.shape[1]), margin)
    if not plate.tiles or plate.width > width or plate.height > height:
        return
    if place.kind == "zone":
        left, bottom = min(x for x, _ in place.points), max(y for _, y in place.points)
    else:
        left, bottom = place.points[1][0], place.points[1][1] + plate.height / 2.0
    column = round(min(max(left + 2 * margin, 0), width - plate.width))
    row = round(min(max(bottom - plate.height - 2 * margin, 0), height - plate.height))
    covered = Box(column, row, column + plate.width, row + plate.height)
    for other in sorted(taken, key=lambda each: -each.top):
        if covered.iou(other) > 0.0:
            row = max(round(other.top) - plate.height, 0)
            covered = Box(column, row, column + plate.width, row + plate.height)
    taken.append(covered)
    plate.fill(image[row : row + plate.height, column : column + plate.width])
