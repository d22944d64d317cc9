"""The losses of YOLOX: IoU, objectness, classes, and in the last epochs the L1 distance of boxes.

Source: Ge et al., *YOLOX: Exceeding YOLO Series in 2021*, arXiv:2107.08430; the IoU loss follows Yu et al.,
*UnitBox*, arXiv:1608.01471, with squared IoU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.detectors.layouts import YoloxLayout
from engine.finetuning.detection.assignment import Anchors, Assignment, Objects, assign, make_anchors

OVERLAP_WEIGHT: Final = 5.0
"""Weight of the IoU loss."""


@dataclass(frozen=True, eq=False)
class _Predictions:
    """Predictions of a batch for all anchors."""

    anchors: Anchors
    boxes: Tensor
    """Predicted boxes in pixels, (N, A, 4)."""
    values: Tensor
    """Raw box values, (N, A, 4)."""
    class_logits: Tensor
    """Logits of the classes, (N, A, K)."""
    objectness: Tensor
    """Logits of the objectness, (N, A)."""


def yolox_loss(
    layout: YoloxLayout, maps: Sequence[Tensor], objects: Sequence[Objects], image_size: tuple[int, int], *,
    with_distance: bool,
) -> Tensor:  # fmt: skip
    """Return the loss of a batch: the sum over anchors, divided by the number of assigned anchors.

    Args:
        layout: the layout of the network's maps.
        maps: the network's output.
        objects: objects of each image, possibly none.
        image_size: height and width of the input in pixels.
        with_distance: True: add the L1 distance of the raw box values, as the paper does in the last epochs.
    """
    predictions = _predictions(layout, maps, image_size)
    scores = (predictions.class_logits.sigmoid() * predictions.objectness.sigmoid()[..., None]).sqrt()
    assignments = [assign(predictions.anchors, one, predictions.boxes[k], scores[k]) for k, one in enumerate(objects)]
    total = predictions.objectness.new_zeros(())
    for k, (one, assignment) in enumerate(zip(objects, assignments, strict=True)):
        total = total + _image_loss(predictions, k, one, assignment, with_distance=with_distance)
    return total / max(1, sum(len(assignment.anchors) for assignment in assignments))


def _predictions(layout: YoloxLayout, maps: Sequence[Tensor], image_size: tuple[int, int]) -> _Predictions:
    def flat(level_map: Tensor) -> Tensor:
        return level_map.float().flatten(2).transpose(1, 2)

    levels = layout.levels
    boxes = []
    for number, level in enumerate(levels):
        values = maps[level.box_map].float().permute(0, 2, 3, 1)[:, :, :, None]
        boxes.append(layout.level_boxes(number, values, image_size).flatten(1, 3))
    grids = layout.grids(maps)
    objectness = [flat(maps[level.objectness_map])[..., 0] for level in levels if level.objectness_map is not None]
    return _Predictions(
        make_anchors(grids, [level.stride for level in levels]),
        torch.cat(boxes, 1),
        torch.cat([flat(maps[level.box_map]) for level in levels], 1),
        torch.cat([flat(maps[level.class_map]) for level in levels], 1),
        torch.cat(objectness, 1),
    )


def _image_loss(
    predictions: _Predictions, image: int, objects: Objects, assignment: Assignment, *, with_distance: bool
) -> Tensor:
    """Return the sum of the losses of one image's anchors."""
    numbers = assignment.anchors
    is_object = torch.zeros_like(predictions.objectness[image])
    is_object[numbers] = 1.0
    loss = F.binary_cross_entropy_with_logits(predictions.objectness[image], is_object, reduction="sum")
    if not len(numbers):
        return loss
    boxes, classes = objects.boxes[assignment.objects], objects.classes[assignment.objects]
    logits = predictions.class_logits[image, numbers]
    # The target is the IoU, so that the score also ranks boxes by their position.
    wanted = F.one_hot(classes, logits.shape[1]) * assignment.overlaps[:, None]
    loss = loss + F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
    loss = loss + OVERLAP_WEIGHT * (1.0 - paired_overlaps(predictions.boxes[image, numbers], boxes) ** 2).sum()
    if with_distance:
        targets = box_values(boxes, predictions.anchors, numbers)
        loss = loss + F.l1_loss(predictions.values[image, numbers], targets, reduction="sum")
    return loss


def paired_overlaps(first: Tensor, second: Tensor) -> Tensor:
    """Return the IoU of each pair of boxes (P, 4), (P,)."""
    corner, far = torch.maximum(first[:, :2], second[:, :2]), torch.minimum(first[:, 2:], second[:, 2:])
    common = (far - corner).clamp(min=0).prod(1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first, second)]
    return common / (areas[0] + areas[1] - common + 1e-9)


def box_values(boxes: Tensor, anchors: Anchors, numbers: Tensor) -> Tensor:
    """Return the raw values with which anchors would predict the given boxes (P, 4)."""
    stride = anchors.strides[numbers, None]
    cell = anchors.centres[numbers] / stride - 0.5
    middle, size = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-3)
    return torch.cat((middle / stride - cell, (size / stride).log()), 1)
