"""Heat on a picture: where each cell of the grid falls, and what it does to the pixels there.

Pure: every function returns something new and keeps nothing but tables that depend on sizes alone. Knows nothing about
classes, cameras or time.

Geometry. The grid of h x w cells covers a rectangle of the frame, the *region*: cell (r, c) covers the pixels
[left + c * W / w, left + (c + 1) * W / w) by [top + r * H / h, top + (r + 1) * H / h). Between the centres of cells
the heat is bilinear; beyond the outermost centres it stays as it is at them. That is ``cv2.INTER_LINEAR`` with
half-pixel centres, but it also holds where the region's edges lie between pixels or outside the frame. A pixel has
heat when its centre lies in the region.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Final, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from overlays.render.colormaps import Palette
from pipeline.frames import Box, Heat, Image

_STRIP_ROWS: Final = 64
"""Rows painted at a time: at 1280 columns the scratch of a strip fits the second-level cache."""

Levels = npt.NDArray[np.uint8]
"""Heat in 256 steps, uint8, (rows, columns) of frame pixels."""


class Span(NamedTuple):
    """The pixels of one axis that the region covers, and between which cells each lies."""

    start: int
    """The first pixel."""
    stop: int
    """Just past the last pixel; ``start == stop`` where the region misses the frame."""
    lower: npt.NDArray[np.intp]
    """For each pixel the cell centre before it, in [0, cells - 1]."""
    upper: npt.NDArray[np.intp]
    """The cell centre after it: ``lower + 1``, or ``lower`` at the end."""
    fraction: npt.NDArray[np.float32]
    """How far it is on the way from ``lower`` to ``upper``, in [0, 1)."""


@functools.lru_cache(maxsize=64)
def span(near: float, far: float, cells: int, pixels: int) -> Span:
    """Map the pixels of one axis to cells.

    Args:
        near: the region's left or top edge in pixels; may be negative.
        far: its right or bottom edge; may lie past the frame.
        cells: how many cells the grid has along the axis.
        pixels: how many pixels the frame has along the axis.
    """
    start = min(max(math.ceil(near - 0.5), 0), pixels)
    stop = max(min(math.ceil(far - 0.5), pixels), start)
    centres = np.arange(start, stop, dtype=np.float64) + 0.5
    place = np.clip((centres - near) * (cells / max(far - near, 1e-9)) - 0.5, 0.0, cells - 1.0)
    lower = np.floor(place).astype(np.intp)
    upper = np.minimum(lower + 1, cells - 1)
    return Span(start, stop, lower, upper, (place - lower).astype(np.float32))


class Band(NamedTuple):
    """A run of pixel rows between the same two cell centres."""

    pixels: slice
    """The rows, counted from the first row of the strip."""
    cells: slice
    """The one or two rows of cells they lie between."""
    weights: npt.NDArray[np.float32]
    """(rows, cells): what each cell row gives to each pixel row."""


class Strip(NamedTuple):
    """Some neighbouring pixel rows that are painted together: few enough for their scratch to stay in the cache."""

    start: int
    """The first row, counted from the region's first row in the frame."""
    rows: int
    """How many."""
    bands: tuple[Band, ...]
    """What they are made of."""


@functools.lru_cache(maxsize=64)
def _strips(near: float, far: float, cells: int, pixels: int) -> tuple[Strip, ...]:
    """Cut the rows that the region covers into strips of at most ``_STRIP_ROWS``."""
    _, _, lower, upper, fraction = span(near, far, cells, pixels)
    strips = []
    for start in range(0, len(lower), _STRIP_ROWS):
        low = lower[start : start + _STRIP_ROWS]
        cuts = [0, *(np.flatnonzero(np.diff(low)) + 1).tolist(), len(low)]
        bands = []
        for first, last in itertools.pairwise(cuts):
            ahead = fraction[start + first : start + last]
            weights = np.stack([1.0 - ahead, ahead], axis=1)
            touched = slice(int(low[first]), int(upper[start + first]) + 1)
            weights = np.ascontiguousarray(weights[:, : touched.stop - touched.start])
            bands.append(Band(slice(first, last), touched, weights))
        strips.append(Strip(start, len(low), tuple(bands)))
    return tuple(strips)


def _level_strips(heat: Heat, region: Box, height: int, width: int) -> Iterator[tuple[int, int, Levels]]:
    """Give (top, left, levels) of each strip; ``levels`` is overwritten by the next."""
    across = span(region.left, region.right, heat.shape[1], width)
    columns = across.stop - across.start
    first_row = span(region.top, region.bottom, heat.shape[0], height).start
    if columns == 0:
        return
    scaled = np.clip(heat, 0.0, 1.0) * np.float32(255.0)
    wide = scaled[:, across.lower] * (1.0 - across.fraction) + scaled[:, across.upper] * across.fraction
    spread = np.empty((_STRIP_ROWS, columns), np.float32)
    levels = np.empty((_STRIP_ROWS, columns), np.uint8)
    for strip in _strips(region.top, region.bottom, heat.shape[0], height):
        for pixels, cells, weights in strip.bands:
            np.matmul(weights, wide[cells], out=spread[pixels])
        cv2.convertScaleAbs(spread[: strip.rows], dst=levels[: strip.rows])
        yield first_row + strip.start, across.start, levels[: strip.rows]


def heat_levels(heat: Heat, region: Box, height: int, width: int) -> Levels:
    """Spread the grid over the frame: ``round(255 * heat)`` of each pixel, 0 outside the region.

    Args:
        heat: float32 in [0, 1], (h, w).
        region: the rectangle of the frame that the grid covers, in pixels.
        height: the frame's height in pixels.
        width: the frame's width in pixels.

    Returns:
        uint8, (height, width).
    """
    spread = np.zeros((height, width), np.uint8)
    for top, left, levels in _level_strips(heat, region, height, width):
        spread[top : top + levels.shape[0], left : left + levels.shape[1]] = levels
    return spread


def paint_heat(image: Image, heat: Heat, region: Box, palette: Palette) -> Image:
    """Return a new picture with the heat laid over it; pixels of level 0 are bit-identical to the given ones.

    Args:
        image: uint8 RGB, (height, width, 3); left as it is.
        heat: float32 in [0, 1], (h, w).
        region: the rectangle of the frame that the grid covers, in pixels.
        palette: what each level does to a pixel.
    """
    painted = image.copy()
    keep = add = np.empty((0, 0, 3), np.uint8)
    for top, left, levels in _level_strips(heat, region, image.shape[0], image.shape[1]):
        rows, columns = levels.shape
        if keep.shape[:2] != levels.shape:
            keep, add = np.empty((2, rows, columns, 3), np.uint8)
        part = painted[top : top + rows, left : left + columns]
        cv2.cvtColor(cv2.LUT(levels, palette.keep), cv2.COLOR_GRAY2RGB, dst=keep)
        cv2.applyColorMap(levels, palette.add, dst=add)
        cv2.multiply(part, keep, dst=keep, scale=1.0 / 255.0)
        np.add(keep, add, out=part)
    return painted


def hottest_box(heat: Heat, region: Box, threshold: float = 0.5) -> Box | None:
    """Return the cells around the peak that are at least ``threshold`` times as hot, as a box in frame pixels.

    None when the heat is all zero. Cells belong together when they share an edge.
    """
    peak = float(heat.max())
    if peak <= 0.0:
        return None
    rows, columns = heat.shape
    hot = (heat >= threshold * peak).astype(np.uint8)
    _, names, stats, _ = cv2.connectedComponentsWithStats(hot, connectivity=4)
    left, top, width, height = (int(v) for v in stats[names[np.unravel_index(int(heat.argmax()), heat.shape)]][:4])
    wide, high = region.width / columns, region.height / rows
    return Box(
        region.left + left * wide,
        region.top + top * high,
        region.left + (left + width) * wide,
        region.top + (top + height) * high,
    )


def draw_box(image: Image, box: Box, colour: tuple[int, int, int], thickness: int) -> None:
    """Outline ``box`` on ``image`` (a picture of our own), cut off at the picture's border."""
    height, width = image.shape[:2]
    left, top = max(round(box.left), 0), max(round(box.top), 0)
    right, bottom = min(round(box.right), width) - 1, min(round(box.bottom), height) - 1
    if left <= right and top <= bottom:
        cv2.rectangle(image, (left, top), (right, bottom), colour, thickness)


def draw_contour(image: Image, heat: Heat, region: Box, colour: tuple[int, int, int], thickness: int) -> None:
    """Draw on ``image`` (a picture of our own) the line along which the heat is half its peak."""
    levels = heat_levels(heat, region, image.shape[0], image.shape[1])
    peak = int(levels.max())
    if peak == 0:
        return
    hot = (levels >= (peak + 1) // 2).astype(np.uint8)
    lines, _ = cv2.findContours(hot, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(image, lines, -1, colour, thickness, cv2.LINE_AA)
