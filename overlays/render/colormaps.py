"""Colour maps of OpenCV, and palettes made from them.

OpenCV is imported only when a palette is made, so that listing the names is fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError, did_you_mean

COLORMAPS: Final = MappingProxyType(
    {
        "inferno": "COLORMAP_INFERNO",
        "magma": "COLORMAP_MAGMA",
        "plasma": "COLORMAP_PLASMA",
        "viridis": "COLORMAP_VIRIDIS",
        "cividis": "COLORMAP_CIVIDIS",
        "turbo": "COLORMAP_TURBO",
        "hot": "COLORMAP_HOT",
        "jet": "COLORMAP_JET",
    }
)
"""OpenCV constant by name. The first five are perceptually uniform; ``cividis`` suits colour-blind viewers, too."""


@dataclass(frozen=True, slots=True, eq=False)
class Palette:
    """Effect of each of the 256 heat levels on a pixel: ``pixel * keep / 255 + add``, per colour channel.

    The opacity of level n is ``alpha(n) = round(opacity * n) / 255``, linear in the level. Level 0 does not change
    the pixel.
    """

    colours: npt.NDArray[np.uint8]
    """uint8 RGB, (256, 3): the colour of each level, for legends and contours."""
    keep: npt.NDArray[np.uint8]
    """uint8, (256,): ``255 * (1 - alpha)``."""
    add: npt.NDArray[np.uint8]
    """uint8 RGB, (256, 1, 3): ``alpha * colour``, rounded."""


def palette(name: str, opacity: float) -> Palette:
    """Return the palette of a colour map at an opacity.

    Args:
        name: one of ``COLORMAPS``.
        opacity: opacity of the hottest level, in [0, 1].

    Raises:
        ConfigError: the colour map is unknown, or the opacity is outside [0, 1].
    """
    if name not in COLORMAPS:
        raise ConfigError(
            f"colormap: {name!r} is unknown; use one of {', '.join(COLORMAPS)}.{did_you_mean(name, COLORMAPS)}"
        )
    if not 0.0 <= opacity <= 1.0:
        raise ConfigError(f"opacity: {opacity} is outside [0, 1]; 0 hides the heat map, 0.6 is the default")
    import cv2

    levels = np.arange(256, dtype=np.uint8).reshape(256, 1)
    colours = cv2.applyColorMap(levels, getattr(cv2, COLORMAPS[name]))[:, 0, ::-1]
    alpha = np.rint(opacity * np.arange(256)).astype(np.int64)
    add = np.rint(alpha[:, None] * colours.astype(np.float64) / 255.0).astype(np.uint8)
    return Palette(
        colours=np.ascontiguousarray(colours),
        keep=(255 - alpha).astype(np.uint8),
        add=np.ascontiguousarray(add.reshape(256, 1, 3)),
    )
