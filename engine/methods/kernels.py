"""The spatial masks of Recipro-CAM.

Source: Byun and Lee, arXiv:2209.14074, section 3: one-hot masks, or masks that spread the cell's vector over its
neighbours with the weights of a 3x3 Gaussian, cut off at the border and not renormalised.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

import torch
from torch import Tensor

from pipeline.errors import ConfigError, did_you_mean

Kernel = Literal["point", "gaussian"]

STENCILS: Final[dict[str, tuple[tuple[float, ...], ...]]] = {
    "point": ((1.0,),),
    "gaussian": ((1 / 16, 2 / 16, 1 / 16), (2 / 16, 4 / 16, 2 / 16), (1 / 16, 2 / 16, 1 / 16)),
}
"""Weights of each kernel, row by row; the centre is the masked cell."""


def check_kernel(name: str) -> Kernel:
    """Return ``name`` as a kernel.

    Raises:
        ConfigError: the kernel is unknown; the message suggests the nearest name.
    """
    for known in get_args(Kernel):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise ConfigError(f"kernel {name!r} is unknown; choose from {', '.join(STENCILS)}.{did_you_mean(name, STENCILS)}")


def stencil(kernel: Kernel) -> Tensor:
    """Return the kernel's weights: float32, (1, 1) or (3, 3)."""
    return torch.tensor(STENCILS[kernel])


def masks(kernel: Kernel, grid: tuple[int, int], cells: Tensor) -> Tensor:
    """Return the masks of some cells: float32, (len(cells), rows, columns), on the device of ``cells``.

    Args:
        kernel: the weights around the masked cell.
        grid: rows and columns.
        cells: int64 indices of cells in row-major order.
    """
    # Comparisons instead of indexed writes: they copy nothing to the device, so a CUDA graph can capture them.
    down, across = (
        torch.arange(size, device=cells.device) - centre[:, None]
        for size, centre in zip(grid, (cells // grid[1], cells % grid[1]), strict=True)
    )
    weighted = torch.zeros((len(cells), *grid), device=cells.device)
    reach = len(STENCILS[kernel]) // 2
    for dy, weights in enumerate(STENCILS[kernel], start=-reach):
        for dx, weight in enumerate(weights, start=-reach):
            weighted += ((down == dy)[:, :, None] & (across == dx)[:, None]) * weight
    return weighted
