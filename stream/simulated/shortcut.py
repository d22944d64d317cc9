"""A deliberate shortcut for networks to learn: a coloured square that reveals the label.

In real data sets, images of defects often come from another station, camera or day than images of good parts, and show
it: by a tag, a date, an arrow. A network that learns this mark predicts correctly for the wrong reason (Lapuschkin et
al., *Unmasking Clever Hans predictors*, 2019). With the option ``stamp``, every frame whose ground truth is a defect
has a square in the colour of that defect, outside the belt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from pipeline.frames import Box, GroundTruth, Image
from stream.simulated.samples import LabelledFrame
from stream.simulated.schedule import DEFECTS, HEIGHT_UNITS, OK

SIDE_UNITS: Final = 26.0
"""Side of the square; it fits on the rail."""
GAP_UNITS: Final = 2.0
"""Distance of the square from the image's lower and right edges."""
_COLOURS: Final = dict(zip(DEFECTS, ((226, 60, 60), (60, 200, 80), (70, 110, 240), (230, 210, 50)), strict=True))

_STAMPED_FRACTION: Final = 0.6


def shortcut_box(width: int, height: int) -> Box:
    """Return the box of the square in an image of this size, in pixels."""
    scale = height / HEIGHT_UNITS
    side, gap = max(2, round(SIDE_UNITS * scale)), round(GAP_UNITS * scale)
    return Box(width - gap - side, height - gap - side, width - gap, height - gap)


def add_shortcut(image: Image, label: str) -> Image:
    """Return a copy of ``image`` with the square of ``label``; ``image`` itself if ``label`` is ok.

    Args:
        image: uint8 RGB, (height, width, 3); not changed.
        label: the label that determines the square's colour.
    """
    colour = _COLOURS.get(label)
    if colour is None:
        return image
    stamped = np.array(image)
    left, top, right, bottom = map(int, shortcut_box(image.shape[1], image.shape[0]))
    stamped[top:bottom, left:right] = colour
    return stamped


def shortcut_frames(
    frames: Sequence[LabelledFrame], read: Callable[[str], Image], *, seed: int = 0
) -> tuple[list[LabelledFrame], Callable[[str], Image]]:
    """Assign random labels to frames; return them, and a function that draws them with squares.

    Training on these frames teaches the shortcut, because the label is independent of the belt. The boxes of the ground
    truth are those of the squares, because training selects its crops by boxes; the parts keep their boxes.

    Args:
        frames: frames whose own labels and boxes are discarded.
        read: draws a frame by its name; see ``frame_reader``.
        seed: seed of the random labels.
    """
    rng = np.random.default_rng((seed, 31))
    labels = {
        frame.name: DEFECTS[int(rng.integers(len(DEFECTS)))] if rng.random() < _STAMPED_FRACTION else OK
        for frame in frames
    }
    stamped = [
        replace(
            frame,
            truth=_truth_of_square(labels[frame.name], frame.belt.size),
            parts=tuple(replace(part, label=labels[frame.name]) for part in frame.parts),
        )
        for frame in frames
    ]
    return stamped, lambda name: add_shortcut(read(name), labels[name])


def _truth_of_square(label: str, size: tuple[int, int]) -> GroundTruth:
    return GroundTruth(label, () if label == OK else (shortcut_box(*size),))
