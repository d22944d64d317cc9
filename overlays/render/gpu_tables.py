"""Tables for drawing on another device: colours and legend as arrays.

Pure. A pixel becomes ``pixel * keep / 255 + add``, for the heat map as for the legend.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from overlays.render.colormaps import palette
from overlays.render.text import TextLine, legend_plate
from pipeline.frames import ImagePatch


def heat_lut(colormap: str, opacity: float) -> npt.NDArray[np.uint8]:
    """Return the effect of each heat level on a pixel, uint8 (256, 4): RGB to add, and the factor to keep, in 1/255.

    Raises:
        ConfigError: the colour map is unknown, or the opacity is outside [0, 1].
    """
    colours = palette(colormap, opacity)
    return np.concatenate([colours.add[:, 0], colours.keep[:, None]], axis=1)


def legend_patch(height: int, width: int, lines: Sequence[TextLine]) -> ImagePatch | None:
    """Return the legend of an image of this size as a patch; None if no line fits.

    Drawing on black gives what the legend adds; drawing on white, minus that, gives the factor it keeps.
    """
    plate = legend_plate(height, width, lines)
    if plate is None:
        return None
    black = np.zeros((plate.height, plate.width, 3), np.uint8)
    white = np.full_like(black, 255)
    plate.fill(black)
    plate.fill(white)
    keep = np.clip(white.astype(np.int16) - black, 0, 255).max(axis=2, keepdims=True).astype(np.uint8)
    rows, columns = max(height - plate.margin, 0), max(width - plate.margin, 0)
    return ImagePatch(plate.margin, plate.margin, np.concatenate([black, keep], axis=2)[:rows, :columns])
