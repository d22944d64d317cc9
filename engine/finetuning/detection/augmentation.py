"""Augments images with boxes at random.

Mosaics of four images and changes of scale follow Ge et al., *YOLOX*, arXiv:2107.08430. If a change would cut a box to
less than ``MIN_VISIBLE`` of its area, another change is drawn, because neither keeping nor removing the box is right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from engine.finetuning.detection.assignment import Objects
from engine.finetuning.trainer import Indices
from pipeline.errors import ConfigError, did_you_mean

MIN_VISIBLE: Final = 0.5
"""Minimum fraction of a box's area that must stay visible, unless the whole box is outside."""
BORDER: Final = 114
"""Grey level of the area that no image covers, 0 to 255."""
_TRIES: Final = 5
_SCALES: Final = (0.7, 1.4)
_MOSAIC_SCALES: Final = (0.5, 1.0)
_MOSAIC_FRACTION: Final = 0.5
"""Fraction of the images that become a mosaic."""

Labelled = tuple[Tensor, Objects]
"""Pixels (3, H, W) uint8 and the objects in them."""

AUGMENTATIONS: Final = ("hflip", "vflip", "colour", "blur", "scale", "mosaic")
"""The augmentations by name."""
DEFAULT_AUGMENTATIONS: Final = ("hflip", "colour", "scale", "mosaic")
GEOMETRIC: Final = frozenset({"scale", "mosaic"})
"""Augmentations that are disabled in the last epochs, so that training ends with unchanged geometry."""


def check_augmentations(words: Sequence[str]) -> tuple[str, ...]:
    """Return ``words`` if all are names of augmentations.

    Raises:
        ConfigError: a name is unknown.
    """
    for word in words:
        if word not in AUGMENTATIONS:
            raise ConfigError(
                f"--augment {word!r}: for a detector choose some of {', '.join(AUGMENTATIONS)}, separated by commas, "
                f"or none.{did_you_mean(word, AUGMENTATIONS)}"
            )
    return tuple(words)


class BoxAugmentation:
    """Augments images at random, with torch's global random state."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = frozenset(check_augmentations(words))
        self._colour = v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3)
        self._blur = v2.RandomApply([v2.GaussianBlur(5, (0.1, 1.5))], p=0.3)

    def __call__(self, index: int, others: Indices, load: Callable[[int], Labelled], *, geometric: bool) -> Labelled:
        """Return an augmented image.

        Args:
            index: index of the image.
            others: indices of the images from which the other three of a mosaic are drawn.
            load: returns an image by its index.
            geometric: True: ``GEOMETRIC`` augmentations are allowed.
        """
        labelled = load(index)
        words = self._words if geometric else self._words - GEOMETRIC
        if "mosaic" in words and _uniform() < _MOSAIC_FRACTION:
            drawn = [int(others[number]) for number in torch.randint(len(others), (3,)).tolist()]
            labelled = mosaic([labelled, *(load(number) for number in drawn)]) or labelled
        if "scale" in words:
            labelled = scaled(labelled)
        pixels, objects = labelled
        if "hflip" in words and _uniform() < 0.5:
            pixels, objects = flipped(pixels, objects, axis=0)
        if "vflip" in words and _uniform() < 0.5:
            pixels, objects = flipped(pixels, objects, axis=1)
        pixels = self._colour(pixels) if "colour" in words else pixels
        return (self._blur(pixels) if "blur" in words else pixels), objects


def flipped(pixels: Tensor, objects: Objects, axis: int) -> Labelled:
    """Flip an image left to right (axis 0) or top to bottom (axis 1), with its boxes."""
    side = pixels.shape[2 - axis]
    boxes = objects.boxes.clone()
    boxes[:, axis], boxes[:, axis + 2] = side - objects.boxes[:, axis + 2], side - objects.boxes[:, axis]
    return pixels.flip(2 - axis), Objects(boxes, objects.classes)


def scaled(labelled: Labelled) -> Labelled:
    """Scale an image at a random position; return it unchanged if boxes would be cut."""
    pixels, _ = labelled
    height, width = pixels.shape[1:]
    for _ in range(_TRIES):
        scale = _between(*_SCALES)
        left = _uniform() * width * (1 - scale)  # inside the canvas if reduced, covering it if enlarged
        top = _uniform() * height * (1 - scale)
        canvas = torch.full_like(pixels, BORDER)
        objects = paste(canvas, labelled, scale, (left, top), (0, 0, width, height))
        if objects is not None:
            return canvas, objects
    return labelled


def mosaic(images: Sequence[Labelled]) -> Labelled | None:
    """Arrange four images around a random point; return None if all tries would cut boxes."""
    height, width = images[0][0].shape[1:]
    for _ in range(_TRIES):
        x, y = round(_between(0.35, 0.65) * width), round(_between(0.35, 0.65) * height)
        canvas = torch.full_like(images[0][0], BORDER)
        placed: list[Objects] = []
        for number, image in enumerate(images):
            right, down = number % 2 == 1, number >= 2
            scale = _between(*_MOSAIC_SCALES)
            corner = (x if right else x - width * scale, y if down else y - height * scale)
            window = (x if right else 0, y if down else 0, width if right else x, height if down else y)
            objects = paste(canvas, image, scale, corner, window)
            if objects is None:
                break
            placed.append(objects)
        else:
            return canvas, Objects(torch.cat([one.boxes for one in placed]), torch.cat([one.classes for one in placed]))
    return None


def paste(
    canvas: Tensor, labelled: Labelled, scale: float, corner: tuple[float, float], window: tuple[int, int, int, int]
) -> Objects | None:
    """Paste a scaled image into a window of ``canvas``, in place; return its objects.

    Args:
        canvas: (3, H, W) uint8.
        labelled: the image and its objects.
        scale: factor of the image's size.
        corner: left and top of the image in the canvas; may be outside of it.
        window: left, top, right and bottom of the area to paint.

    Returns:
        The objects, clipped to the window; None, without pasting, if a box would be cut below ``MIN_VISIBLE``.
    """
    pixels, objects = labelled
    left, top = round(corner[0]), round(corner[1])
    boxes = objects.boxes * scale + objects.boxes.new_tensor([left, top, left, top])
    limits = torch.tensor([float(v) for v in window])
    cut = torch.maximum(torch.minimum(boxes, limits[[2, 3, 2, 3]]), limits[[0, 1, 0, 1]])
    visible = _areas(cut) / _areas(boxes).clamp(min=1e-6)
    if bool(((visible > 0) & (visible < MIN_VISIBLE)).any()):
        return None
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[2] * scale)))
    resized = F.interpolate(pixels[None], size=size, mode="bilinear", antialias=scale < 1)[0]
    first_x, first_y = max(left, window[0]), max(top, window[1])
    last_x, last_y = min(left + size[1], window[2]), min(top + size[0], window[3])
    if last_x > first_x and last_y > first_y:
        canvas[:, first_y:last_y, first_x:last_x] = resized[
            :, first_y - top : last_y - top, first_x - left : last_x - left
        ]
    return Objects(cut[visible > 0], objects.classes[visible > 0])


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)


def _uniform() -> float:
    return float(torch.rand(()))


def _between(low: float, high: float) -> float:
    return low + (high - low) * _uniform()
