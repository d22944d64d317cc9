"""Masks the hottest area of the network's input, for the live deletion check.

The hottest cells are masked: as many as make up a given fraction of the grid (at least one), except for cells of heat
0. Each cell stands for its rectangle of the input. The rectangles are filled with the mean colour of the rest of the
input, or with a blurred copy of the input (8x8 averages). This is one step of the *Deletion* metric (Petsiuk, Das and
Saenko, RISE, BMVC 2018).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.frames import Heat
from pipeline.ports import MaskingOptions

_BLUR_CELLS = 8
"""Numbers of rows and columns of averages from which the blur is interpolated."""


def hottest_cells(heat: Heat, area: float) -> Tensor:
    """Return the cells to mask.

    Args:
        heat: heat map, float32 (rows, columns) in [0, 1].
        area: fraction of the cells to mask, in (0, 1].

    Returns:
        bool (rows, columns).
    """
    cells = torch.from_numpy(heat.copy())
    count = max(1, math.floor(area * cells.numel() + 1e-6))
    chosen = torch.zeros(cells.numel(), dtype=torch.bool)
    chosen[cells.flatten().topk(count).indices] = True
    return chosen.view(cells.shape) & (cells > 0)


def masked_images(images: Tensor, cells: Tensor, masking: MaskingOptions) -> Tensor:
    """Return normalised images (N, 3, H, W) with the rectangles of some cells replaced.

    Args:
        images: normalised network input; not changed.
        cells: bool (rows, columns), True where the input is replaced.
        masking: how the rectangles are filled.
    """
    height, width = images.shape[2:]
    mask = F.interpolate(cells[None, None].to(images.device, images.dtype), size=(height, width), mode="nearest")
    visible = 1 - mask
    if masking.fill == "blur":
        small = F.adaptive_avg_pool2d(images, _BLUR_CELLS)
        fill = F.interpolate(small, size=(height, width), mode="bilinear", align_corners=False)
    else:
        fill = (images * visible).sum((2, 3), keepdim=True) / visible.sum().clamp_min(1)
    return (images * visible + fill * mask).contiguous(memory_format=torch.channels_last)
