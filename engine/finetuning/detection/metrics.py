"""Mean average precision of a detector, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from torch import Tensor

from engine.detectors.detections import Detections
from engine.finetuning.detection.assignment import Objects

MIN_SCORE: Final = 0.01
"""Lowest score of a box that counts; a precision and recall curve needs weak boxes as well."""
_MAX_BOXES: Final = 100


@dataclass(frozen=True, slots=True)
class DetectionMetrics:
    """Results of a detector on some images, each 0 to 1; NaN for classes without a box."""

    map50: float
    """Mean over the classes of the average precision at an overlap of 0.5."""
    map50_95: float
    """Mean over overlaps of 0.5 to 0.95 as well."""
    class_map50: tuple[float, ...]
    """Average precision of each class at an overlap of 0.5."""
    images: int
    boxes: int
    """Number of objects."""


def average_precision(
    detections: Sequence[Detections], objects: Sequence[Objects], labels: Sequence[str]
) -> DetectionMetrics:
    """Return the mean average precision over images, in the order of both lists.

    Args:
        detections: of each image; boxes in the same pixels as those of ``objects``.
        objects: the truth of each image.
        labels: one name per class.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    box_count = sum(len(one.classes) for one in objects)
    found = [entry for k, one in enumerate(detections) for entry in _entries(k, one.boxes, one.classes, one.scores)]
    if not found or not box_count:
        empty = tuple(0.0 if any(bool((one.classes == k).any()) for one in objects) else float("nan")
                      for k in range(len(labels)))  # fmt: skip
        return DetectionMetrics(0.0, 0.0, empty, len(objects), box_count)
    truth = COCO()
    entries = [entry for k, one in enumerate(objects) for entry in _entries(k, one.boxes, one.classes)]
    truth.dataset = {
        "info": {},
        "images": [{"id": k} for k in range(len(objects))],
        "categories": [{"id": k, "name": name} for k, name in enumerate(labels)],
        "annotations": [{**entry, "id": number} for number, entry in enumerate(entries, 1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(found), "bbox")
        run.params.maxDets = [1, 10, _MAX_BOXES]
        run.evaluate()
        run.accumulate()
    precision = run.eval["precision"][:, :, :, 0, 2]  # (overlap, recall, class); -1 without objects of the class
    by_class = np.where(precision[0] < 0, np.nan, precision[0]).mean(0)
    everywhere = np.where(precision < 0, np.nan, precision)
    return DetectionMetrics(
        float(np.nanmean(by_class)), float(np.nanmean(everywhere)), tuple(float(value) for value in by_class),
        len(objects), box_count,
    )  # fmt: skip


def _entries(image: int, boxes: Tensor, classes: Tensor, scores: Tensor | None = None) -> list[dict[str, Any]]:
    """Return the boxes of an image as COCO has them: left, top, width, height."""
    sizes = boxes[:, 2:] - boxes[:, :2]
    entries: list[dict[str, Any]] = []
    for number, (corner, size, label) in enumerate(
        zip(boxes[:, :2].tolist(), sizes.tolist(), classes.tolist(), strict=True)
    ):
        entry: dict[str, Any] = {"image_id": image, "category_id": int(label), "bbox": [*corner, *size]}
        if scores is None:
            entries.append({**entry, "area": size[0] * size[1], "iscrowd": 0})
        else:
            entries.append({**entry, "score": float(scores[number])})
    return entries
