"""Loads training images, resized to the network's input, and augments them.

Images are resized by the same code as a stream's frames, so training and inference have the same input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from engine.models.preprocess import Preprocessing, fit_geometry, fit_image
from pipeline.errors import ConfigError, did_you_mean
from pipeline.frames import Box, Image

CACHE_BYTES: Final = 2 << 30
"""Maximum memory for resized images, in bytes; all other images are read again in each epoch."""


class ImageDataset:
    """Images by index, with a cache of resized images."""

    def __init__(
        self,
        paths: Sequence[str],
        read: Callable[[str], Image],
        preprocessing: Preprocessing,
        *,
        boxes: Mapping[str, Box] | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """Create a data set; images are read when they are first used.

        Args:
            paths: the image of each index.
            read: reads an image by its path.
            preprocessing: the network's input format.
            boxes: the object's box in image pixels, by path; used by ``crops``.
            cache_bytes: maximum memory for resized images, in bytes.
        """
        self._paths, self._read, self._preprocessing = paths, read, preprocessing
        self._boxes = boxes or {}
        self.size = preprocessing.input_size
        self._max_cached = cache_bytes // (3 * self.size[0] * self.size[1])
        self._cache: dict[int, Tensor] = {}
        self._input_boxes: dict[int, Box] = {}

    def __len__(self) -> int:
        return len(self._paths)

    def preload(self, stop: Callable[[], bool]) -> None:
        """Read images in order until the cache is full or ``stop`` returns True."""
        for index in range(min(len(self), self._max_cached)):
            if stop():
                return
            self._load(index)

    def fitted(self, indices: Sequence[int]) -> Tensor:
        """Return images, resized to the network's input: (N, 3, H, W) uint8."""
        return torch.cat([self._load(int(index)) for index in indices])

    def crops(self, indices: Sequence[int], side: int, rng: np.random.Generator | None = None) -> Tensor:
        """Return a square crop of each image: (N, 3, side, side) uint8.

        The crop contains the image's box if there is one; in other images its position is random.

        Args:
            indices: the images.
            side: side of the crop in pixels of the network's input; at most its height and width.
            rng: source of random positions; None: each image always has the same position.
        """
        crops = []
        for index in map(int, indices):
            image = self._load(index)
            positions = rng or np.random.default_rng((index, 9))
            top, left = self._crop_corner(self._input_boxes.get(index), side, positions)
            crops.append(image[:, :, top : top + side, left : left + side])
        return torch.cat(crops)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Normalise resized images (N, 3, H, W), 0 to 255, for the network."""
        return self._preprocessing.normalised(pixels).contiguous(memory_format=torch.channels_last)

    def _load(self, index: int) -> Tensor:
        if index in self._cache:
            return self._cache[index]
        path, size, fit = self._paths[index], self.size, self._preprocessing.fit
        image = self._read(path)
        if path in self._boxes:
            region = fit_geometry((image.shape[0], image.shape[1]), size, fit).region
            self._input_boxes[index] = _box_in_input(self._boxes[path], region, size)
        pixels = fit_image(image, size, fit).contiguous()
        if len(self._cache) < self._max_cached:
            self._cache[index] = pixels
        return pixels

    def _crop_corner(self, box: Box | None, side: int, rng: np.random.Generator) -> tuple[int, int]:
        """Return the top left corner (y, x) of a square that contains as much of the box as possible."""
        spans = ((0.0, 0.0), (0.0, 0.0)) if box is None else ((box.top, box.bottom), (box.left, box.right))
        corner = []
        for (first, last), length in zip(spans, self.size, strict=True):
            low, high = 0, length - side
            if last > first:
                low = min(max(low, math.ceil(last) - side), high)
                high = max(min(high, math.floor(first)), low)
            corner.append(int(rng.integers(low, high + 1)))
        return corner[0], corner[1]


def _box_in_input(box: Box, region: Box, size: tuple[int, int]) -> Box:
    """Convert a box from image pixels to input pixels; the input covers ``region`` of the image."""
    down, across = size[0] / region.height, size[1] / region.width
    return Box(
        (box.left - region.left) * across,
        (box.top - region.top) * down,
        (box.right - region.left) * across,
        (box.bottom - region.top) * down,
    )


def _crop(size: tuple[int, int]) -> v2.Transform:
    return v2.RandomResizedCrop(size, scale=(0.7, 1.0), ratio=(0.85, 1.18), antialias=True)


AUGMENTATIONS: Final[dict[str, Callable[[tuple[int, int]], v2.Transform]]] = {
    "hflip": lambda _: v2.RandomHorizontalFlip(),
    "vflip": lambda _: v2.RandomVerticalFlip(),
    "rotate": lambda _: v2.RandomRotation(8.0, interpolation=v2.InterpolationMode.BILINEAR, fill=114),
    "crop": _crop,
    "colour": lambda _: v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.2),
    "blur": lambda _: v2.RandomApply([v2.GaussianBlur(5, (0.1, 1.5))], p=0.3),
}
"""Augmentations by name: horizontal and vertical flip, rotation by up to 8 degrees, crop of at least 70 % of the area,
brightness, contrast and saturation, Gaussian blur."""

DEFAULT_AUGMENTATIONS: Final = ("hflip", "crop", "colour")
"""Augmentations that rarely change the class of an image. Add ``vflip`` for parts without a fixed orientation."""


def build_augmentation(words: Sequence[str], size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """Return a function that augments each image of a batch (N, 3, H, W) uint8 separately.

    The function uses torch's global random state.

    Raises:
        ConfigError: an augmentation is unknown.
    """
    chosen = []
    for word in words:
        if word not in AUGMENTATIONS:
            raise ConfigError(
                f"--augment {word!r}: choose some of {', '.join(AUGMENTATIONS)}, separated by commas, "
                f"or none.{did_you_mean(word, AUGMENTATIONS)}"
            )
        chosen.append(AUGMENTATIONS[word](size))
    if not chosen:
        return lambda images: images
    change = v2.Compose(chosen)
    return lambda images: torch.stack([change(image) for image in images])
