"""The masks of Recipro-CAM: which share of a cell's vector lands on which cell.

Source: Byun and Lee, arXiv:2209.14074, section 3: one-hot masks, or the vector spread by a 3x3 Gaussian, cut off at
the border and not renormalised.
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
"""Each kernel as rows of weights around the masked cell."""


def check_kernel(name: str) -> Kernel:
    """Return ``name`` if it is a kernel; raise ConfigError with the nearest right one otherwise."""
    for known in get_args(Kernel):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise ConfigError(f"kernel {name!r} is unknown; choose from {', '.join(STENCILS)}.{did_you_mean(name, STENCILS)}")


def stencil(kernel: Kernel) -> Tensor:
    """Return the kernel's weights, float32, (1, 1) or (3, 3)."""
    return torch.tensor(STENCILS[kernel])


def masks(kernel: Kernel, grid: tuple[int, int], cells: Tensor) -> Tensor:
    """Return the masks of some cells, where the cells are: float32, (len(cells), rows, columns).

    Args:
        kernel: the spread of a cell's own vector.
        grid: rows and columns.
        cells: indices of cells, counted row by row.
    """
    # Compared, not written to: nothing is copied to a device, and a CUDA graph may be capturing.
    down, across = (
        torch.arange(size, device=cells.device) - place[:, None]
        for size, place in zip(grid, (cells // grid[1], cells % grid[1]), strict=True)
    )
    told = torch.zeros((len(cells), *grid), device=cells.device)
    reach = len(STENCILS[kernel]) // 2
    for dy, weights in enumerate(STENCILS[kernel], start=-reach):
        for dx, weight in enumerate(weights, start=-reach):
            told += ((down == dy)[:, :, None] & (across == dx)[:, None]) * weight
    return told
