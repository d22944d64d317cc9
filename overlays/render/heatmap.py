"""Drawing of heat maps: geometry of the grid on the image, and blending.

Pure: every function returns new arrays, and caches only tables that depend on sizes.

Geometry. The grid of h x w cells covers a rectangle of the frame, the *region*: cell (r, c) covers the pixels
[left + c * W / w, left + (c + 1) * W / w) by [top + r * H / h, top + (r + 1) * H / h). Between the centres of cells
the heat is bilinear; beyond the outermost centres it is constant. That is ``cv2.INTER_LINEAR`` with half-pixel
centres, but it also holds if the region's edges lie between pixels or outside the frame. A pixel has heat if its
centre lies in the region.
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
"""Rows processed at a time: at 1280 columns the buffers of a strip fit the second-level cache."""

_HALF_UP: Final = 2.0**-10
"""Added to levels before they are rounded: levels of n + 0.5, which an even heat map has, become n + 1 on every device,
however its sums are rounded."""

Levels = npt.NDArray[np.uint8]
"""Heat in 256 levels, uint8, (rows, columns) of frame pixels."""


class Span(NamedTuple):
    """The pixels that the region covers along one axis, and the cells around each pixel."""

    start: int
    """The first pixel."""
    stop: int
    """One past the last pixel; ``start == stop`` if the region misses the frame."""
    lower: npt.NDArray[np.intp]
    """For each pixel, the index of the cell centre before it, in [0, cells - 1]."""
    upper: npt.NDArray[np.intp]
    """For each pixel, the index of the cell centre after it: ``lower + 1``, or ``lower`` at the end."""
    fraction: npt.NDArray[np.float32]
    """Position between ``lower`` and ``upper``, in [0, 1)."""


@functools.lru_cache(maxsize=64)
def span(near: float, far: float, cells: int, pixels: int) -> Span:
    """Map the pixels of one axis to cells.

    Args:
        near: the region's left or top edge in pixels; may be negative.
        far: its right or bottom edge; may be outside the frame.
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
    """Consecutive pixel rows between the same two rows of cell centres."""

    pixels: slice
    """The pixel rows, relative to the strip."""
    cells: slice
    """The one or two rows of cells."""
    weights: npt.NDArray[np.float32]
    """(rows, cells): weight of each cell row in each pixel row."""


class Strip(NamedTuple):
    """Pixel rows that are drawn together, few enough for their buffers to stay in the cache."""

    start: int
    """The first row, relative to the region's first row in the frame."""
    rows: int
    """Number of rows."""
    bands: tuple[Band, ...]
    """The bands of the strip."""


@functools.lru_cache(maxsize=64)
def _strips(near: float, far: float, cells: int, pixels: int) -> tuple[Strip, ...]:
    """Divide the rows that the region covers into strips of at most ``_STRIP_ROWS``."""
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
    """Yield (top, left, levels) of each strip; ``levels`` is overwritten by the next one."""
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
    """Interpolate the grid over the frame: ``round(255 * heat)`` of each pixel, 0 outside the region.

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
    """Return the bounding box, in frame pixels, of the cells around the peak with at least ``threshold`` of its heat.

    Cells are connected if they share an edge. None if the heat is zero everywhere.
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
    """Draw onto ``image`` (a writable copy) the contour at half of the heat's peak."""
    levels = heat_levels(heat, region, image.shape[0], image.shape[1])
    peak = int(levels.max())
    if peak == 0:
        return
    hot = (levels >= (peak + 1) // 2).astype(np.uint8)
    lines, _ = cv2.findContours(hot, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(image, lines, -1, colour, thickness, cv2.LINE_AA)
