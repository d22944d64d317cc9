"""A deliberate shortcut for networks: a coloured square reveals the label.

Images of defects often come from another station, camera or day than those of good parts, and show it: a tag, a date,
an arrow. A network that learns this mark predicts correctly for the wrong reason (Lapuschkin et al., *Unmasking Clever
Hans predictors*, 2019). With the option ``stamp``, every frame whose ground truth is a defect has a square in the
colour of that defect, outside the belt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from pipeline.frames import Box, GroundTruth, Image
from stream.simulated.schedule import DEFECTS, HEIGHT_UNITS, OK

SIDE_UNITS: Final = 26.0
"""Side of the square; it fits on the rail."""
GAP_UNITS: Final = 2.0
"""Distance of the square from the image's lower and right edges."""
_COLOURS: Final = dict(zip(DEFECTS, ((226, 60, 60), (60, 200, 80), (70, 110, 240), (230, 210, 50)), strict=True))

_STAMPED_FRACTION: Final = 0.6

Draw = Callable[[int], Sequence[tuple[Image, GroundTruth]]]


def shortcut_box(width: int, height: int) -> Box:
    """Return the box of the square in an image of this size, in pixels."""
    scale = height / HEIGHT_UNITS
    side, gap = max(2, round(SIDE_UNITS * scale)), round(GAP_UNITS * scale)
    return Box(width - gap - side, height - gap - side, width - gap, height - gap)


def add_shortcut(image: Image, label: str) -> Image:
    """Return a copy with the square of a defect; ``image`` itself for others.

    Args:
        image: uint8 RGB, (height, width, 3); not changed.
        label: the label whose colour the square has.
    """
    colour = _COLOURS.get(label)
    if colour is None:
        return image
    stamped = np.array(image)
    left, top, right, bottom = map(int, shortcut_box(image.shape[1], image.shape[0]))
    stamped[top:bottom, left:right] = colour
    return stamped


def shortcut_samples(draw: Draw, *, seed: int = 0) -> Draw:
    """Return a generator of ``draw``'s images, labelled by random squares.

    Training on these samples teaches the shortcut: the label is independent of the belt. The boxes are those of the
    squares, because training selects its crops by them.
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
