"""Converts a drawing to its effect on any image: each pixel becomes ``pixel * keep / 255 + add``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.frames import Image
from pipeline.image_patch import ImagePatch


def patch_of(draw: Callable[[Image], None], height: int, width: int) -> ImagePatch | None:
    """Return the effect of a drawing function as one patch; None if it draws nothing inside the image.

    The function draws on a black and on a white image. Black yields ``add``; white minus black yields ``keep``.

    Args:
        draw: draws onto an image, uint8 RGB, (height, width, 3).
        height: height of the image in pixels.
        width: width of the image in pixels.
    """
    black = np.zeros((height, width, 3), np.uint8)
    white = np.full_like(black, 255)
    for canvas in (black, white):
        draw(canvas)
    # OpenCV rounds antialiased pixels several times; the mean over both images and all channels reduces the error.
    both = black.astype(np.float32), white.astype(np.float32)
    keep = np.rint(np.clip(both[1] - both[0], 0.0, 255.0).mean(axis=2)).astype(np.uint8)
    add = np.rint(np.clip((both[0] + both[1] - keep[..., None]) / 2.0, 0.0, 255.0 - keep[..., None])).astype(np.uint8)
    rows, columns = np.flatnonzero((keep < 255).any(axis=1)), np.flatnonzero((keep < 255).any(axis=0))
    if not len(rows):
        return None
    area = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    tile = np.ascontiguousarray(np.concatenate([add[area], keep[area][..., None]], axis=2))
    return ImagePatch(int(rows[0]), int(columns[0]), tile, reusable=True)
