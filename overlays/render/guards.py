"""What guards add to a picture: the outlines of regions, and, while one fires, a red frame and the reason at the foot.

Draws on a picture of our own and keeps nothing. The middle of the picture stays free: an alarm asks to look there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np

from overlays.render.text import RED, WHITE, LegendLayout, TextLine, text_size, text_tile
from pipeline.frames import Explanation, GuardState, Image, Region

ALARM: Final = (255, 59, 48)
"""The red of an alarm, RGB: more of one than the red of a wrong verdict."""
_CALM: Final = (90, 200, 250)
"""A region's outline while nothing fires."""
_DARK: Final = (16, 18, 22)
_SHIFT: Final = 4
_FAR: Final = 1 << 20
_LISTED: Final = 3
"""How many alarms the foot names."""


def draw_guards(image: Image, explanation: Explanation) -> None:
    """Draw an explanation's regions and alarms on ``image``, a picture of our own of the frame's size."""
    firing = explanation.firing
    draw_regions(image, explanation.regions, ALARM if firing else _CALM)
    if firing:
        _frame(image)
        draw_footer(image, alarm_lines(firing))


def alarm_lines(firing: Sequence[GuardState]) -> list[TextLine]:
    """Say which guards fire, since when, and why, the first ones with their reasons."""
    lines = []
    for state in firing[:_LISTED]:
        lines.append(TextLine(f"! {state.name} · {state.seconds:.1f} s", RED, weight=700))
        lines.append(TextLine(state.message, WHITE, scale=0.75))
    if len(firing) > _LISTED:
        lines.append(TextLine(f"and {len(firing) - _LISTED} more", RED, scale=0.75))
    return lines


def draw_regions(image: Image, regions: Sequence[Region], colour: tuple[int, int, int]) -> None:
    """Outline regions, each with its name; a dark line beside keeps them seen on any ground."""
    if not regions:
        return
    size = text_size(image.shape[0], image.shape[1])
    stroke = max(1, size // 12)
    for region in regions:
        # Beyond this nothing is seen, and numbers of a stranger's would not fit.
        corners = np.rint(np.clip(region.polygon, -_FAR, _FAR) * (1 << _SHIFT)).astype(np.int32)
        cv2.polylines(image, [corners], True, _DARK, stroke + 2, cv2.LINE_AA, _SHIFT)
        cv2.polylines(image, [corners], True, colour, stroke, cv2.LINE_AA, _SHIFT)
        _name(image, region, size, colour)


def _name(image: Image, region: Region, size: int, colour: tuple[int, int, int]) -> None:
    """Write a region's name inside its upper right end, where the legend is not."""
    height, width = image.shape[:2]
    right = min(max(x for x, _ in region.polygon), width)
    top = max(min(y for _, y in region.polygon), 0.0)
    tile = text_tile(region.name, max(9, round(0.75 * size)), 500, max(width // 3, 1))
    margin = max(1, size // 6)
    plate = LegendLayout(((tile, colour),), margin)
    left, row = round(right) - plate.width - margin, round(top) + margin
    if tile.shape[1] and left >= 0 and row + plate.height <= height:
        plate.fill(image[row : row + plate.height, left : left + plate.width])


def _frame(image: Image) -> None:
    height, width = image.shape[:2]
    stroke = max(2, text_size(height, width) // 4)
    image[:stroke] = image[-stroke:] = ALARM
    image[:, :stroke] = image[:, -stroke:] = ALARM


def draw_footer(image: Image, lines: Sequence[TextLine]) -> None:
    """Draw lines on a dark plate in the lower left corner; it takes a third of the height at most."""
    height, width = image.shape[:2]
    size = text_size(height, width)
    margin = max(2, size // 2)
    room = max(width - 4 * margin, 1)
    tiles, used = [], 2 * margin
    for line in lines:
        tile = text_tile(line.text, max(9, round(size * line.scale)), line.weight, room)
        used += tile.shape[0]
        if used > height // 3:
            break
        if tile.shape[1]:
            tiles.append((tile, line.colour))
    if not tiles:
        return
    plate = LegendLayout(tuple(tiles), margin)
    top, left = height - margin - plate.height, margin
    plate.fill(image[top : top + plate.height, left : left + plate.width])
