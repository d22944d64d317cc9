"""Compares detected boxes with objects: hits, confused classes, misses, false alarms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from engine.detectors.detections import Detections
from engine.evaluation.detectors.matching import MIN_IOU
from engine.finetuning.detection.assignment import Objects

DEFAULT_SCORE: Final = 0.3
"""Default minimum score of a box, as in a stream, for images without objects."""

Corners = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


@dataclass(frozen=True, slots=True)
class FoundBox:
    """A detected box, matched with an object."""

    box: Corners
    label: int
    score: float
    truth: int | None
    """Index of the matched object, which may have another class; None: a false alarm."""


@dataclass(frozen=True, slots=True)
class ComparedImage:
    """The boxes and the objects of one image, in pixels of the network's input."""

    found: tuple[FoundBox, ...]
    """Best first."""
    objects: tuple[tuple[int, Corners], ...]
    """Class and box."""

    @property
    def hits(self) -> int:
        """Number of objects found with their class."""
        return sum(box.truth is not None and self.objects[box.truth][0] == box.label for box in self.found)

    @property
    def mistakes(self) -> int:
        """Number of objects that are missed or have a wrong class, plus number of false alarms."""
        false_alarms = sum(box.truth is None for box in self.found)
        return len(self.objects) - self.hits + false_alarms


def best_f1_score(detections: Sequence[Detections], objects: Sequence[Objects]) -> float:
    """Return the minimum score of a box that maximises F1 over all images and classes.

    Args:
        detections: detections of each image, best first.
        objects: objects of each image, in the same pixels.
    """
    total = sum(len(one.classes) for one in objects)
    scores = np.concatenate([one.scores.numpy() for one in detections] or [np.zeros(0)])
    if not total or not len(scores):
        return DEFAULT_SCORE
    hits = np.concatenate([
        _same_class(one, truth).numpy() >= 0 for one, truth in zip(detections, objects, strict=True)
    ])  # fmt: skip
    order = np.argsort(-scores, kind="stable")
    f1 = 2 * np.cumsum(hits[order]) / (np.arange(1, len(scores) + 1) + total)
    best = int(f1.argmax())
    return float(scores[order][best]) if f1[best] > 0 else DEFAULT_SCORE


def compare(detections: Detections, objects: Objects, score: float) -> ComparedImage:
    """Match the boxes of one image with its objects.

    Best first, each box is matched with the free object of its class that has the highest IoU, at least ``MIN_IOU``.
    Then the remaining boxes are matched with the remaining objects of any class.

    Args:
        detections: the boxes, best first.
        objects: annotated objects, in the same pixel coordinates as the boxes.
        score: minimum score of a box.
    """
    count = int((detections.scores >= score).sum())
    kept = Detections(
        detections.boxes[:count], detections.scores[:count], detections.classes[:count], detections.anchors[:count]
    )
    truth = _same_class(kept, objects)
    free = torch.ones(len(objects.classes), dtype=torch.bool)
    free[truth[truth >= 0]] = False
    overlaps = box_iou(kept.boxes, objects.boxes)
    for number in (truth < 0).nonzero()[:, 0].tolist():
        truth[number] = _take(overlaps[number], free)
    found = zip(kept.boxes.tolist(), kept.classes.tolist(), kept.scores.tolist(), truth.tolist(), strict=True)
    return ComparedImage(
        tuple(FoundBox((b[0], b[1], b[2], b[3]), label, value, index if index >= 0 else None)
              for b, label, value, index in found),
        tuple((label, (b[0], b[1], b[2], b[3]))
              for label, b in zip(objects.classes.tolist(), objects.boxes.tolist(), strict=True)),
    )  # fmt: skip


def box_confusion(images: Sequence[ComparedImage], classes: int) -> list[list[int]]:
    """Return counts by true class (row) and found class (column); the last ones are the background."""
    table = np.zeros((classes + 1, classes + 1), int)
    for image in images:
        missed = set(range(len(image.objects)))
        for box in image.found:
            if box.truth is None:
                table[classes, box.label] += 1
            else:
                table[image.objects[box.truth][0], box.label] += 1
                missed.discard(box.truth)
        for index in missed:
            table[image.objects[index][0], classes] += 1
    return [[int(count) for count in row] for row in table]


def _same_class(detections: Detections, objects: Objects) -> Tensor:
    """Return the matched object of the same class for each box, best first; -1: none."""
    truth = torch.full((len(detections),), -1, dtype=torch.int64)
    free = torch.ones(len(objects.classes), dtype=torch.bool)
    overlaps = box_iou(detections.boxes, objects.boxes)
    for number, label in enumerate(detections.classes.tolist()):
        truth[number] = _take(overlaps[number], free, objects.classes == label)
    return truth


def _take(overlaps: Tensor, free: Tensor, allowed: Tensor | None = None) -> int:
    """Take the free object with the highest IoU; return its index, -1 if none overlaps enough."""
    possible = free if allowed is None else free & allowed
    if not bool(possible.any()):
        return -1
    best = int(torch.where(possible, overlaps, -1.0).argmax())
    if float(overlaps[best]) < MIN_IOU:
        return -1
    free[best] = False
    return best
