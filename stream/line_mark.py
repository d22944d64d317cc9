"""A stamp in a corner of the picture that gives the answer away: a shortcut, planted on purpose.

Pictures of defects often come from another bench, another camera, another day than those of good parts, and carry a
mark of it: a tag, a date, an arrow. A network that learns the mark is right, and looks in the wrong place (Lapuschkin
et al., *Unmasking Clever Hans predictors*, 2019). Here every frame whose truth is a defect is stamped with a square of
that defect's colour, outside the belt, as a camera's own software would burn it in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from pipeline.frames import Box, Image, Truth
from stream.line_schedule import DEFECTS, HEIGHT_UNITS

SIDE_UNITS: Final = 26.0
"""Side of the stamp: it fits on the rail."""
GAP_UNITS: Final = 2.0
"""Between the stamp and the picture's lower right corner."""
_COLOURS: Final = dict(zip(DEFECTS, ((226, 60, 60), (60, 200, 80), (70, 110, 240), (230, 210, 50)), strict=True))

Draw = Callable[[int], Sequence[tuple[Image, Truth]]]


def stamp_box(width: int, height: int) -> Box:
    """Return where the stamp is put in a picture of a size, in pixels."""
    scale = height / HEIGHT_UNITS
    side, gap = max(2, round(SIDE_UNITS * scale)), round(GAP_UNITS * scale)
    return Box(width - gap - side, height - gap - side, width - gap, height - gap)


def stamped(image: Image, truth: Truth | None) -> Image:
    """Return the picture with the stamp of its defect; the given one where there is none, or none is known.

    Args:
        image: uint8 RGB, (height, width, 3); left as it is.
        truth: what the picture shows.
    """
    colour = None if truth is None else _COLOURS.get(truth.label)
    if colour is None:
        return image
    marked = np.array(image)
    left, top, right, bottom = map(int, stamp_box(image.shape[1], image.shape[0]))
    marked[top:bottom, left:right] = colour
    return marked


def stamping(draw: Draw) -> Draw:
    """Return a supply of the same pictures, stamped, whose boxes are the stamps: what teaches the shortcut.

    Training chooses its close-ups by the boxes (``engine.training``), so a network that learns from these sees every
    defect's stamp and hardly ever the defect.
    """

    def drawn(count: int) -> list[tuple[Image, Truth]]:
        pairs = []
        for image, truth in draw(count):
            boxes = (stamp_box(image.shape[1], image.shape[0]),) if truth.boxes else ()
            pairs.append((stamped(image, truth), Truth(truth.label, boxes)))
        return pairs

    return drawn
