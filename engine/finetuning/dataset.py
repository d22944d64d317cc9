"""Images of a training, resized to the network's input, and their augmentation.

The code that resizes a stream's frames resizes them, so training and inference see the same input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor
from torchvision.transforms import v2

from engine.models.preprocess import Preprocessing, fit_image
from pipeline.errors import ConfigError, did_you_mean
from pipeline.frames import Image

CACHE_BYTES: Final = 2 << 30
"""Memory for resized images, in bytes; the others are read again in each epoch."""


class ImageDataset:
    """Images by index, with a cache of the resized ones."""

    def __init__(
        self, paths: Sequence[str], read: Callable[[str], Image], preprocessing: Preprocessing,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:  # fmt: skip
        self._paths, self._read, self._preprocessing = paths, read, preprocessing
        self.size = preprocessing.input_size
        self._free_bytes = cache_bytes // (3 * self.size[0] * self.size[1])
        self._cache: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._paths)

    def fitted(self, numbers: Sequence[int]) -> Tensor:
        """Return the images at these indices in the network's input size: (N, 3, H, W) uint8."""
        return torch.cat([self._load(int(number)) for number in numbers])

    def normalised(self, pixels: Tensor) -> Tensor:
        """Return the network's input for resized images (N, 3, H, W), 0 to 255."""
        return self._preprocessing.normalised(pixels).contiguous(memory_format=torch.channels_last)

    def _load(self, number: int) -> Tensor:
        if number in self._cache:
            return self._cache[number]
        to_input = self._preprocessing
        image = fit_image(self._read(self._paths[number]), to_input.input_size, to_input.fit).contiguous()
        if len(self._cache) < self._free_bytes:
            self._cache[number] = image
        return image


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
"""Augmentations that keep the class of nearly all images. Add ``vflip`` for parts without a fixed orientation."""


def build_augmentation(words: Sequence[str], size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """Return a function that augments a batch of images (N, 3, H, W) uint8, each image separately.

    It draws from torch's global random state.

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
