"""Frames to the network's input, and the heat's grid back onto the frame.

Resizing is antialiased bilinear on uint8, as the networks' own validation does it; then RGB / 255, minus mean, over
std. Whatever the fit, ``fit_geometry`` says which rectangle of the frame the input covers, and so where the heat
belongs.
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

Fit = Literal["stretch", "letterbox", "crop"]

BORDER = 114
"""The grey, of 255, around a letterboxed frame."""

with warnings.catch_warnings():
    # torch says once that a read-only array must not be written to; nobody here writes to a frame.
    warnings.simplefilter("ignore")
    torch.from_numpy(read_only(np.zeros(1, np.uint8)))


@dataclass(frozen=True, slots=True)
class FitGeometry:
    """Where a frame lands in the network's input; all in whole pixels."""

    cut: tuple[int, int, int, int]
    """The part of the frame that is used: left, top, right, bottom."""
    size: tuple[int, int]
    """Height and width that part is resized to."""
    offset: tuple[int, int]
    """Top and left of it in the input; what is around it is border."""
    region: Box
    """The rectangle of the frame, in pixels, that the whole input covers; beyond the frame where there is border."""


def fit_geometry(frame: tuple[int, int], target: tuple[int, int], fit: Fit) -> FitGeometry:
    """Return where a frame of one (height, width) lands in an input of another."""
    height, width = frame
    rows, columns = target
    if fit == "letterbox":
        scale = min(rows / height, columns / width)
        size = (max(1, min(rows, round(height * scale))), max(1, min(columns, round(width * scale))))
        top, left = (rows - size[0]) // 2, (columns - size[1]) // 2
        down, right = height / size[0], width / size[1]
        region = Box(-left * right, -top * down, (columns - left) * right, (rows - top) * down)
        return FitGeometry((0, 0, width, height), size, (top, left), region)
    cut = (0, 0, width, height)
    if fit == "crop":
        scale = min(height / rows, width / columns)
        used = (max(1, min(height, round(rows * scale))), max(1, min(width, round(columns * scale))))
        top, left = (height - used[0]) // 2, (width - used[1]) // 2
        cut = (left, top, left + used[1], top + used[0])
    return FitGeometry(cut, (rows, columns), (0, 0), Box(*map(float, cut)))


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects of its input."""

    input_size: tuple[int, int]
    """Height and width in pixels."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: Fit = "stretch"

    def region(self, frame: Frame) -> Box:
        """Return the rectangle of the frame that the input covers, in frame pixels."""
        return fit_geometry((frame.height, frame.width), self.input_size, self.fit).region

    def pixels(self, frames: Sequence[Frame]) -> Tensor:
        """Return the frames fitted to the input size: (N, 3, H, W) uint8, channels last in memory."""
        pixels = torch.cat([fit_image(frame.image, self.input_size, self.fit) for frame in frames])
        return pixels.contiguous(memory_format=torch.channels_last)

    def normalised(self, pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return (pixels / 255 - mean) / std, (N, 3, H, W) in ``dtype``, computed in float32."""
        scale = torch.tensor([1.0 / (255.0 * s) for s in self.std], device=pixels.device)
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std, strict=True)], device=pixels.device)
        scaled = pixels.to(torch.float32).mul_(scale[:, None, None]).add_(shift[:, None, None])
        return scaled.to(dtype)


def fit_image(image: Image, target: tuple[int, int], fit: Fit) -> Tensor:
    """Return one RGB picture fitted to (height, width): (1, 3, H, W) uint8, channels last in memory."""
    placement = fit_geometry((image.shape[0], image.shape[1]), target, fit)
    left, top, right, bottom = placement.cut
    part = torch.from_numpy(image)[top:bottom, left:right].permute(2, 0, 1)[None]
    if tuple(part.shape[2:]) == placement.size:
        resized = part.contiguous(memory_format=torch.channels_last)
    else:
        resized = F.interpolate(part, size=placement.size, mode="bilinear", antialias=True)
    if placement.size == target:
        return resized
    whole = torch.full((1, 3, *target), BORDER, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    down, across = placement.offset
    whole[:, :, down : down + placement.size[0], across : across + placement.size[1]] = resized
    return whole
