"""A network's input without its hottest area: what a live deletion check shows the network. Pure.

The hottest cells are taken, as many as make up a share of the grid (at least one), and of these only those that have
any heat at all; each stands for its rectangle of the input. The rest of the input is left as it is. What takes their
place is either the mean colour of what is left, or the input blurred over an eighth of its sides, in the way of
*Deletion* (Petsiuk, Das and Saenko, RISE, BMVC 2018), of which this is one step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.frames import Heat
from pipeline.ports import MaskingOptions

_BLUR_CELLS = 8
"""The blur keeps so many values along each side."""


def hottest_cells(heat: Heat, area: float) -> Tensor:
    """Return which cells are masked, bool (rows, columns)."""
    cells = torch.from_numpy(heat.copy())
    count = max(1, math.floor(area * cells.numel() + 1e-6))
    chosen = torch.zeros(cells.numel(), dtype=torch.bool)
    chosen[cells.flatten().topk(count).indices] = True
    return chosen.view(cells.shape) & (cells > 0)


def masked_images(images: Tensor, cells: Tensor, masking: MaskingOptions) -> Tensor:
    """Return normalised images (N, 3, H, W) with the rectangles of some cells replaced.

    Args:
        images: as the network takes them; left as they are.
        cells: bool (rows, columns).
        masking: what takes their place.
    """
    height, width = images.shape[2:]
    mask = F.interpolate(cells[None, None].to(images.device, images.dtype), size=(height, width), mode="nearest")
    kept = 1 - mask
    if masking.fill == "blur":
        small = F.adaptive_avg_pool2d(images, _BLUR_CELLS)
        fill = F.interpolate(small, size=(height, width), mode="bilinear", align_corners=False)
    else:
        fill = (images * kept).sum((2, 3), keepdim=True) / kept.sum().clamp_min(1)
    return (images * kept + fill * mask).contiguous(memory_format=torch.channels_last)
