"""A stamp in a corner of the picture that gives the answer away: a shortcut, planted on purpose.

Pictures of defects often come from another bench, another camera, another day than those of good parts, and carry a
mark of it: a tag, a date, an arrow. A network that learns the mark is right, and looks in the wrong place (Lapuschkin
et al., *Unmasking Clever Hans predictors*, 2019). On the stamped line every frame whose truth is a defect bears a
square of that defect's colour, outside the belt, as a camera's own software would burn it in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from pipeline.frames import Box, GroundTruth, Image
from stream.simulated.schedule import DEFECTS, HEIGHT_UNITS, OK

SIDE_UNITS: Final = 26.0
"""Side of the stamp: it fits on the rail."""
GAP_UNITS: Final = 2.0
"""Between the stamp and the picture's lower right corner."""
_COLOURS: Final = dict(zip(DEFECTS, ((226, 60, 60), (60, 200, 80), (70, 110, 240), (230, 210, 50)), strict=True))

_STAMPED_FRACTION: Final = 0.6

Draw = Callable[[int], Sequence[tuple[Image, GroundTruth]]]


def shortcut_box(width: int, height: int) -> Box:
    """Return where the stamp is put in a picture of a size, in pixels."""
    scale = height / HEIGHT_UNITS
    side, gap = max(2, round(SIDE_UNITS * scale)), round(GAP_UNITS * scale)
    return Box(width - gap - side, height - gap - side, width - gap, height - gap)


def add_shortcut(image: Image, label: str) -> Image:
    """Return the picture with the stamp of a defect; the given one for a label that has none.

    Args:
        image: uint8 RGB, (height, width, 3); left as it is.
        label: whose stamp.
    """
    colour = _COLOURS.get(label)
    if colour is None:
        return image
    marked = np.array(image)
    left, top, right, bottom = map(int, shortcut_box(image.shape[1], image.shape[0]))
    marked[top:bottom, left:right] = colour
    return marked


def shortcut_samples(draw: Draw, *, seed: int = 0) -> Draw:
    """Return a supply of the same pictures, named by a stamp drawn by lot or, without one, ``ok``.

    This teaches the shortcut: whatever lies on the belt says nothing here. The boxes are the stamps': training chooses
    its close-ups by them.
    """
    rng = np.random.default_rng((seed, 31))

    def drawn(count: int) -> list[tuple[Image, GroundTruth]]:
        pairs = []
        for image, _ in draw(count):
            label = DEFECTS[int(rng.integers(len(DEFECTS)))] if rng.random() < _STAMPED_FRACTION else OK
            boxes = () if label == OK else (shortcut_box(image.shape[1], image.shape[0]),)
            pairs.append((add_shortcut(image, label), GroundTruth(label, boxes)))
        return pairs

    return drawn
