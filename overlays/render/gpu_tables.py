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
    """Return the legend of an image of this size as a patch; None if no line fits."""
    plate = legend_plate(height, width, lines)
    if plate is None:
        return None
    rows, columns = max(height - plate.margin, 0), max(width - plate.margin, 0)
    return ImagePatch(plate.margin, plate.margin, plate.effect()[:rows, :columns])
