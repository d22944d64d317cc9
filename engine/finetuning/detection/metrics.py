"""Computes the mean average precision of a detector with pycocotools."""

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
"""Minimum score of a box; low, because a precision-recall curve also needs weak boxes."""
MIN_GROUPS: Final = 5
"""Minimum number of groups of images for a confidence interval."""
BOOTSTRAP_ROUNDS: Final = 200
_MAX_BOXES: Final = 100
_RECALLS: Final = 101
"""Number of recall values at which pycocotools returns the precision."""


@dataclass(frozen=True, slots=True)
class DetectionMetrics:
    """Metrics of a detector on some images, 0 to 1; NaN for classes without objects."""

    map50: float
    """Mean over the classes of the average precision at an IoU of 0.5."""
    map50_95: float
    """Mean of this over IoUs of 0.5 to 0.95."""
    class_map50: tuple[float, ...]
    """Average precision of each class at an IoU of 0.5."""
    images: int
    boxes: int
    """Number of objects."""
    map50_interval: tuple[float, float] | None = None
    """95 % confidence interval of ``map50`` for new parts, by resampling groups of images (percentile bootstrap; Efron
    and Tibshirani, *An Introduction to the Bootstrap*, 1993). None: the groups are unknown or too few."""
    counted_groups: int = 0
    """Number of groups from which the interval is computed."""
    curves: tuple[tuple[float, ...], ...] = ()
    """Precision of each class at recalls 0, 0.01 ... 1 and an IoU of 0.5; empty without objects."""


def average_precision(
    detections: Sequence[Detections], objects: Sequence[Objects], labels: Sequence[str],
    groups: Sequence[str | None] = (),
) -> DetectionMetrics:  # fmt: skip
    """Return the mean average precision over images; all lists have the same order.

    Args:
        detections: detections of each image, in the same pixels as ``objects``.
        objects: ground truth of each image.
        labels: one name per class.
        groups: the group of each image; images whose group is None are excluded from the interval. Empty: no interval.
    """
    box_count = sum(len(one.classes) for one in objects)
    found = [entry for k, one in enumerate(detections) for entry in _entries(k, one.boxes, one.classes, one.scores)]
    if not found or not box_count:
        empty = tuple(0.0 if any(bool((one.classes == k).any()) for one in objects) else float("nan")
                      for k in range(len(labels)))  # fmt: skip
        zero = tuple(() if np.isnan(value) else (0.0,) * _RECALLS for value in empty)
        return DetectionMetrics(0.0, 0.0, empty, len(objects), box_count, curves=zero)
    run = _evaluated(found, objects, labels)
    precision = _precision(run)
    by_class = precision[0].mean(0)
    curves = [
        tuple(round(float(value), 4) for value in column) if np.isfinite(column).all() else ()
        for column in precision[0].T
    ]
    counted = sorted({group for group in groups if group is not None})
    return DetectionMetrics(
        float(np.nanmean(by_class)), float(np.nanmean(precision)), tuple(float(value) for value in by_class),
        len(objects), box_count, _interval(run, groups, counted), len(counted), tuple(curves),
    )  # fmt: skip


def _evaluated(found: list[dict[str, Any]], objects: Sequence[Objects], labels: Sequence[str]) -> Any:  # noqa: ANN401
    """Run pycocotools' evaluation, without accumulating it."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

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
        run.params.maxDets = [_MAX_BOXES]
        run.params.areaRng, run.params.areaRngLbl = run.params.areaRng[:1], run.params.areaRngLbl[:1]
        run.evaluate()
    return run


def _precision(run: Any) -> np.ndarray[Any, np.dtype[np.float64]]:  # noqa: ANN401 - pycocotools has no types
    """Return the precision by IoU, recall and class; NaN for classes without objects."""
    with contextlib.redirect_stdout(io.StringIO()):
        run.accumulate()
    precision = run.eval["precision"][:, :, :, 0, 0]
    return np.where(precision < 0, np.nan, precision)


def _interval(run: Any, groups: Sequence[str | None], counted: Sequence[str]) -> tuple[float, float] | None:  # noqa: ANN401
    """Return the confidence interval of the mAP50; ``run`` cannot be used afterwards."""
    if len(counted) < MIN_GROUPS:
        return None
    images_of = [[k for k, group in enumerate(groups) if group == name] for name in counted]
    count = len(groups)
    per_class = [run.evalImgs[first : first + count] for first in range(0, len(run.evalImgs), count)]
    rng = np.random.default_rng(17)
    values = []
    for _ in range(BOOTSTRAP_ROUNDS):
        drawn = [k for group in rng.integers(len(counted), size=len(counted)) for k in images_of[group]]
        run.evalImgs = [results[k] for results in per_class for k in drawn]
        run.params.imgIds = list(range(len(drawn)))
        run._paramsEval.imgIds = run.params.imgIds  # noqa: SLF001 - accumulate reads this attribute
        precision = _precision(run)
        if np.isfinite(precision).any():
            values.append(float(np.nanmean(precision[0].mean(0))))
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def _entries(image: int, boxes: Tensor, classes: Tensor, scores: Tensor | None = None) -> list[dict[str, Any]]:
    """Return the boxes of an image in COCO's format: left, top, width, height."""
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
