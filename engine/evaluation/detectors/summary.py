"""Means over the evaluated boxes of a detector, with standard errors clustered by image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from engine.evaluation import metrics

Record = Mapping[str, Any]
Value = Mapping[str, float | int | None]

MEASURES: Final[Mapping[str, Callable[[Record], float | None]]] = {
    "difference": lambda m: _less(m, "insertion", "deletion"),
    "insertion": lambda m: m.get("insertion"),
    "deletion": lambda m: m.get("deletion"),
    "similarity_difference": lambda m: _less(m, "similarity_insertion", "similarity_deletion"),
    "pointing": lambda m: m.get("pointing"),
    "energy": lambda m: m.get("energy"),
    "evidence": lambda m: m.get("evidence"),
    "randomised": lambda m: m.get("randomised"),
}
"""Measure -> function that returns its value from the record of a box and method; None: not measured."""

COMPARED: Final = ("gaussian-anchor", "odam")
"""Methods with which all others are compared, box by box."""


def _less(record: Record, first: str, second: str) -> float | None:
    return None if record.get(first) is None else float(record[first]) - float(record[second])


def clustered_mean(values: Sequence[float], clusters: Sequence[object]) -> tuple[float, float | None]:
    """Return the mean and its standard error, if values in a cluster depend on each other.

    The sandwich estimator of Liang and Zeger (1986) for a mean: the squares of the clusters' sums of residuals, with
    the correction G / (G - 1) for G clusters. The error is None for fewer than two clusters.
    """
    mean = metrics.mean(values)
    sums: dict[object, float] = {}
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + value - mean
    count = len(sums)
    if count < 2:
        return mean, None
    return mean, math.sqrt(math.fsum(v**2 for v in sums.values()) * count / (count - 1)) / len(values)


def summarise_boxes(records: Sequence[Record]) -> dict[str, Any]:
    """Return counts, and the mean and standard error of each measure for each method.

    Includes, box by box, the differences in (Insertion - Deletion) from each method in ``COMPARED``.

    Args:
        records: one per image, from ``BoxEvaluator.evaluate``, with the added key ``image``.
    """
    boxes = list(_boxes(records))
    names = list(dict.fromkeys(name for _, entry in boxes for name in entry["methods"]))
    summary: dict[str, Any] = {"images": len(records), "boxes": len(boxes)}
    for key in ("objects", "detections", "matched", "missed", "unknown", "extra"):
        summary[key] = sum(int(record[key]) for record in records)
    summary["anchor_pointing"] = metrics.mean([float(entry["anchor_inside"]) for _, entry in boxes]) if boxes else None
    summary["methods"] = {name: _method(name, boxes) for name in names}
    return summary


def _method(name: str, boxes: Sequence[tuple[str, Record]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for measure, value_of in MEASURES.items():
        row[measure] = _value([(image, _of(entry, name, value_of)) for image, entry in boxes])
    for other in COMPARED:
        row[f"less_{other}"] = _value([(image, _compared(entry, name, other)) for image, entry in boxes])
    row["flat"] = sum(bool(entry["methods"].get(name, {}).get("flat")) for _, entry in boxes)
    return row


def _of(entry: Record, name: str, value_of: Callable[[Record], float | None]) -> float | None:
    record = entry["methods"].get(name)
    return None if record is None else value_of(record)


def _compared(entry: Record, name: str, other: str) -> float | None:
    """Return the difference of (Insertion - Deletion) between two methods; None if not measured."""
    if name == other:
        return None
    first, second = (_of(entry, method, MEASURES["difference"]) for method in (name, other))
    return None if first is None or second is None else first - second


def _value(pairs: Sequence[tuple[str, float | None]]) -> Value | None:
    known = [(image, float(value)) for image, value in pairs if value is not None]
    if not known:
        return None
    mean, error = clustered_mean([value for _, value in known], [image for image, _ in known])
    return {"mean": mean, "se": error, "n": len(known)}


def _boxes(records: Sequence[Record]) -> Iterator[tuple[str, Record]]:
    for record in records:
        for entry in record["judged"]:
            yield str(record["image"]), entry


def table_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return one row for each box and method."""
    rows = []
    for record in records:
        for number, entry in enumerate(record["judged"]):
            left, top, right, bottom = entry["box"]
            place = {
                **{key: record.get(key) for key in ("image", "source", "digest", "like_learned") if key in record},
                "number": number, "label": entry["label"], "score": entry["score"], "iou": entry["iou"],
                "stride": entry["stride"], "cell_px": entry["cell_px"],
                "left": left, "top": top, "right": right, "bottom": bottom,
            }  # fmt: skip
            rows += [{**place, "method": name, **measured} for name, measured in entry["methods"].items()]
    return rows
