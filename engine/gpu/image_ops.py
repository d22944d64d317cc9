"""Image operations on the device: resize and normalise, heat map overlay, stamps, JPEG.

Same arithmetic as on the host (``engine.models.preprocess`` and the renderer's table), within 1 of 255 levels for the
input and 2 for the overlay. All operations have fixed shapes, run on any device, and can be captured in a CUDA graph.
Images are planar, uint8 (N, 3, H, W); frames are interleaved as cameras give them, (N, H, W, 3).
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
"""Effect of each of 256 heat levels on a pixel, uint8 (256, 4): red, green and blue to add, and the kept part of
255."""


class FramePreprocessor(nn.Module):
    """Converts frames of one size to the network's normalised input."""

    scale: Tensor
    shift: Tensor

    def __init__(self, preprocessing: Preprocessing, frame: tuple[int, int]) -> None:
        """Create the conversion for frames of size (height, width)."""
        super().__init__()
        self.target = preprocessing.input_size
        self.placement = fit_geometry(frame, self.target, preprocessing.fit)
        std, mean = preprocessing.std, preprocessing.mean
        self.register_buffer("scale", torch.tensor([1.0 / (255.0 * s) for s in std])[:, None, None])
        self.register_buffer("shift", torch.tensor([-m / s for m, s in zip(mean, std, strict=True)])[:, None, None])

    def levels(self, frames: Tensor) -> Tensor:
        """Return frames (N, H, W, 3) resized to the input: (N, 3, h, w) float32, rounded to whole levels of 255."""
        left, top, right, bottom = self.placement.cut
        part = frames[:, top:bottom, left:right].permute(0, 3, 1, 2).to(torch.float32)
        if tuple(part.shape[2:]) != self.placement.size:
            # The device has no uint8 resize kernel: use float32 and round to the host's levels.
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
    """Return the weight of each cell's heat for each pixel of one axis: (pixels, cells), float32.

    Bilinear between the centres of cells, constant beyond the outermost centre, 0 for pixels whose centre lies outside
    the grid.

    Args:
        near: left or top edge of the rectangle that the cells cover, in pixels; may be negative.
        far: its right or bottom edge; may be larger than the frame.
        cells: number of cells along the axis.
        pixels: number of pixels along the axis.
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
    """Overlays heat maps on frames of one size."""

    down: Tensor
    across: Tensor
    table: Tensor

    def __init__(self, table: LevelTable, region: Box, grid: tuple[int, int], frame: tuple[int, int]) -> None:
        """Create the overlay; ``region`` is the rectangle of the frame that the grid covers."""
        super().__init__()
        if table.shape != (256, 4) or table.dtype != np.uint8:
            message = f"the level table is {table.dtype} {table.shape}; it must be uint8 (256, 4)"
            raise ValueError(message)
        self.register_buffer("down", upsample_heat(region.top, region.bottom, grid[0], frame[0]))
        self.register_buffer("across", upsample_heat(region.left, region.right, grid[1], frame[1]).t().contiguous())
        self.register_buffer("table", torch.from_numpy(table.copy()))

    def forward(self, frames: Tensor, heat: Tensor) -> Tensor:
        """Return frames (N, H, W, 3) with their heat maps (N, h, w) overlaid: uint8 (N, 3, H, W)."""
        wide = torch.matmul(heat.clamp(0.0, 1.0) * 255.0, self.across)
        levels = torch.matmul(self.down, wide).round().to(torch.int32)
        effects = self.table.index_select(0, levels.flatten()).view(*levels.shape, 4).permute(0, 3, 1, 2)
        kept_part = frames.permute(0, 3, 1, 2).to(torch.float32) * effects[:, 3:].to(torch.float32) * (1.0 / 255.0)
        return (kept_part.round() + effects[:, :3]).clamp(0.0, 255.0).to(torch.uint8).contiguous()


def blend_patch(image: Tensor, tile: Tensor, stamp: ImagePatch) -> Tensor:
    """Return an image (3, H, W) with a stamp on it; ``tile`` is the RGBA stamp (h, w, 4), on the image's device."""
    marked = image.clone()
    part = marked[:, stamp.top : stamp.top + tile.shape[0], stamp.left : stamp.left + tile.shape[1]]
    planes = tile[: part.shape[1], : part.shape[2]].permute(2, 0, 1).to(torch.float32)
    part.copy_((part * planes[3:] * (1.0 / 255.0)).round().add_(planes[:3]).clamp_(0.0, 255.0))
    return marked


def encode_jpeg(images: Sequence[Tensor], quality: int) -> list[bytes]:
    """Return images (3, H, W) as JPEG: encoded by nvJPEG on a GPU, by libjpeg on the CPU.

    On a GPU, call it within ``encoder_stream``; the bytes are complete when it returns.
    """
    from torchvision.io import encode_jpeg

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torchvision warns from 0.29 on
        packed = encode_jpeg(list(images), quality)
    return [encoded.cpu().numpy().tobytes() for encoded in packed]
