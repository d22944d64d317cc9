"""The effect of a drawing on any image: each pixel becomes ``pixel * keep / 255 + add``. Pure."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.frames import Image, ImagePatch


def patch_of(draw: Callable[[Image], None], height: int, width: int) -> ImagePatch | None:
    """Return what a function draws into an image of this size as one patch; None if nothing is inside the image.

    Drawing on black gives what they add; drawing on white, minus that, gives the factor they keep.
    """
    black = np.zeros((height, width, 3), np.uint8)
    white = np.full_like(black, 255)
    for canvas in (black, white):
        draw(canvas)
    # OpenCV rounds a line's pixels several times: the mean of both canvases and of all colours is the nearest effect.
    both = black.astype(np.float32), white.astype(np.float32)
    keep = np.rint(np.clip(both[1] - both[0], 0.0, 255.0).mean(axis=2)).astype(np.uint8)
    add = np.rint(np.clip((both[0] + both[1] - keep[..., None]) / 2.0, 0.0, 255.0 - keep[..., None])).astype(np.uint8)
    rows, columns = np.flatnonzero((keep < 255).any(axis=1)), np.flatnonzero((keep < 255).any(axis=0))
    if not len(rows):
        return None
    area = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    tile = np.ascontiguousarray(np.concatenate([add[area], keep[area][..., None]], axis=2))
    return ImagePatch(int(rows[0]), int(columns[0]), tile, reusable=True)
