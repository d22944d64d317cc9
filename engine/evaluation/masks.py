"""Pointing games on segmentation masks, in frame pixels.

A mask is a bool array (height, width) of the frame's size. Pixel (row, column) is the square from (column, row) to
(column + 1, row + 1), as in boxes.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from engine.evaluation.metrics import Map
from pipeline.frames import Box

Mask = npt.NDArray[np.bool_]


def distance_to(mask: Mask, peak: tuple[float, float]) -> float:
    """Return the distance in pixels from a point (x, y) to the nearest mask pixel; inf for an empty mask."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return math.inf
    x, y = peak
    across = np.maximum(np.maximum(columns - x, x - (columns + 1.0)), 0.0)
    down = np.maximum(np.maximum(rows - y, y - (rows + 1.0)), 0.0)
    return float(np.sqrt((across**2 + down**2).min()))


def lies_within(mask: Mask, point: tuple[float, float], pixels: float) -> bool:
    """Return whether a point (x, y) is at most ``pixels`` from the mask; reads only nearby pixels."""
    x, y = point
    left, top = max(0, math.floor(x - pixels) - 1), max(0, math.floor(y - pixels) - 1)
    near = mask[top : max(0, math.ceil(y + pixels) + 1), left : max(0, math.ceil(x + pixels) + 1)]
    return distance_to(near, (x - left, y - top)) <= pixels


def covered(mask: Mask, region: Box, size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Return the fraction of each input pixel that the mask covers, (rows, columns) in [0, 1].

    Args:
        mask: in frame pixels.
        region: the rectangle of the frame that the input shows; parts outside the frame are not covered.
        size: rows and columns of the input.
    """
    down = _overlaps(region.top, region.height / size[0], size[0], mask.shape[0])
    across = _overlaps(region.left, region.width / size[1], size[1], mask.shape[1])
    return down @ mask.astype(np.float64) @ across.T


def _overlaps(start: float, step: float, count: int, length: int) -> npt.NDArray[np.float64]:
    """Return the overlap of each of ``count`` equal intervals with each of ``length`` unit pixels, as fractions."""
    first = start + step * np.arange(count)[:, None]
    pixel = np.arange(length)[None, :]
    common = np.minimum(first + step, pixel + 1.0) - np.maximum(first, pixel)
    return np.asarray(np.clip(common, 0.0, None) / step)


def energy_on(heat: Map, cover: npt.NDArray[np.float64]) -> float:
    """Return the fraction of the map's sum that lies on a mask, weighted by coverage; 0 for a map of zeros.

    The energy-based pointing game. Wang et al., *Score-CAM*, arXiv:1910.01279, section 4.3, with a mask instead of the
    box.
    """
    values = np.asarray(heat, np.float64)
    total = float(values.sum())
    return float((values * cover).sum()) / total if total > 0.0 else 0.0


def box_of(mask: Mask) -> Box:
    """Return the bounding box of a mask."""
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    return Box(float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
