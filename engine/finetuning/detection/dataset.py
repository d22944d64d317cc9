"""Loads training images with boxes, placed in the network's input.

Images are placed by ``InputFormat``, like a stream's frames, so training and inference have the same input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

from engine.detectors.input_format import InputFormat
from engine.finetuning.dataset import CACHE_BYTES
from engine.finetuning.detection.assignment import Objects
from pipeline.errors import ConfigError
from pipeline.frames import Box, GroundTruth, Image

MIN_SIDE: Final = 1.0
"""Minimum side of a box after clipping to its image, in image pixels."""

TruthsOf = Callable[[str, tuple[int, int]], Sequence[GroundTruth]]
"""Returns the objects of an image, with boxes in image pixels, by its path and (height, width)."""


class BoxDataset:
    """Images with their objects by index, with a cache of placed images."""

    def __init__(
        self,
        paths: Sequence[str],
        read: Callable[[str], Image],
        truths_of: TruthsOf,
        labels: Sequence[str],
        input_format: InputFormat,
        *,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """Create a data set; images are read when they are first used.

        Args:
            paths: the image of each index.
            read: reads an image by its path.
            truths_of: returns the objects of an image.
            labels: the class names; objects of other classes are ignored.
            input_format: the network's input format.
            cache_bytes: maximum memory for placed images, in bytes.
        """
        self._paths, self._read, self._truths_of = paths, read, truths_of
        self._classes = {label: number for number, label in enumerate(labels)}
        self.input = input_format
        self._max_cached = cache_bytes // (3 * input_format.size[0] * input_format.size[1])
        self._cache: dict[int, Tensor] = {}
        self._objects: dict[int, Objects] = {}

    def __len__(self) -> int:
        return len(self._paths)

    def preload(self, stop: Callable[[], bool]) -> None:
        """Read all images, until ``stop`` returns True; cache as many as fit into memory."""
        for index in range(len(self)):
            if stop():
                return
            self.pixels(index)

    def pixels(self, index: int) -> Tensor:
        """Return an image at its position in the network's input: (3, H, W) uint8, RGB."""
        if index in self._cache:
            return self._cache[index]
        path = self._paths[index]
        image = self._read(path)
        if index not in self._objects:
            self._objects[index] = self._placed_objects(path, (image.shape[0], image.shape[1]))
        pixels = self.input.placed(image)
        if len(self._cache) < self._max_cached:
            self._cache[index] = pixels
        return pixels

    def objects(self, index: int) -> Objects:
        """Return the objects of an image, in pixels of the network's input."""
        if index not in self._objects:
            self.pixels(index)
        return self._objects[index]

    def _placed_objects(self, path: str, size: tuple[int, int]) -> Objects:
        truths = [truth for truth in self._truths_of(path, size) if truth.label in self._classes]
        boxes = [(self._classes[truth.label], clipped(path, box, size)) for truth in truths for box in truth.boxes]
        corners = torch.tensor([tuple(box) for _, box in boxes], dtype=torch.float32).reshape(-1, 4)
        classes = torch.tensor([number for number, _ in boxes], dtype=torch.int64)
        return Objects(self.input.place(*size).to_input(corners), classes)


def clipped(path: str, box: Box, size: tuple[int, int]) -> Box:
    """Return the part of a box inside its image.

    Args:
        path: path of the image, for the error message.
        box: the box in image pixels.
        size: height and width of the image.

    Raises:
        ConfigError: a side of the part inside the image is shorter than ``MIN_SIDE``.
    """
    height, width = size
    inside = Box(max(box.left, 0.0), max(box.top, 0.0), min(box.right, float(width)), min(box.bottom, float(height)))
    if inside.right - inside.left < MIN_SIDE or inside.bottom - inside.top < MIN_SIDE:
        raise ConfigError(
            f"{path}: its box from {box.left:g}, {box.top:g} to {box.right:g}, {box.bottom:g} has a side below "
            f"{MIN_SIDE:g} pixel inside the image of {width}x{height} pixels; correct or remove the box"
        )
    return inside
