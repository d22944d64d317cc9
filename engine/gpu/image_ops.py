"""Pictures that stay on their device: frames to the network's input, heat over frames, words over both, JPEG.

The same arithmetic as the host's (``engine.models.preprocess``; the renderer's, by its table), within one level of 255
for the input and two for the overlay, as tensor operations of fixed shapes: all of them run on any device, and one CUDA
graph captures them. Pictures are planar, uint8 (N, 3, H, W); frames come as a camera gives them, (N, H, W, 3).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.models.preprocess import BORDER, Preprocessing, fit_geometry
from pipeline.frames import Box, ImagePatch

LevelTable = npt.NDArray[np.uint8]
"""What each of 256 heat levels does to a pixel, uint8 (256, 4): red, green and blue to add, and what is kept of 255."""


class FramePreprocessor(nn.Module):
    """Frames of one size to a network's normalised input."""

    scale: Tensor
    shift: Tensor

    def __init__(self, preprocessing: Preprocessing, frame: tuple[int, int]) -> None:
        """Take what the network expects, and the frames' (height, width)."""
        super().__init__()
        self.target = preprocessing.input_size
        self.placement = fit_geometry(frame, self.target, preprocessing.fit)
        std, mean = preprocessing.std, preprocessing.mean
        self.register_buffer("scale", torch.tensor([1.0 / (255.0 * s) for s in std])[:, None, None])
        self.register_buffer("shift", torch.tensor([-m / s for m, s in zip(mean, std, strict=True)])[:, None, None])

    def levels(self, frames: Tensor) -> Tensor:
        """Return frames (N, H, W, 3) fitted to the input: (N, 3, h, w) float32, whole levels of 255."""
        left, top, right, bottom = self.placement.cut
        part = frames[:, top:bottom, left:right].permute(0, 3, 1, 2).to(torch.float32)
        if tuple(part.shape[2:]) != self.placement.size:
            # The device's kernel knows no uint8: float32, and rounded to the levels the host's gives.
            part = F.interpolate(part, size=self.placement.size, mode="bilinear", antialias=True)
            part = part.round().clamp(0.0, 255.0)
        if self.placement.size == self.target:
            return part
        down, across = self.placement.offset
        (rows, columns), (height, width) = self.placement.size, self.target
        around = (across, width - columns - across, down, height - rows - down)
        return F.pad(part, around, value=float(BORDER))

    def forward(self, frames: Tensor) -> Tensor:
        """Return the normalised input (N, 3, h, w), float32."""
        return self.levels(frames) * self.scale + self.shift


def upsample_heat(near: float, far: float, cells: int, pixels: int) -> Tensor:
    """Return how much of each cell's heat each pixel of one axis gets: (pixels, cells), float32.

    Bilinear between the centres of cells, constant beyond the outermost, nothing for pixels whose centre lies outside.

    Args:
        near: the left or top edge of the rectangle that the cells cover, in pixels; may be negative.
        far: its right or bottom edge; may lie past the frame.
        cells: how many cells there are along the axis.
        pixels: how many pixels.
    """
    start = min(max(math.ceil(near - 0.5), 0), pixels)
    stop = max(min(math.ceil(far - 0.5), pixels), start)
    centres = np.arange(start, stop, dtype=np.float64) + 0.5
    where = np.clip((centres - near) * (cells / max(far - near, 1e-9)) - 0.5, 0.0, cells - 1.0)
    before = np.floor(where).astype(np.intp)
    after = np.minimum(before + 1, cells - 1)
    fraction = (where - before).astype(np.float32)
    fractions = np.zeros((pixels, cells), np.float32)
    rows = np.arange(start, stop)
    np.add.at(fractions, (rows, before), 1.0 - fraction)
    np.add.at(fractions, (rows, after), fraction)
    return torch.from_numpy(fractions)


class HeatmapBlender(nn.Module):
    """Heat laid over frames of one size."""

    down: Tensor
    across: Tensor
    table: Tensor

    def __init__(self, table: LevelTable, region: Box, grid: tuple[int, int], frame: tuple[int, int]) -> None:
        """Take the colours, the rectangle of the frame that the grid covers, the grid, and the frame's size."""
        super().__init__()
        if table.shape != (256, 4) or table.dtype != np.uint8:
            message = f"a level table is uint8 (256, 4); got {table.dtype} {table.shape}"
            raise ValueError(message)
        self.register_buffer("down", upsample_heat(region.top, region.bottom, grid[0], frame[0]))
        self.register_buffer("across", upsample_heat(region.left, region.right, grid[1], frame[1]).t().contiguous())
        self.register_buffer("table", torch.from_numpy(table.copy()))

    def forward(self, frames: Tensor, heat: Tensor) -> Tensor:
        """Return frames (N, H, W, 3) under their heat (N, h, w): uint8 (N, 3, H, W)."""
        wide = torch.matmul(heat.clamp(0.0, 1.0) * 255.0, self.across)
        levels = torch.matmul(self.down, wide).round().to(torch.int32)
        told = self.table.index_select(0, levels.flatten()).view(*levels.shape, 4).permute(0, 3, 1, 2)
        kept = frames.permute(0, 3, 1, 2).to(torch.float32) * told[:, 3:].to(torch.float32) * (1.0 / 255.0)
        return (kept.round() + told[:, :3]).clamp(0.0, 255.0).to(torch.uint8).contiguous()


def blend_patch(picture: Tensor, tile: Tensor, stamp: ImagePatch) -> Tensor:
    """Return a picture (3, H, W) with a stamp on it; ``tile`` is the stamp's, (h, w, 4), on the picture's device."""
    marked = picture.clone()
    part = marked[:, stamp.top : stamp.top + tile.shape[0], stamp.left : stamp.left + tile.shape[1]]
    planes = tile[: part.shape[1], : part.shape[2]].permute(2, 0, 1).to(torch.float32)
    part.copy_((part * planes[3:] * (1.0 / 255.0)).round().add_(planes[:3]).clamp_(0.0, 255.0))
    return marked


def encode_jpeg(pictures: Sequence[Tensor], quality: int) -> list[bytes]:
    """Return pictures (3, H, W) as JPEG: by nvJPEG where they lie on a GPU, by libjpeg where they do not.

    On a GPU it is called within ``Lanes.encoding``, and has the bytes when it returns.
    """
    from torchvision.io import encode_jpeg

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from 0.29 on it speaks of its successor
        packed = encode_jpeg(list(pictures), quality)
    return [one.cpu().numpy().tobytes() for one in packed]
