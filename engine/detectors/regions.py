"""Regions of the input and the feature cells that belong to them.

The input is divided into square regions of ``cell_px`` pixels, row by row from the upper left corner. A feature cell of
stride s covers s x s pixels; it belongs to each region that its area intersects. So a cell of stride 32 belongs to all
sixteen 8-pixel regions inside it, and a region of 32 pixels has sixteen cells of stride 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from pipeline.errors import ConfigError

Mode = Literal["keep", "drop"]
"""``keep``: all features outside the region are set to zero. ``drop``: the region's features are set to zero."""

MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True, slots=True)
class Regions:
    """The regions of an input."""

    image_size: tuple[int, int]
    """Height and width in pixels."""
    cell_px: int
    """Side of a region in pixels."""

    def __post_init__(self) -> None:
        if self.cell_px < 1:
            raise ConfigError(f"cell_px {self.cell_px}: must be at least 1; use 8, 16, 32 or 64")

    @property
    def grid(self) -> tuple[int, int]:
        """Numbers of rows and columns of regions; the last row and column may extend beyond the input."""
        height, width = self.image_size
        return -(-height // self.cell_px), -(-width // self.cell_px)

    def __len__(self) -> int:
        return self.grid[0] * self.grid[1]

    def span(self, index: int, stride: int, size: int) -> tuple[int, int]:
        """Return the feature rows (or columns) ``start, stop`` of the regions in row (or column) ``index``.

        Args:
            index: row or column of regions.
            stride: pixels per feature cell.
            size: number of feature rows or columns.
        """
        start = index * self.cell_px // stride
        stop = -(-(index + 1) * self.cell_px // stride)
        return min(start, size), min(stop, size)

    def mask(self, stride: int, size: tuple[int, int]) -> Tensor:
        """Return a mask (regions, h, w) bool: True where a feature cell belongs to a region."""
        rows, columns = (
            torch.stack([_marked(self.span(i, stride, cells), cells) for i in range(count)])
            for count, cells in zip(self.grid, size, strict=True)
        )
        marked: Tensor = rows[:, None, :, None] & columns[None, :, None, :]
        return marked.flatten(0, 1)


def grid_stride(image_size: tuple[int, int], grid: tuple[int, int]) -> int | None:
    """Return the pixels per cell of a map: the smallest power of two that fits; None if none fits.

    Args:
        image_size: height and width in pixels of the input.
        grid: rows and columns of the map.
    """
    height, width = image_size
    stride = 1
    while stride < 2 * max(image_size):
        if (-(-height // stride), -(-width // stride)) == grid:
            return stride
        stride *= 2
    return None


def _marked(span: tuple[int, int], size: int) -> Tensor:
    positions = torch.arange(size)
    return (positions >= span[0]) & (positions < span[1])
