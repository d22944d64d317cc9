"""Drawings that cover a part of an image, such as text and regions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class ImagePatch:
    """A drawing to blend into a part of an image: each pixel becomes ``pixel * keep / 255 + add``."""

    top: int
    """First row of the covered part of the image."""
    left: int
    """First column of the covered part of the image."""
    tile: npt.NDArray[np.uint8]
    """uint8, (rows, columns, 4): red, green and blue to add, and ``keep``, 0 to 255."""
    reusable: bool = False
    """True if later frames use the same object, so that a copy of its tile may be kept on a device."""
