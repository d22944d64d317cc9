"""Draws heat maps: geometry of the grid on the image, and blending.

Functions do not modify their arguments, except the ``draw_`` functions. They cache only tables that depend on sizes.

Geometry. The grid of h x w cells covers a rectangle of H x W pixels of the frame, the *region*: cell (r, c) covers the
pixels [left + c * W / w, left + (c + 1) * W / w) by [top + r * H / h, top + (r + 1) * H / h). Between cell centres the
heat is interpolated bilinearly; beyond the outermost centres it is constant. This equals ``cv2.INTER_LINEAR``, but also
supports regions whose edges lie between pixels or outside the frame. A pixel has heat if its centre lies in the region.
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
"""Number of rows processed together; at 1280 columns, their buffers fit the second-level cache."""

_HALF_UP: Final = 2.0**-10
"""Added to levels before rounding, so that levels of n + 0.5 become n + 1 on every device, despite rounding errors."""

Levels = npt.NDArray[np.uint8]
"""Heat in 256 levels, uint8, (rows, columns) of frame pixels."""


class Span(NamedTuple):
    """The pixels that the region covers along one axis, and the two nearest cells of each pixel."""

    start: int
    """The first pixel."""
    stop: int
    """One past the last pixel; equal to ``start`` if the region lies outside the frame."""
    lower: npt.NDArray[np.intp]
    """For each pixel, the index of the last cell whose centre is not after it, in [0, cells - 1]."""
    upper: npt.NDArray[np.intp]
    """For each pixel, the index of the next cell: ``lower + 1``, or ``lower`` for the last cell."""
    fraction: npt.NDArray[np.float32]
    """For each pixel, its position between the centres of ``lower`` and ``upper``, in [0, 1)."""


@functools.lru_cache(maxsize=64)
def span(near: float, far: float, cells: int, pixels: int) -> Span:
    """Return the span of a region along one axis.

    Args:
        near: the region's left or top edge in pixels; may be negative.
        far: the region's right or bottom edge in pixels; may be outside the frame.
        cells: number of cells along the axis.
        pixels: number of the frame's pixels along the axis.
    """
    start = min(max(math.ceil(near - 0.5), 0), pixels)
    stop = max(min(math.ceil(far - 0.5), pixels), start)
    centres = np.arange(start, stop, dtype=np.float64) + 0.5
    position = np.clip((centres - near) * (cells / max(far - near, 1e-9)) - 0.5, 0.0, cells - 1.0)
    lower = np.floor(position).astype(np.intp)
    upper = np.minimum(lower + 1, cells - 1)
    return Span(start, stop, lower, upper, (position - lower).astype(np.float32))


class Band(NamedTuple):
    """Consecutive pixel rows between the centres of the same two rows of cells."""

    pixels: slice
    """The pixel rows, relative to the strip."""
    cells: slice
    """The one or two rows of cells that determine these pixels."""
    weights: npt.NDArray[np.float32]
    """Weight of each cell row in each pixel row, float32, (pixel rows, cell rows)."""


class Strip(NamedTuple):
    """Pixel rows that are drawn together; their buffers fit the processor's cache."""

    start: int
    """The first row, relative to the region's first row in the frame."""
    rows: int
    """Number of rows."""
    bands: tuple[Band, ...]
    """The bands of the strip."""


@functools.lru_cache(maxsize=64)
def _strips(near: float, far: float, cells: int, pixels: int) -> tuple[Strip, ...]:
    """Return the region's rows, divided into strips of at most ``_STRIP_ROWS``; arguments as in ``span``."""
    _, _, lower, upper, fraction = span(near, far, cells, pixels)
    strips = []
    for start in range(0, len(lower), _STRIP_ROWS):
        low = lower[start : start + _STRIP_ROWS]
        cuts = [0, *(np.flatnonzero(np.diff(low)) + 1).tolist(), len(low)]
        bands = []
        for first, last in itertools.pairwise(cuts):
            upper_weight = fraction[start + first : start + last]
            weights = np.stack([1.0 - upper_weight, upper_weight], axis=1)
            cell_rows = slice(int(low[first]), int(upper[start + first]) + 1)
            weights = np.ascontiguousarray(weights[:, : cell_rows.stop - cell_rows.start])
            bands.append(Band(slice(first, last), cell_rows, weights))
        strips.append(Strip(start, len(low), tuple(bands)))
    return tuple(strips)


def _level_strips(heat: Heat, region: Box, height: int, width: int) -> Iterator[tuple[int, int, Levels]]:
    """Yield (top, left, levels) of each strip; the next strip overwrites ``levels``."""
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
        cv2.convertScaleAbs(spread[: strip.rows], dst=levels[: strip.rows], beta=_HALF_UP)
        yield first_row + strip.start, across.start, levels[: strip.rows]


def heat_levels(heat: Heat, region: Box, height: int, width: int) -> Levels:
    """Return the grid interpolated over the frame: ``round(255 * heat)`` of each pixel, 0 outside the region.

    Args:
        heat: float32 in [0, 1], (h, w).
        region: the rectangle of the frame that the grid covers, in pixels.
        height: the frame's height in pixels.
        width: the frame's width in pixels.

    Returns:
        uint8, (height, width).
    """
    result = np.zeros((height, width), np.uint8)
    for top, left, levels in _level_strips(heat, region, height, width):
        result[top : top + levels.shape[0], left : left + levels.shape[1]] = levels
    return result


def paint_heat(image: Image, heat: Heat, region: Box, palette: Palette) -> Image:
    """Return a new image with the heat map blended over it; pixels of level 0 are unchanged.

    Args:
        image: uint8 RGB, (height, width, 3); not modified.
        heat: float32 in [0, 1], (h, w).
        region: the rectangle of the frame that the grid covers, in pixels.
        palette: effect of each level on a pixel.
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
    """Return the bounding box of the connected cells around the peak with at least ``threshold`` of its heat.

    The box is in frame pixels; None if the heat is zero everywhere. Cells are connected if they share an edge.
    """
    peak = float(heat.max())
    if peak <= 0.0:
        return None
    rows, columns = heat.shape
    hot = (heat >= threshold * peak).astype(np.uint8)
    _, components, stats, _ = cv2.connectedComponentsWithStats(hot, connectivity=4)
    component = components[np.unravel_index(int(heat.argmax()), heat.shape)]
    left, top, width, height = (int(v) for v in stats[component][:4])
    cell_width, cell_height = region.width / columns, region.height / rows
    return Box(
        region.left + left * cell_width,
        region.top + top * cell_height,
        region.left + (left + width) * cell_width,
        region.top + (top + height) * cell_height,
    )


def draw_box(image: Image, box: Box, colour: tuple[int, int, int], thickness: int) -> None:
    """Draw the outline of ``box`` onto ``image`` (a writable copy), clipped to the image."""
    height, width = image.shape[:2]
    left, top = max(round(box.left), 0), max(round(box.top), 0)
    right, bottom = min(round(box.right), width) - 1, min(round(box.bottom), height) - 1
    if left <= right and top <= bottom:
        cv2.rectangle(image, (left, top), (right, bottom), colour, thickness)


def draw_contour(image: Image, heat: Heat, region: Box, colour: tuple[int, int, int], thickness: int) -> None:
    """Draw the contour at half of the heat's peak onto ``image``, a writable copy."""
    levels = heat_levels(heat, region, image.shape[0], image.shape[1])
    peak = int(levels.max())
    if peak == 0:
        return
    hot = (levels >= (peak + 1) // 2).astype(np.uint8)
    lines, _ = cv2.findContours(hot, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(image, lines, -1, colour, thickness, cv2.LINE_AA)
