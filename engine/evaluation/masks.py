"""Where an object lies, pixel by pixel: the pointing games on masks, in the picture's own pixels.

A mask is (height, width) bool like its picture. Pixel (row, column) is the square from (column, row) to
(column + 1, row + 1), as for boxes. Pure.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from engine.evaluation.metrics import Map
from pipeline.frames import Box

Mask = npt.NDArray[np.bool_]


def distance_to(mask: Mask, peak: tuple[float, float]) -> float:
    """Return how far, in pixels, a point (x, y) lies from the nearest pixel of the mask; 0 in one, inf without any."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return math.inf
    x, y = peak
    across = np.maximum(np.maximum(columns - x, x - (columns + 1.0)), 0.0)
    down = np.maximum(np.maximum(rows - y, y - (rows + 1.0)), 0.0)
    return float(np.sqrt((across**2 + down**2).min()))


def lies_within(mask: Mask, point: tuple[float, float], pixels: float) -> bool:
    """Say whether a point (x, y) lies in a pixel of the mask, or so near to one; looks at its surroundings alone."""
    x, y = point
    left, top = max(0, math.floor(x - pixels) - 1), max(0, math.floor(y - pixels) - 1)
    near = mask[top : max(0, math.ceil(y + pixels) + 1), left : max(0, math.ceil(x + pixels) + 1)]
    return distance_to(near, (x - left, y - top)) <= pixels


def covered(mask: Mask, region: Box, size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Return which share of each pixel of the network's input the mask covers, (rows, columns) in [0, 1].

    Args:
        mask: in frame pixels.
        region: the rectangle of the frame that the input covers; where it reaches beyond the frame nothing lies.
        size: rows and columns of the input.
    """
    down = _overlaps(region.top, region.height / size[0], size[0], mask.shape[0])
    across = _overlaps(region.left, region.width / size[1], size[1], mask.shape[1])
    return down @ mask.astype(np.float64) @ across.T


def _overlaps(start: float, step: float, count: int, length: int) -> npt.NDArray[np.float64]:
    """Return which share of each of ``count`` stretches lies in each of ``length`` unit pixels."""
    first = start + step * np.arange(count)[:, None]
    pixel = np.arange(length)[None, :]
    common = np.minimum(first + step, pixel + 1.0) - np.maximum(first, pixel)
    return np.asarray(np.clip(common, 0.0, None) / step)


def energy_on(heat: Map, cover: npt.NDArray[np.float64]) -> float:
    """Return the share of the map's sum that lies on a mask, pixels half covered counting half; 0 for a map of zeros.

    The energy-based pointing game. Wang et al., *Score-CAM*, arXiv:1910.01279, section 4.3, with a mask for the box.
    """
    values = np.asarray(heat, np.float64)
    total = float(values.sum())
    return float((values * cover).sum()) / total if total > 0.0 else 0.0


def box_of(mask: Mask) -> Box:
    """Return the rectangle around everything the mask marks."""
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    return Box(float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
