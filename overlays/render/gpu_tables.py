"""Colours, legend and guards as arrays, for drawing on a GPU.

All arrays describe effects on pixels: a pixel becomes ``pixel * keep / 255 + add``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from overlays.render.colormaps import palette
from overlays.render.effects import patch_of
from overlays.render.guards import ALARM, CALM, alarm_lines, draw_regions, footer_plate, frame_stroke
from overlays.render.text import TextLine, legend_plate
from pipeline.frames import Explanation, Region
from pipeline.image_patch import ImagePatch


def heat_lut(colormap: str, opacity: float) -> npt.NDArray[np.uint8]:
    """Return the effect of each heat level on a pixel, uint8 (256, 4): ``add`` (RGB) and ``keep``.

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


def guard_patches(explanation: Explanation) -> list[ImagePatch]:
    """Return the drawing of ``draw_guards`` as patches, in its order: regions, alarm frame, reasons."""
    firing, height, width = explanation.firing, explanation.frame.height, explanation.frame.width
    outlines = _region_patch(explanation.regions, ALARM if firing else CALM, height, width)
    patches = [] if outlines is None else [outlines]
    if firing:
        patches += _frame_patches(height, width)
        plate = footer_plate(height, width, alarm_lines(firing))
        if plate is not None:
            patches.append(ImagePatch(height - plate.margin - plate.height, plate.margin, plate.effect()))
    return patches


@functools.lru_cache(maxsize=128)
def _region_patch(
    regions: tuple[Region, ...], colour: tuple[int, int, int], height: int, width: int
) -> ImagePatch | None:
    """Return the outlines and names of regions as one patch; None if nothing is inside the image."""
    return patch_of(lambda image: draw_regions(image, regions, colour), height, width)


@functools.lru_cache(maxsize=16)
def _frame_patches(height: int, width: int) -> tuple[ImagePatch, ...]:
    """Return the four sides of an alarm's red frame as patches."""
    stroke = min(frame_stroke(height, width), height, width)
    sides = ((0, 0, stroke, width), (height - stroke, 0, stroke, width), (0, 0, height, stroke),
             (0, width - stroke, height, stroke))  # fmt: skip
    return tuple(
        ImagePatch(top, left, np.tile(np.array((*ALARM, 0), np.uint8), (rows, columns, 1)), reusable=True)
        for top, left, rows, columns in sides
    )
