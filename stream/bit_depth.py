"""The bit depth of 16-bit images: cameras store values of 10, 12 or 14 bits in 16-bit files."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

DEPTHS: Final = (8, 10, 12, 14, 16)


def value_bits(values: npt.NDArray[np.uint16]) -> int:
    """Return the smallest depth in ``DEPTHS``, in bits, that can store all ``values``."""
    largest = int(values.max(initial=0))
    return next(bits for bits in DEPTHS if largest < 1 << bits)


def eight_bits(values: npt.NDArray[np.uint16], bits: int) -> npt.NDArray[np.uint8]:
    """Scale ``values`` from a depth of ``bits`` to 8 bits; larger values become 255."""
    scaled: npt.NDArray[np.uint8] = np.minimum(values >> (bits - 8), 255).astype(np.uint8)
    return scaled
