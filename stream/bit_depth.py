"""How many bits of a 16-bit number a picture uses: cameras of 10, 12 and 14 bits save theirs in files of 16."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

DEPTHS: Final = (8, 10, 12, 14, 16)


def value_bits(values: npt.NDArray[np.uint16]) -> int:
    """Return the smallest usual depth that holds the largest of ``values`` (uint16): 8, 10, 12, 14 or 16."""
    largest = int(values.max(initial=0))
    return next(bits for bits in DEPTHS if largest < 1 << bits)


def eight_bits(values: npt.NDArray[np.uint16], bits: int) -> npt.NDArray[np.uint8]:
    """Return ``values`` (uint16) of a depth of ``bits`` as uint8; what lies above the depth becomes 255."""
    found: npt.NDArray[np.uint8] = np.minimum(values >> (bits - 8), 255).astype(np.uint8)
    return found
