"""Image operations on the device: resize and normalise, heat map overlay, stamps, JPEG.

The arithmetic is that of the host (``engine.models.preprocess`` and the renderer's table), within 1 of 255 levels for
the input and 2 for the overlay. All operations have fixed shapes, run on any device, and can be captured in a CUDA
graph. Images are planar, uint8 (N, 3, H, W); frames are interleaved, (N, H, W, 3).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.models.preprocess import BORDER, Preprocessing, fit_geometry
from pipeline.device_image import YuvColours
from pipeline.frames import Box
from pipeline.image_patch import ImagePatch
from pipeline.input_area import InputArea, painted_runs

_HALF_UP = 2.0**-10
"""Added to levels before rounding, as in the renderer: otherwise the last bit of a sum would decide how n + 0.5 is
rounded, and device and host could differ."""

LevelTable = npt.NDArray[np.uint8]
"""Effect of each of 256 heat levels on a pixel, uint8 (256, 4): red, green and blue to add, and the fraction of the
pixel to keep, in 1/255."""


def resize_weights(length: int, target: int) -> Tensor:
    """Return the weights of torch's antialiased bilinear resize of an axis: float16 (``length``, ``target``)."""
    each = torch.eye(length).view(1, length, 1, length)
    return F.interpolate(each, size=(1, target), mode="bilinear", antialias=True)[0, :, 0].to(torch.float16)


class FramePreprocessor(nn.Module):
    """Converts frames of one size to the network's normalised input."""

    scale: Tensor
    shift: Tensor
    painted: Tensor | None
    """Mask of pixels that are painted over, bool (height, width) of the input area."""
    colour: Tensor
    across: Tensor | None
    down: Tensor | None

    def __init__(
        self,
        preprocessing: Preprocessing,
        frame: tuple[int, int],
        area: InputArea | None = None,
        *,
        by_products: bool = False,
    ) -> None:
        """Create the conversion of frames of size (height, width).

        Args:
            preprocessing: size, fit and normalisation of the input.
            frame: height and width of the frames in pixels.
            area: the part of the frames that the network gets; None for the whole frame.
            by_products: True: frames are resized by two matrix products in half precision, for tensor cores; False:
                by torch's loop over pixels in float32.
        """
        super().__init__()
        self.target = preprocessing.input_size
        self.placement = fit_geometry(frame, self.target, preprocessing.fit, None if area is None else area.cut)
        left, top, right, bottom = self.placement.cut
        rows, columns = self.placement.size
        resizes = by_products and (rows, columns) != (bottom - top, right - left)
        self.register_buffer("across", resize_weights(right - left, columns) if resizes else None)
        self.register_buffer("down", resize_weights(bottom - top, rows).T.contiguous() if resizes else None)
        self.register_buffer("painted", None if area is None else self._painted(area))
        self.register_buffer("colour", torch.tensor(preprocessing.mean_colour, dtype=torch.float32)[:, None, None])
        std, mean = preprocessing.std, preprocessing.mean
        self.register_buffer("scale", torch.tensor([1.0 / (255.0 * s) for s in std])[:, None, None])
        self.register_buffer("shift", torch.tensor([-m / s for m, s in zip(mean, std, strict=True)])[:, None, None])

    def _painted(self, area: InputArea) -> Tensor | None:
        """Return the mask of painted pixels in the input area; None if there are none."""
        near, above, far, below = area.cut
        painted = torch.zeros((below - above, far - near), dtype=torch.bool)
        for start, stop in painted_runs(area):
            painted.view(-1)[start:stop] = True
        left, top, right, bottom = self.placement.cut
        painted = painted[top - above : bottom - above, left - near : right - near]
        return painted if bool(painted.any()) else None

    def levels(self, frames: Tensor) -> Tensor:
        """Return frames (N, H, W, 3) resized to the input: (N, 3, h, w) float32, rounded to whole levels of 255."""
        left, top, right, bottom = self.placement.cut
        part = frames[:, top:bottom, left:right].permute(0, 3, 1, 2).to(torch.float32)
        if self.painted is not None:
            part = torch.where(self.painted, self.colour, part)
        if self.across is not None and self.down is not None:
            # Levels up to 255 are exact in half precision; weights and results are off by a quarter of a level.
            wide = torch.matmul(part.to(torch.float16), self.across)
            part = torch.matmul(self.down, wide).round().clamp(0.0, 255.0).to(torch.float32)
        elif tuple(part.shape[2:]) != self.placement.size:
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


class Nv12ToRgb(nn.Module):
    """Converts NV12 frames to RGB as FFmpeg does on the host: the same integers, so the same levels.

    Coefficients have 13 bits, each product is rounded down, and a chroma value covers 2x2 pixels (swscale's conversion
    of 8-bit frames on x86; those of other processors differ by up to 2 levels).
    """

    def __init__(self, colours: YuvColours) -> None:
        """Create the conversion."""
        super().__init__()
        kr, kb = colours.kr, colours.kb
        kg = 1.0 - kr - kb
        wide = 65536 * 255 / 224  # chroma has 224 levels in the limited range
        exact = (2 * (1 - kr), 2 * (1 - kb) * kb / kg, 2 * (1 - kr) * kr / kg, 2 * (1 - kb))
        chroma = [round(value * wide) for value in exact]
        luma = 65536
        if colours.full_range:
            chroma = [value * 224 // 255 for value in chroma]
        else:
            luma = 65536 * 255 // 219
        red, green_u, green_v, blue = chroma
        self.luma = _thirteen_bits(luma)
        self.black = 0 if colours.full_range else 16
        self.red, self.blue = _thirteen_bits(red), _thirteen_bits(blue)
        self.green = (_thirteen_bits(-green_u), _thirteen_bits(-green_v))

    def forward(self, frames: Tensor) -> Tensor:
        """Return NV12 frames (N, H * 3 // 2, W) as RGB, uint8 (N, H, W, 3)."""
        height = frames.shape[1] * 2 // 3
        luma = frames[:, :height].to(torch.int32)
        u, v = (frames[:, height:, part::2].to(torch.int32) for part in (0, 1))
        y = (luma - self.black) * 8 * self.luma >> 16
        green = _product(u, self.green[0]) + _product(v, self.green[1])
        shown = torch.empty((*luma.shape, 3), dtype=torch.uint8, device=frames.device)
        # One channel at a time: together they would use three times the memory.
        for channel, colour in enumerate((_product(v, self.red), green, _product(u, self.blue))):
            shown[..., channel] = _over_pixels(colour).add_(y).clamp_(0, 255)
        return shown


def _thirteen_bits(coefficient: int) -> int:
    """Return a coefficient in 1/65536 as a multiple of 1/8192, rounded."""
    return (coefficient * 8192 + 0x8000) >> 16


def _product(chroma: Tensor, coefficient: int) -> Tensor:
    return (chroma - 128) * 8 * coefficient >> 16


def _over_pixels(chroma: Tensor) -> Tensor:
    """Return each chroma value (N, h, w) repeated over its 2x2 pixels (N, 2h, 2w), in new memory."""
    count, height, width = chroma.shape
    repeated = chroma[:, :, None, :, None].expand(count, height, 2, width, 2)
    return repeated.clone(memory_format=torch.contiguous_format).view(count, 2 * height, 2 * width)


class AxisWeights(NamedTuple):
    """The two cells around each pixel of one axis, and their weights; both weights are 0 outside the grid."""

    lower: Tensor
    """Index of the lower cell of each pixel, int64 (pixels,)."""
    upper: Tensor
    lower_weight: Tensor
    """Weight of the lower cell of each pixel, float32 (pixels,)."""
    upper_weight: Tensor


def axis_weights(near: float, far: float, cells: int, pixels: int) -> AxisWeights:
    """Return the interpolation weights of each pixel of one axis.

    Bilinear between the centres of cells, constant beyond the outermost centre, 0 for pixels whose centre lies outside
    the grid.

    Args:
        near: left or top edge of the rectangle that the cells cover, in pixels; may be negative.
        far: its right or bottom edge; may be larger than the frame.
        cells: number of cells along the axis.
        pixels: number of pixels along the axis.
    """
    centres = np.arange(pixels, dtype=np.float64) + 0.5
    position = np.clip((centres - near) * (cells / max(far - near, 1e-9)) - 0.5, 0.0, cells - 1.0)
    lower = np.floor(position).astype(np.int64)
    fraction = (position - lower).astype(np.float32)
    inside = ((centres >= near) & (centres < far)).astype(np.float32)
    return AxisWeights(
        torch.from_numpy(lower),
        torch.from_numpy(np.minimum(lower + 1, cells - 1)),
        torch.from_numpy(inside * (np.float32(1.0) - fraction)),
        torch.from_numpy(inside * fraction),
    )


class HeatmapBlender(nn.Module):
    """Overlays heat maps on frames of one size.

    The heat is interpolated by selecting cells, not by matrix products: in half precision a GPU rounds the factors of
    float32 products to 10 bits (TF32), which is up to 5 levels of a pixel.
    """

    table: Tensor

    def __init__(self, table: LevelTable, region: Box, grid: tuple[int, int], frame: tuple[int, int]) -> None:
        """Create the overlay; ``region`` is the rectangle of the frame that the grid covers."""
        super().__init__()
        if table.shape != (256, 4) or table.dtype != np.uint8:
            message = f"the level table is {table.dtype} {table.shape}; it must be uint8 (256, 4)"
            raise ValueError(message)
        down = axis_weights(region.top, region.bottom, grid[0], frame[0])
        across = axis_weights(region.left, region.right, grid[1], frame[1])
        for axis, weights in (("down", down), ("across", across)):
            for name, tensor in weights._asdict().items():
                self.register_buffer(f"{axis}_{name}", tensor)
        self.register_buffer("table", torch.from_numpy(table.copy()))

    def forward(self, frames: Tensor, heat: Tensor) -> Tensor:
        """Return frames (N, H, W, 3) with their heat maps (N, h, w) overlaid: uint8 (N, 3, H, W)."""
        wide = self._interpolate(heat.clamp(0.0, 1.0) * 255.0, "across", 2)
        wide = self._interpolate(wide, "down", 1) + _HALF_UP
        levels = wide.round().clamp(0.0, 255.0).to(torch.int32)
        effects = self.table.index_select(0, levels.flatten()).view(*levels.shape, 4).permute(0, 3, 1, 2)
        kept_part = frames.permute(0, 3, 1, 2).to(torch.float32) * effects[:, 3:].to(torch.float32) * (1.0 / 255.0)
        return (kept_part.round() + effects[:, :3]).clamp(0.0, 255.0).to(torch.uint8).contiguous()

    def _interpolate(self, values: Tensor, axis: str, dimension: int) -> Tensor:
        """Interpolate one dimension of (N, rows, columns) by the weights of an axis."""
        shape = (-1, 1) if dimension == 1 else (-1,)
        weights = AxisWeights(*(getattr(self, f"{axis}_{name}") for name in AxisWeights._fields))
        first = values.index_select(dimension, weights.lower) * weights.lower_weight.view(shape)
        return first + values.index_select(dimension, weights.upper) * weights.upper_weight.view(shape)


def blend_patches(image: Tensor, patches: Sequence[tuple[Tensor, ImagePatch]]) -> Tensor:
    """Return an image (3, H, W) with patches on it, in order; each comes with its tile on the image's device."""
    marked = image.clone()
    for tile, patch in patches:
        part = marked[:, patch.top : patch.top + tile.shape[0], patch.left : patch.left + tile.shape[1]]
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
