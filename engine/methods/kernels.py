"""The masks of Recipro-CAM: which share of a cell's vector lands on which cell.

Source: Byun and Lee, arXiv:2209.14074, section 3: one-hot masks, or the vector spread by a 3x3 Gaussian, cut off at
the border and not renormalised.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

import torch
from torch import Tensor

from pipeline.errors import ConfigError, nearest

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
    raise ConfigError(f"kernel {name!r} is unknown; choose from {', '.join(STENCILS)}.{nearest(name, STENCILS)}")


def stencil(kernel: Kernel) -> Tensor:
    """Return the kernel's weights, float32, (1, 1) or (3, 3)."""
    return torch.tensor(STENCILS[kernel])


def masks(kernel: Kernel, grid: tuple[int, int], cells: Tensor) -> Tensor:
    """Return the masks of some cells: float32, (len(cells), rows, columns).

    Args:
        kernel: the spread of a cell's own vector.
        grid: rows and columns.
        cells: indices of cells, counted row by row.
    """
    rows, columns = grid
    weights = stencil(kernel)
    reach = weights.shape[0] // 2
    out = torch.zeros((len(cells), rows + 2 * reach, columns + 2 * reach))
    which = torch.arange(len(cells))
    for dy in range(weights.shape[0]):
        for dx in range(weights.shape[1]):
            out[which, cells // columns + dy, cells % columns + dx] = weights[dy, dx]
    return out[:, reach : reach + rows, reach : reach + columns]
