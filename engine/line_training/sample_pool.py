"""The labelled pictures that a training has at hand, and the pieces it cuts from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from engine.line_training.preprocessing import Preprocessing
from pipeline.frames import GroundTruth, Image

Draw = Callable[[int], Sequence[tuple[Image, GroundTruth]]]
"""Gives that many pictures (uint8 RGB, sizes may differ) with their truths; new ones at each call."""

_PLAIN_FRACTION = 0.45
"""Share of close-ups that come from pictures without a box."""


class SamplePool:
    """The pictures at hand, stretched to the input size, where a part is replaced by new ones again and again."""

    def __init__(self, draw: Draw, recipe: Preprocessing, *, count: int, rng: np.random.Generator) -> None:
        self._draw, self._recipe, self._rng = draw, recipe, rng
        height, width = recipe.input_size
        self.images = torch.empty((count, 3, height, width), dtype=torch.uint8)
        self.classes = np.zeros(count, int)
        self.boxes = np.zeros((count, 4))
        self.drawn = 0
        for first in range(0, count, 60):
            self.renew(np.arange(first, min(first + 60, count)))

    def renew(self, places: npt.NDArray[np.int_]) -> None:
        """Replace the pictures at these places by new ones."""
        if not len(places):
            return
        height, width = self._recipe.input_size
        for index, (image, truth) in zip(places, self._draw(len(places)), strict=True):
            self.images[index] = self._recipe.stretch(image)
            self.classes[index] = self._recipe.class_of(truth.label)
            box = np.array(truth.boxes[0] if truth.boxes else (0.0, 0.0, 0.0, 0.0))
            self.boxes[index] = box * ((width / image.shape[1], height / image.shape[0]) * 2)
        self.drawn += len(places)

    def wholes(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return whole pictures (N, 3, H, W) uint8, mirrored at random, and their classes."""
        places = self._rng.integers(0, len(self.classes), count)
        pictures = torch.stack([self._mirrored(self.images[int(index)]) for index in places])
        return pictures, torch.from_numpy(self.classes[places])

    def close_ups(self, count: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return square pieces (N, 3, side, side) and their classes, mirrored at random.

        Each has a box wholly inside, or is from a picture without any; classes with boxes come equally often.
        """
        boxed = self.boxes[:, 2] > self.boxes[:, 0]
        kinds = [np.nonzero((self.classes == kind) & boxed)[0] for kind in np.unique(self.classes[boxed])]
        plain = np.nonzero(~boxed)[0]
        pieces, places = [], []
        for _ in range(count):
            take_plain = not kinds or (len(plain) > 0 and self._rng.random() < _PLAIN_FRACTION)
            choice = plain if take_plain else kinds[int(self._rng.integers(len(kinds)))]
            index = int(choice[int(self._rng.integers(len(choice)))])
            top, left = self._corner(index, side)
            pieces.append(self._mirrored(self.images[index, :, top : top + side, left : left + side]))
            places.append(index)
        return torch.stack(pieces), torch.from_numpy(self.classes[places])

    def _corner(self, index: int, side: int) -> tuple[int, int]:
        """Choose where a piece begins (top, left): around the picture's box, or anywhere where there is none."""
        corner = []
        for axis, length in ((1, self.images.shape[2]), (0, self.images.shape[3])):
            low, high = 0, length - side
            first, last = self.boxes[index, axis], self.boxes[index, axis + 2]
            if last > first:
                low = min(max(low, int(np.ceil(last)) - side), high)
                high = max(min(high, int(first)), low)
            corner.append(int(self._rng.integers(low, high + 1)))
        return corner[0], corner[1]

    def _mirrored(self, picture: torch.Tensor) -> torch.Tensor:
        axes = [axis for axis in (1, 2) if self._rng.random() < 0.5]
        return picture.flip(axes) if axes else picture
