"""HTML report on a detector's training: precision, confusion, images with the most mistakes, and evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from overlays.render.heatmap import draw_box
from overlays.reports.box_evaluation import ShownBox, box_figure
from overlays.reports.page import Figure, image_uri, render_page, shrink
from overlays.reports.training import curves_of, split_sizes
from pipeline.frames import Box, Image

SHOWN_SIDE_PIXELS: Final = 320
MAX_SHOWN: Final = 8
"""Maximum number of images per gallery."""
MIN_BOXES: Final = 3
"""Minimum number of evaluated boxes for a suspected shortcut."""
LEAST_EVIDENCE: Final = 0.5
"""Mean fraction of the evidence inside the boxes below which a class is suspected of a shortcut."""
_HIT, _CONFUSED, _FALSE, _MISSED = (46, 160, 67), (56, 132, 255), (214, 64, 69), (240, 200, 40)
_COLOURS: Final = ("#7b4fc9", "#c98a4f", "#2ea043", "#2f7fd6", "#c9428a", "#8a8a20", "#20908a", "#a03c28")


@dataclass(frozen=True, slots=True)
class ShownImage:
    """A test image of a gallery. Boxes are in pixels of the image."""

    path: str
    found: Sequence[tuple[Box, str, float, str | None]]
    """Detections: box, class, score, and the matched object's class (None for a false alarm)."""
    missed: Sequence[tuple[Box, str]]


def detector_training_html(
    report: Mapping[str, Any], read: Callable[[str], Image], best: Sequence[ShownImage], worst: Sequence[ShownImage]
) -> str:
    """Return the report as HTML.

    Args:
        report: the JSON report that ``run.py train`` writes.
        read: returns an image, uint8 RGB (height, width, 3), by its path.
        best: the test images with the fewest mistakes.
        worst: the test images with the most mistakes.
    """
    labels, test = report["labels"], report["metrics"]["test"]
    evidence = class_evidence(report["evidence"])
    curves = [(label, curve) for label, curve in zip(labels, test["curves"], strict=True) if curve]
    least = _least_evidence(report["evidence"])
    return render_page(
        "detector_training.html",
        title=f"{report['model']}: {len(labels)} classes of boxes",
        conclusion=conclusion(report),
        splits=split_sizes(report["splits"]),
        class_heads=("objects", "average precision", "precision", "recall", *(_EVIDENCE_HEADS if evidence else ())),
        classes=_class_rows(report, evidence),
        score=report["score"],
        evidence_boxes=sum(row["boxes"] for row in evidence.values()),
        suspects=[suspect_text(label, evidence[label]) for label in suspects(evidence)],
        precision_curves=[
            {"name": label, "colour": _COLOURS[number], "points": _points(curve)}
            for number, (label, curve) in enumerate(curves[: len(_COLOURS)])
        ],
        more_curves=max(0, len(curves) - len(_COLOURS)),
        confusion_heads=(*labels, "nothing"),
        confusion=_confusion_rows(report["confusion"], (*labels, "background")),
        curves=curves_of(report["epochs"]),
        galleries={
            heading: [_figure(shown, read(shown.path)) for shown in images]
            for heading, images in (("Most mistakes", worst), ("Fewest mistakes", best))
            if images
        },
        evidence={"Least evidence in the box; keep and drop": [box_figure(box, read(box.image)) for box in least]}
        if least
        else {},
        pairs=report.get("near_duplicates", ()),
        settings=_settings(report),
        listings=report["splits"],
        left_out=report["left_out"],
    )


_EVIDENCE_HEADS: Final = ("evidence in box", "energy in box", "deletion")


def conclusion(report: Mapping[str, Any]) -> str:
    """Return the result of a training as text."""
    test = report["metrics"]["test"]
    text = (
        f"Test: mAP50 {test['map50']:.1%}, mAP50:95 {test['map50_95']:.1%} on {test['images']} images with "
        f"{test['boxes']} boxes."
    )
    if not report["grouped"]:
        text += " No conclusion for other parts: it is unknown which images show the same part."
    elif test["map50_interval"] is None:
        text += " No conclusion for other parts: the test has too few different ones."
    else:
        low, high = test["map50_interval"]
        text += f" For other parts, a mAP50 of {low:.0%} to {high:.0%} is expected (95 % confidence)."
    if found := suspects(class_evidence(report["evidence"])):
        text += f" Check the evidence of {', '.join(found)}."
    return text


def class_evidence(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return for each class the number of evaluated boxes, and their mean evidence, energy and deletion."""
    by_class: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        for entry in record["judged"]:
            by_class.setdefault(entry["label"], []).append(entry["methods"])
    return {
        label: {
            "boxes": len(methods),
            "evidence": _mean([method["keep"]["evidence"] for method in methods]),
            "energy": _mean([method["drop"]["energy"] for method in methods]),
            "deletion": _mean([method["drop"].get("deletion") for method in methods]),
        }
        for label, methods in by_class.items()
    }


def suspects(evidence: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the classes whose evidence lies mostly outside their boxes in the maps of both modes.

    Classes with fewer than ``MIN_BOXES`` boxes are omitted.
    """
    return [
        label
        for label, row in evidence.items()
        if row["boxes"] >= MIN_BOXES
        and all(row[key] is not None and row[key] < LEAST_EVIDENCE for key in ("evidence", "energy"))
    ]


def suspect_text(label: str, row: Mapping[str, Any]) -> str:
    """Return a text that states why a class is suspected of a shortcut, and what to do."""
    return (
        f"{label}: only {row['evidence']:.0%} of the evidence lies in its boxes. Either the surroundings are part of "
        "the object, or the detector has learned something else that comes with it. Look at the maps below, and add "
        "images in which the two do not occur together."
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _class_rows(
    report: Mapping[str, Any], evidence: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, tuple[str, ...]]]:
    """Return the table's rows: the name of each class, and its cells."""
    table, rows = report["confusion"], []
    for k, label in enumerate(report["labels"]):
        total, found = sum(table[k]), sum(row[k] for row in table)
        precision = report["metrics"]["test"]["class_map50"][k]
        cells = [
            str(total),
            _percent(precision),
            _percent(table[k][k] / found if found else None),
            _percent(table[k][k] / total if total else None),
        ]
        if evidence:
            cells += [_percent(evidence.get(label, {}).get(key)) for key in ("evidence", "energy", "deletion")]
        rows.append((label, tuple(cells)))
    return rows


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _points(curve: Sequence[float]) -> str:
    step = 300 / (len(curve) - 1)
    return " ".join(f"{40 + step * k:.1f},{310 - 300 * value:.1f}" for k, value in enumerate(curve))


def _confusion_rows(
    table: Sequence[Sequence[int]], names: Sequence[str]
) -> list[tuple[str, list[tuple[int | str, str]]]]:
    """Return the rows of the confusion matrix: the true class, and count and colour of each cell."""
    rows = []
    for true, (name, counts) in enumerate(zip(names, table, strict=True)):
        total = max(1, sum(counts))
        cells: list[tuple[int | str, str]] = [
            (count, f"rgba({'46,160,67' if true == found else '214,64,69'},{0.65 * count / total:.2f})")
            for found, count in enumerate(counts)
        ]
        if true == len(table) - 1:
            cells[-1] = ("", "transparent")
        rows.append((name, cells))
    return rows


def _figure(shown: ShownImage, image: Image) -> Figure:
    """Return an image with its boxes drawn, scaled to the report's size."""
    small = np.array(shrink(image, SHOWN_SIDE_PIXELS))
    x, y = small.shape[1] / image.shape[1], small.shape[0] / image.shape[0]
    captions = []
    for box, label in shown.missed:
        _draw(small, box, (x, y), _MISSED)
        captions.append(f"{label} missed")
    for box, label, _, truth in reversed(shown.found):
        _draw(small, box, (x, y), _FALSE if truth is None else _HIT if truth == label else _CONFUSED)
    for _, label, score, truth in shown.found:
        note = ", no object" if truth is None else "" if truth == label else f", is {truth}"
        captions.append(f"{label} {score:.0%}{note}")
    return Figure((image_uri(small),), "; ".join(captions) or "no object, no detection", shown.path)


def _draw(image: Image, box: Box, scale: tuple[float, float], colour: tuple[int, int, int]) -> None:
    x, y = scale
    draw_box(image, Box(box.left * x, box.top * y, box.right * x, box.bottom * y), colour, 2)


def _least_evidence(records: Sequence[Mapping[str, Any]]) -> list[ShownBox]:
    boxes = [
        ShownBox(str(record["image"]), entry, Box(*record["region"]))
        for record in records
        for entry in record["judged"]
    ]
    return sorted(boxes, key=lambda shown: float(shown.entry["methods"]["drop"]["energy"]))[:MAX_SHOWN]


def _settings(report: Mapping[str, Any]) -> dict[str, Any]:
    provenance = report["provenance"]
    return {
        "input": "{}x{}".format(*report["input_size"]),
        **provenance["wish"],
        **provenance["course"],
        **{key: provenance.get(key, "") for key in ("date", "command", "torch")},
    }
