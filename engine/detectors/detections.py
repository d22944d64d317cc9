"""Selects boxes from a detector's candidates, and finds the anchor of a missed object."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from engine.detectors.outputs import Candidates
from pipeline.errors import ConfigError

MAX_BOXES: Final = 300
"""Maximum number of boxes per image."""
_MAX_CANDIDATES: Final = 4000
"""Number of highest scored candidates that enter the non-maximum suppression."""


@dataclass(frozen=True, eq=False)
class Detections:
    """The boxes of one image, best first."""

    boxes: Tensor
    """Boxes, (M, 4) float32: left, top, right, bottom in pixels of the network's input, not clipped."""
    scores: Tensor
    """Score of each box, (M,) float32, 0 to 1."""
    classes: Tensor
    """Class of each box, (M,) int64."""
    anchors: Tensor
    """Anchor number of each box, (M,) int64; ``Layout.locate`` returns its position."""

    def __len__(self) -> int:
        return len(self.scores)

    def only(self, chosen: Tensor) -> Detections:
        """Return the boxes that ``chosen`` selects: indices, or a mask (M,) bool."""
        return Detections(self.boxes[chosen], self.scores[chosen], self.classes[chosen], self.anchors[chosen])


def select(
    candidates: Candidates, image: int = 0, *, score: float = 0.3, iou: float = 0.45, limit: int = MAX_BOXES
) -> Detections:
    """Return the boxes of one image above a score, after non-maximum suppression per class.

    Args:
        candidates: the boxes of a batch.
        image: index in the batch.
        score: lowest score, 0 to 1. A NaN score is never a detection.
        iou: boxes of one class that overlap more than this are the same object.
        limit: largest number of boxes.
    """
    from torchvision.ops import batched_nms

    log_scores = candidates.log_scores[image]
    anchors, classes = torch.nonzero(log_scores > math.log(max(score, 1e-12)), as_tuple=True)
    found = log_scores[anchors, classes]
    best = found.topk(min(len(found), _MAX_CANDIDATES)).indices
    anchors, classes, found = anchors[best], classes[best], found[best]
    boxes = candidates.boxes[image][anchors]
    finite = boxes.isfinite().all(dim=1)
    anchors, classes, found, boxes = anchors[finite], classes[finite], found[finite], boxes[finite]
    kept = batched_nms(boxes, found, classes, iou)[:limit]
    return Detections(boxes[kept], found[kept].exp(), classes[kept], anchors[kept])


@dataclass(frozen=True, slots=True)
class Missed:
    """The anchor that comes closest to detecting a missed object."""

    anchor: int
    """The anchor's number; ``Layout.locate`` returns its position."""
    score: float
    """The anchor's score for the class, 0 to 1."""
    iou: float
    """IoU of the anchor's box and the object's box, 0 to 1."""


PLACE_IOU: Final = 0.1
"""Minimum IoU of an anchor's box and a place, if any anchor reaches it."""


def missed_anchor(candidates: Candidates, box: Tensor, class_index: int, image: int = 0) -> Missed:
    """Return the anchor with the highest product of class score and IoU with ``box``.

    Anchors with an IoU below ``PLACE_IOU`` are considered only if no anchor reaches it: scores span many decades, so
    another object could win although it overlaps the box only at an edge.

    Args:
        candidates: the boxes of a batch.
        box: (4,) left, top, right, bottom in pixels of the network's input.
        class_index: 0 to K - 1.
        image: index in the batch.

    Raises:
        ConfigError: the class does not exist, the box is empty, or no candidate overlaps the box.
    """
    classes = candidates.log_scores.shape[2]
    if not 0 <= class_index < classes:
        raise ConfigError(f"class {class_index}: the detector has {classes} classes; use 0 to {classes - 1}")
    left, top, right, bottom = (float(v) for v in box)
    if not (right > left and bottom > top):
        raise ConfigError(
            f"box {left:g},{top:g},{right:g},{bottom:g}: is empty; left must be less than right, and top less than "
            "bottom"
        )
    from torchvision.ops import box_iou

    overlaps = box_iou(candidates.boxes[image], box.to(candidates.boxes)[None])[:, 0].nan_to_num(0.0)
    log_scores = candidates.log_scores[image, :, class_index].nan_to_num(-math.inf, neginf=-math.inf)
    if bool((overlaps >= PLACE_IOU).any()):
        overlaps = torch.where(overlaps >= PLACE_IOU, overlaps, 0.0)
    ranks = log_scores + overlaps.log()
    anchor = int(ranks.argmax())
    if not math.isfinite(float(ranks[anchor])):
        raise ConfigError(
            f"box {left:g},{top:g},{right:g},{bottom:g}: no candidate of the detector overlaps it; use a box "
            "inside the image"
        )
    return Missed(anchor, float(log_scores[anchor].exp()), float(overlaps[anchor]))
