"""Preprocesses frames: fits them to the network's input size and normalises them.

Resizing is bilinear with antialiasing, on uint8, directly to the input size. A network whose weights were validated
with another interpolation, or with a crop of a larger image, therefore gets slightly different images (``fit: crop`` is
closest). Normalisation is ``(RGB / 255 - mean) / std``. ``fit_geometry`` returns the rectangle of the frame that the
input covers, and so the position of the heat map. If a frame has an input area, only this area is fitted, and masked
pixels are painted over before resizing.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.frames import Box, Frame, Image, read_only
from pipeline.input_area import Cut, painted_runs

Fit = Literal["stretch", "letterbox", "crop"]

BORDER = 114
"""Grey level (0 to 255) of the border around a letterboxed frame."""

with warnings.catch_warnings():
    # torch warns once per process about a read-only array; frames are read-only and are never written to.
    warnings.simplefilter("ignore")
    torch.from_numpy(read_only(np.zeros(1, np.uint8)))


@dataclass(frozen=True, slots=True)
class FitGeometry:
    """The position of a frame in the network's input, in pixels."""

    cut: tuple[int, int, int, int]
    """The part of the frame that is used: left, top, right, bottom."""
    size: tuple[int, int]
    """Height and width of this part after resizing."""
    offset: tuple[int, int]
    """Top and left of the resized part in the input; the rest of the input is border."""
    region: Box
    """The rectangle of the frame that the whole input covers; it extends beyond the frame if the input has a border."""


def fit_geometry(frame: tuple[int, int], target: tuple[int, int], fit: Fit, part: Cut | None = None) -> FitGeometry:
    """Return the position of a frame in the network's input.

    Args:
        frame: height and width of the frame.
        target: height and width of the input.
        fit: ``stretch``: ignore the aspect ratio; ``letterbox``: keep it and add a border; ``crop``: keep it and cut
            off the edges.
        part: the part of the frame to fit; None: the whole frame.
    """
    near, above, far, below = part or (0, 0, frame[1], frame[0])
    height, width = below - above, far - near
    rows, columns = target
    if fit == "letterbox":
        scale = min(rows / height, columns / width)
        size = (max(1, min(rows, round(height * scale))), max(1, min(columns, round(width * scale))))
        top, left = (rows - size[0]) // 2, (columns - size[1]) // 2
        down, right = height / size[0], width / size[1]
        edges = (near - left * right, above - top * down, near + (columns - left) * right, above + (rows - top) * down)
        return FitGeometry((near, above, far, below), size, (top, left), Box(*edges))
    cut = (near, above, far, below)
    if fit == "crop":
        scale = min(height / rows, width / columns)
        used = (max(1, min(height, round(rows * scale))), max(1, min(width, round(columns * scale))))
        top, left = above + (height - used[0]) // 2, near + (width - used[1]) // 2
        cut = (left, top, left + used[1], top + used[0])
    return FitGeometry(cut, (rows, columns), (0, 0), Box(*map(float, cut)))


@dataclass(frozen=True)
class Preprocessing:
    """The input format of a network."""

    input_size: tuple[int, int]
    """Height and width in pixels."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """Normalisation per channel (RGB), for pixel values in [0, 1]."""
    fit: Fit = "stretch"

    def region(self, frame: Frame) -> Box:
        """Return the rectangle of the frame that the input covers, in frame pixels."""
        part = None if frame.area is None else frame.area.cut
        return fit_geometry((frame.height, frame.width), self.input_size, self.fit, part).region

    @property
    def mean_colour(self) -> tuple[int, int, int]:
        """The colour of masked pixels: the mean of the normalisation, 0 to 255."""
        red, green, blue = (min(max(round(255.0 * mean), 0), 255) for mean in self.mean)
        return red, green, blue

    def pixels(self, frames: Sequence[Frame]) -> Tensor:
        """Fit frames to the input size: uint8 (N, 3, H, W), channels last in memory."""
        colour, size, fit = self.mean_colour, self.input_size, self.fit
        images = [fit_image(input_image(frame, colour), size, fit) for frame in frames]
        pixels = images[0].clone() if len(images) == 1 else torch.cat(images)  # an image may be the frame itself
        return pixels.contiguous(memory_format=torch.channels_last)

    def normalised(self, pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return (pixels / 255 - mean) / std, (N, 3, H, W) in ``dtype``, computed in float32."""
        scale = torch.tensor([1.0 / (255.0 * s) for s in self.std], device=pixels.device)
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std, strict=True)], device=pixels.device)
        scaled = torch.addcmul(shift[:, None, None], pixels.to(torch.float32), scale[:, None, None])
        return scaled.to(dtype)


def input_image(frame: Frame, colour: tuple[int, int, int]) -> Image:
    """Return the input area of a frame; masked pixels are painted with ``colour`` (RGB, 0 to 255)."""
    if frame.area is None:
        return frame.image
    left, top, right, bottom = frame.area.cut
    part = frame.image[top:bottom, left:right]
    runs = painted_runs(frame.area)
    if not runs:
        return part
    painted = part.copy()
    pixels = painted.reshape(-1, 3)
    for start, stop in runs:
        pixels[start:stop] = colour
    return painted


def fit_image(image: Image, target: tuple[int, int], fit: Fit) -> Tensor:
    """Fit an RGB image to (height, width): uint8 (1, 3, H, W), channels last in memory."""
    placement = fit_geometry((image.shape[0], image.shape[1]), target, fit)
    left, top, right, bottom = placement.cut
    part = torch.from_numpy(image)[top:bottom, left:right].permute(2, 0, 1)[None]
    if tuple(part.shape[2:]) == placement.size:
        resized = part.contiguous(memory_format=torch.channels_last)
    else:
        planes = F.interpolate(part, size=placement.size, mode="bilinear", antialias=True)[0].numpy()
        interleaved = np.empty((*placement.size, 3), np.uint8)
        for channel, plane in enumerate(planes):  # takes a third of the time of torch's ``contiguous``
            interleaved[..., channel] = plane
        resized = torch.from_numpy(interleaved).permute(2, 0, 1)[None]
    if placement.size == target:
        return resized
    whole = torch.full((1, 3, *target), BORDER, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    down, across = placement.offset
    whole[:, :, down : down + placement.size[0], across : across + placement.size[1]] = resized
    return whole
