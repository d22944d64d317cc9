"""Bit depth of 16-bit images: cameras store 10, 12 and 14 bits in 16-bit files."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

DEPTHS: Final = (8, 10, 12, 14, 16)


def value_bits(values: npt.NDArray[np.uint16]) -> int:
    """Return the smallest of ``DEPTHS``, in bits, that holds all ``values``."""
    largest = int(values.max(initial=0))
    return next(bits for bits in DEPTHS if largest < 1 << bits)


def eight_bits(values: npt.NDArray[np.uint16], bits: int) -> npt.NDArray[np.uint8]:
    """Return ``values`` of depth ``bits`` as uint8, clipped to 255."""
    scaled: npt.NDArray[np.uint8] = np.minimum(values >> (bits - 8), 255).astype(np.uint8)
    return scaled
