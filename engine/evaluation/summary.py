"""Summary of an evaluation: the means over its images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from engine.evaluation import metrics

MEANS = {
    "average_drop": "drop",
    "increase": "increase",
    "coherency": "coherency",
    "correlation": "correlation",
    "complexity": "complexity",
    "deletion": "deletion",
    "insertion": "insertion",
    "pointing": "pointing",
    "pointing_15px": "pointing_15px",
    "energy_inside": "energy_inside",
    "pointing_chance": "pointing_chance",
    "pointing_15px_chance": "pointing_15px_chance",
    "energy_chance": "energy_chance",
    "randomised": "randomised",
    "stability": "stability",
    "picture_stability": "picture_stability",
    "label_kept": "label_kept",
    "score": "score",
    "accuracy": "right",
}
"""Summary key -> record key; the summary is the mean over the records that have the key."""


def summarise(records: Sequence[Mapping[str, Any]]) -> dict[str, float | int | None]:
    """Return the means over the images, ADCC in both conventions, and image counts; None without values."""
    row: dict[str, float | int | None] = {"images": len(records)}
    for name, key in MEANS.items():
        values = _values(records, key)
        row[name] = metrics.mean(values) if values else None
    parts = [_values(records, key) for key in ("drop", "coherency", "complexity")]
    row["adcc_of_means"] = _or_none(metrics.adcc_of_means(*parts))
    row["adcc_per_image"] = _or_none(metrics.adcc_per_image(*parts))
    row["images_pointed"] = len(_values(records, "pointing"))
    row["images_like_learned"] = sum(bool(record.get("like_learned")) for record in records)
    row["images_known"] = len(_values(records, "right"))
    right = [
        float(record["pointing_15px"])
        for record in records
        if record.get("right") and record.get("pointing_15px") is not None
    ]
    row["pointing_15px_right"] = metrics.mean(right) if right else None
    neighbours = [_values(records, key) for key in ("stability", "picture_stability")]
    row["neighbours"] = len(neighbours[0])
    row["unrest"] = _or_none(metrics.temporal_instability(*neighbours))
    row["follows"] = _or_none(metrics.temporal_correlation(*neighbours))
    row["flat_maps"] = sum(not any(map(any, record["heat"])) for record in records)
    seconds = sorted(_values(records, "seconds"))
    row["seconds_per_image_p50"] = seconds[len(seconds) // 2] if seconds else None
    return row


def _values(records: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [float(record[key]) for record in records if record.get(key) is not None]


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
