"""Draws a camera's input area: the outline of the region of interest, and hatched masks.

Other pixels do not change. The drawing depends only on the frame's size and the area, so its effect on pixels is
computed once, cached, and applied to each frame.
"""

from __future__ import annotations

import functools
from typing import Final, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from overlays.render.effects import patch_of
from overlays.render.guards import draw_regions, scaled_corners
from overlays.render.text import text_size
from pipeline.frames import Image, Region
from pipeline.image_patch import ImagePatch
from pipeline.input_area import InputArea

ROI: Final = (255, 214, 10)
"""RGB colour of the region's outline."""
MASK: Final = (199, 199, 204)
_DARK: Final = (16, 18, 22)


class _Effect(NamedTuple):
    """The effect of a drawing: each listed pixel becomes ``pixel * keep / 255 + add``."""

    pixels: npt.NDArray[np.intp]
    """Indices of the changed pixels, counted row by row."""
    keep: npt.NDArray[np.uint16]
    """Factors in 1/255, (pixels, 1), 0 to 255."""
    add: npt.NDArray[np.uint16]
    """RGB values, (pixels, 3), 0 to 255."""


def draw_input_area(image: Image, area: InputArea) -> None:
    """Draw the input area onto ``image``, a writable, contiguous copy of the frame's size."""
    effect = _effect(area, image.shape[0], image.shape[1])
    if effect is None:
        return
    flat = image.reshape(-1, 3)
    flat[effect.pixels] = flat[effect.pixels] * effect.keep // 255 + effect.add


@functools.lru_cache(maxsize=128)
def input_area_patch(area: InputArea, height: int, width: int) -> ImagePatch | None:
    """Return the drawing of ``draw_input_area`` as a patch; None if nothing is inside the frame."""
    return patch_of(lambda image: _draw(image, area), height, width)


@functools.lru_cache(maxsize=64)
def _effect(area: InputArea, height: int, width: int) -> _Effect | None:
    patch = patch_of(lambda image: _draw(image, area), height, width)
    if patch is None:
        return None
    rows, columns = np.nonzero(patch.tile[..., 3] < 255)
    values = patch.tile[rows, columns].astype(np.uint16)
    return _Effect((rows + patch.top) * width + columns + patch.left, values[:, 3:], values[:, :3])


def _draw(image: Image, area: InputArea) -> None:
    _hatch(image, area)
    draw_regions(image, [Region("mask", mask) for mask in area.masks], MASK)
    if area.roi:
        draw_regions(image, [Region("roi", area.roi)], ROI)


def _hatch(image: Image, area: InputArea) -> None:
    """Draw diagonal lines inside the masks."""
    if not area.masks:
        return
    height, width = image.shape[:2]
    size = text_size(height, width)
    stroke, step = max(1, size // 16), max(6, size)
    hatched = image.copy()
    for x in range(-height, width, step):
        for colour, thickness in ((_DARK, stroke + 1), (MASK, stroke)):
            cv2.line(hatched, (x, height), (x + height, 0), colour, thickness, cv2.LINE_AA)
    inside = np.zeros((height, width), np.uint8)
    for mask in area.masks:
        corners, shift = scaled_corners(mask)
        cv2.fillPoly(inside, [corners], 255, cv2.LINE_8, shift)
    cv2.copyTo(hatched, inside, image)
