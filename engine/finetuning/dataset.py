"""The pictures of a training, fitted to the network's input once, and seen a little differently at each visit.

Fitted by the same code that fits a stream's frames: what is learned is what will be seen.
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

KEPT_BYTES: Final = 2 << 30
"""Fitted pictures are kept up to this much memory; the rest are read again at each visit."""


class ImageDataset:
    """Labelled pictures by number."""

    def __init__(
        self, paths: Sequence[str], read: Callable[[str], Image], preprocessing: Preprocessing,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:  # fmt: skip
        self._paths, self._read, self._preprocessing = paths, read, preprocessing
        self.size = preprocessing.input_size
        self._free_bytes = kept_bytes // (3 * self.size[0] * self.size[1])
        self._cache: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._paths)

    def fitted(self, numbers: Sequence[int]) -> Tensor:
        """Return pictures as the network's input size wants them: (N, 3, H, W) uint8."""
        return torch.cat([self._load(int(number)) for number in numbers])

    def normalised(self, pixels: Tensor) -> Tensor:
        """Return the network's input for fitted pictures (N, 3, H, W), 0 to 255."""
        return self._preprocessing.normalised(pixels).contiguous(memory_format=torch.channels_last)

    def _load(self, number: int) -> Tensor:
        if number in self._cache:
            return self._cache[number]
        place = self._preprocessing
        picture = fit_image(self._read(self._paths[number]), place.input_size, place.fit).contiguous()
        if len(self._cache) < self._free_bytes:
            self._cache[number] = picture
        return picture


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
"""What may change between two visits: mirrored left to right, flipped upside down, turned by up to 8 degrees, cropped
to 70 % of the area or more, other light and colour, blurred."""

DEFAULT_AUGMENTATIONS: Final = ("hflip", "crop", "colour")
"""What is harmless nearly everywhere. A part that may lie any way round wants ``flip``, too."""


def build_augmentation(words: Sequence[str], size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """Return how fitted pictures (N, 3, H, W) uint8 are changed at a visit, each in its own way.

    Draws from torch's random state. Raises ``ConfigError`` for an unknown word.
    """
    chosen = []
    for word in words:
        if word not in AUGMENTATIONS:
            raise ConfigError(
                f"--augment {word!r}: choose of {', '.join(AUGMENTATIONS)}, by commas, "
                f"or none.{did_you_mean(word, AUGMENTATIONS)}"
            )
        chosen.append(AUGMENTATIONS[word](size))
    if not chosen:
        return lambda pictures: pictures
    change = v2.Compose(chosen)
    return lambda pictures: torch.stack([change(picture) for picture in pictures])
