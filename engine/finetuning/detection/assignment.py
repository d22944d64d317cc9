"""SimOTA: assigns objects to the anchors that learn them.

Source: Ge, Liu, Wang, Li and Sun, *YOLOX: Exceeding YOLO Series in 2021*, arXiv:2107.08430, section 2.1; the dynamic
number of anchors per object is from Ge et al., *OTA*, arXiv:2103.14259.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou

CENTRE_RADIUS: Final = 2.5
"""Half the side of the square around an object's centre, in strides."""
IOU_WEIGHT: Final = 3.0
"""Weight of the IoU in the cost of an anchor."""
MAX_ANCHORS: Final = 10
"""Maximum number of anchors per object; the number is the sum of this many highest IoUs."""
_FAR: Final = 1e5
"""Extra cost of an anchor that is not both inside the box and near its centre."""


@dataclass(frozen=True, eq=False)
class Anchors:
    """The anchor points of a network for one input size: one per cell of each level."""

    centres: Tensor
    """Centre (x, y) of each anchor in pixels, (A, 2) float32."""
    strides: Tensor
    """Stride of each anchor's level in pixels, (A,) float32."""


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of one image, in pixels of the network's input."""

    boxes: Tensor
    """Boxes, (M, 4) float32: left, top, right, bottom."""
    classes: Tensor
    """Class of each object, (M,) int64."""


@dataclass(frozen=True, eq=False)
class Assignment:
    """The anchors of one image to which objects are assigned."""

    anchors: Tensor
    """Numbers of the anchors, ascending, (P,) int64."""
    objects: Tensor
    """Index of each anchor's object, (P,) int64."""
    overlaps: Tensor
    """IoU of predicted box and object's box, (P,) float32."""


def make_anchors(grids: Sequence[tuple[int, int]], strides: Sequence[int]) -> Anchors:
    """Create the anchor points, in the order in which ``Layout`` numbers anchors.

    Args:
        grids: rows and columns of each level.
        strides: pixels per cell of each level.
    """
    centres, sizes = [], []
    for (rows, columns), stride in zip(grids, strides, strict=True):
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        centres.append((torch.stack((x, y), -1).reshape(-1, 2) + 0.5) * stride)
        sizes.append(torch.full((rows * columns,), float(stride)))
    return Anchors(torch.cat(centres).float(), torch.cat(sizes))


@torch.no_grad()
def assign(anchors: Anchors, objects: Objects, predicted_boxes: Tensor, scores: Tensor) -> Assignment:
    """Assign the objects of one image to anchors.

    Candidates are anchors whose centre is inside a box or within ``CENTRE_RADIUS`` strides of its centre. Each object
    is assigned to the anchors with the lowest cost: the binary cross-entropy of the classes, plus ``IOU_WEIGHT`` times
    the negative logarithm of the IoU. If an anchor has two objects, it keeps the object with the lower cost.

    Args:
        anchors: the anchor points.
        objects: the objects of the image.
        predicted_boxes: (A, 4) in pixels of the input.
        scores: (A, K), 0 to 1.
    """
    candidates, preferred = _candidates(anchors, objects.boxes)
    if not len(candidates):
        return Assignment(candidates, candidates, objects.boxes.new_zeros(0))
    overlaps = box_iou(objects.boxes, predicted_boxes[candidates])
    wanted = F.one_hot(objects.classes, scores.shape[1]).float()[:, None].expand(-1, len(candidates), -1)
    class_cost = F.binary_cross_entropy(scores[candidates].expand_as(wanted), wanted, reduction="none").sum(-1)
    cost = class_cost - IOU_WEIGHT * (overlaps + 1e-8).log() + _FAR * ~preferred
    chosen, rows = _choose(cost, overlaps)
    return Assignment(candidates[chosen], rows, overlaps[rows, chosen])


def _candidates(anchors: Anchors, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the candidates (C,), and whether each is inside a box and near its centre (M, C)."""
    centres, strides = anchors.centres[None], anchors.strides[None, :, None]
    inside = ((centres > boxes[:, None, :2]) & (centres < boxes[:, None, 2:])).all(-1)
    middle = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
    near = ((centres - middle).abs() < CENTRE_RADIUS * strides).all(-1)
    candidates = torch.nonzero((inside | near).any(0)).flatten()
    return candidates, (inside & near)[:, candidates]


def _choose(cost: Tensor, overlaps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the chosen columns of the cost matrix (M, C), ascending, and the row of each."""
    best = overlaps.topk(min(MAX_ANCHORS, overlaps.shape[1]), dim=1).values.sum(1)
    counts = best.int().clamp(min=1).tolist()
    matching = torch.zeros_like(cost, dtype=torch.bool)
    for row, count in enumerate(counts):
        matching[row, cost[row].topk(count, largest=False).indices] = True
    shared = matching.sum(0) > 1
    if bool(shared.any()):
        cheapest = cost.masked_fill(~matching, torch.inf)[:, shared].argmin(0)
        matching[:, shared] = F.one_hot(cheapest, len(cost)).T.bool()
    columns = torch.nonzero(matching.any(0)).flatten()
    return columns, matching[:, columns].int().argmax(0)
