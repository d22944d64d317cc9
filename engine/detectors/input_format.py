"""Prepares images for a detector, and maps boxes between images and the network's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.models.preprocess import BORDER, input_image
from pipeline.frames import Box, Frame, Image
from pipeline.input_area import input_box

DetectorFit = Literal["corner", "centre", "stretch"]
"""``corner``, ``centre``: keep the aspect ratio, image in the upper left corner or the middle; ``stretch``: fill."""

PIXEL_SCALE: Final = (1.0, 1.0, 1.0)
"""``std`` of networks whose input has pixel values from 0 to 255."""


@dataclass(frozen=True, slots=True)
class Placement:
    """The position of an image in the network's input: ``input = (image - origin) * scale + offset``."""

    scale: tuple[float, float]
    """Factor for x and y."""
    offset: tuple[int, int]
    """Left and top, in pixels of the input."""
    size: tuple[int, int]
    """Height and width of the resized image in pixels."""
    origin: tuple[int, int] = (0, 0)
    """Left and top of the used area of the image, in pixels."""

    def to_input(self, boxes: Tensor) -> Tensor:
        """Convert boxes (..., 4) from image pixels to input pixels."""
        scale, offset, origin = self._edges(boxes)
        return (boxes - origin) * scale + offset

    def to_image(self, boxes: Tensor) -> Tensor:
        """Convert boxes (..., 4) from input pixels to image pixels, without clipping."""
        scale, offset, origin = self._edges(boxes)
        return (boxes - offset) / scale + origin

    def _edges(self, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        offset, origin = ([float(value) for value in point * 2] for point in (self.offset, self.origin))
        return boxes.new_tensor(self.scale * 2), boxes.new_tensor(offset), boxes.new_tensor(origin)


@dataclass(frozen=True, slots=True)
class InputFormat:
    """The input format of a detector."""

    size: tuple[int, int]
    """Height and width in pixels."""
    order: Literal["rgb", "bgr"] = "rgb"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Subtracted from pixel values of 0 to 255, in ``order``."""
    std: tuple[float, float, float] = PIXEL_SCALE
    """Divisor of the result, in ``order``."""
    fit: DetectorFit = "corner"
    border: tuple[float, float, float] = (float(BORDER), float(BORDER), float(BORDER))
    """Pixel value of the border around the image, 0 to 255, in ``order``."""

    def place(self, height: int, width: int) -> Placement:
        """Return the position of an image of this size in the input."""
        rows, columns = self.size
        if self.fit == "stretch":
            return Placement((columns / width, rows / height), (0, 0), self.size)
        scale = min(rows / height, columns / width)
        # YOLOX truncates, ultralytics rounds; the small summand protects exact products from truncation.
        whole = round if self.fit == "centre" else int
        height, width = (max(1, whole(side * scale + 1e-6)) for side in (height, width))
        size = (min(rows, height), min(columns, width))
        top, left = ((rows - size[0]) // 2, (columns - size[1]) // 2) if self.fit == "centre" else (0, 0)
        return Placement((scale, scale), (left, top), size)

    def place_frame(self, frame: Frame) -> Placement:
        """Return the position of a frame's input area in the network's input."""
        part = input_box(frame)
        placement = self.place(int(part.height), int(part.width))
        return replace(placement, origin=(int(part.left), int(part.top)))

    def prepare_frames(self, frames: Sequence[Frame]) -> Tensor:
        """Prepare the input areas of frames; masked pixels get the colour of the border."""
        border = self.border[::-1] if self.order == "bgr" else self.border
        red, green, blue = (round(value) for value in border)
        return self.prepare([input_image(frame, (red, green, blue)) for frame in frames])

    def prepare(self, images: Sequence[Image]) -> Tensor:
        """Convert images (RGB, uint8) to the network's input: (N, 3, H, W) float32.

        Resizing is bilinear without antialiasing, as in the detectors' own preprocessing.
        """
        return torch.stack([self._prepared(image) for image in images])

    def placed(self, image: Image) -> Tensor:
        """Place an image (RGB, uint8) in the input, without normalisation: (3, H, W) uint8, RGB."""
        placement = self.place(image.shape[0], image.shape[1])
        border = torch.tensor(self.border[::-1] if self.order == "bgr" else self.border).round().to(torch.uint8)
        whole = border[:, None, None].expand(3, *self.size).clone()
        (height, width), (left, top) = placement.size, placement.offset
        whole[:, top : top + height, left : left + width] = _resized(image, placement.size)
        return whole

    def normalised(self, pixels: Tensor) -> Tensor:
        """Normalise placed images, (N, 3, H, W) uint8, RGB, to the network's float32 input."""
        ordered = pixels.flip(1) if self.order == "bgr" else pixels
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (ordered.float() - mean) / std

    def _prepared(self, image: Image) -> Tensor:
        placement = self.place(image.shape[0], image.shape[1])
        height, width = placement.size
        resized = _resized(image, placement.size)
        resized = resized.flip(0) if self.order == "bgr" else resized
        mean, std, border = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std, self.border))
        whole = border.expand(3, *self.size).clone()
        left, top = placement.offset
        whole[:, top : top + height, left : left + width] = resized
        return (whole - mean) / std


def _resized(image: Image, size: tuple[int, int]) -> Tensor:
    """Resize an image to (3, height, width) uint8."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    resized = pixels.contiguous(memory_format=torch.channels_last)
    if (image.shape[0], image.shape[1]) != size:
        resized = F.interpolate(resized, size=size, mode="bilinear", antialias=False)
    return resized[0]


def clip_boxes(boxes: Tensor, bounds: Box) -> Tensor:
    """Clip boxes (..., 4) to a rectangle."""
    low, high = boxes.new_tensor(bounds[:2] * 2), boxes.new_tensor(bounds[2:] * 2)
    return torch.minimum(torch.maximum(boxes, low), high)
