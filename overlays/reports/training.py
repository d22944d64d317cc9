"""HTML report on a training: a self-contained page with conclusion, errors per class, and misclassified images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from overlays.render.colormaps import palette
from overlays.render.heatmap import paint_heat
from overlays.reports.page import Figure, image_uri, render_page, shrink
from overlays.reports.thresholds import cells_of, count_named, good_class, threshold_table
from pipeline.frames import Box, Heat, Image

SHOWN_SIDE_PIXELS: Final = 240

Heats = Mapping[str, tuple[Heat, Box]]
"""Heat map of the predicted class, and the rectangle of the image that it covers, by the image's path."""


def training_html(
    report: Mapping[str, Any], read: Callable[[str], Image], heats: Heats | None = None, *, max_images: int = 24
) -> str:
    """Return the report as HTML.

    Args:
        report: the JSON report that ``run.py train`` writes.
        read: returns an image, uint8 RGB (height, width, 3), by its path.
        heats: heat maps of misclassified images.
        max_images: maximum number of misclassified images, highest scores first.
    """
    labels, test = report["labels"], report["metrics"]["test"]
    wrong = sorted((row for row in test["predictions"] if row[1] != row[2]), key=lambda row: -row[3])
    truth = [row[1] for row in test["predictions"]]
    return render_page(
        "training.html",
        script="thresholds.js",
        title=f"{report['model']}: {len(labels)} classes",
        conclusion=conclusion(report),
        splits=split_sizes(report["splits"]),
        labels=labels,
        confusion=_confusion(labels, test["confusion"]),
        thresholds=threshold_table(labels, truth, test["scores"]) if test.get("scores") else None,
        curves=curves_of(report["epochs"]),
        misclassified=len(wrong),
        has_heat=bool(heats),
        images=[_figure(row, labels, read, heats or {}) for row in wrong[:max_images]],
        pairs=report.get("near_duplicates", ()),
        settings=_settings(report),
        listings=report["splits"],
        left_out=report["left_out"],
    )


def conclusion(report: Mapping[str, Any]) -> str:
    """Return the result of a training as text."""
    labels, test = report["labels"], report["metrics"]["test"]
    text = (
        f"Test: {test['accuracy']:.1%} of {test['images']} images are correctly classified, mean recall "
        f"{test['mean_recall']:.1%}."
    )
    counts = [count_named(test["confusion"], k) for k in range(len(labels))]
    worst = max(range(len(labels)), key=lambda k: 1.0 - (counts[k].recall or 0.0))
    if counts[worst].escapes:
        total = counts[worst].hits + counts[worst].escapes
        text += f" Missed most: {labels[worst]}, {counts[worst].escapes} of {total}."
    if (good := good_class(labels)) is not None:
        text += (
            f" {counts[good].false_alarms} images of other classes are classified as {labels[good]}, and "
            f"{counts[good].escapes} of {labels[good]} as another class."
        )
    return f"{text} {_generalisation(report)}"


def _generalisation(report: Mapping[str, Any]) -> str:
    """Return the confidence interval for other parts as text, or the reason why there is none."""
    test = report["metrics"]["test"]
    similar = sum(pair["split"] == "test" for pair in report.get("near_duplicates", ()))
    without = f", without the {similar} images that look similar to training images" if similar else ""
    if not report.get("grouped", True):
        return "No conclusion for other parts: it is unknown which images show the same part."
    if test["interval"] is None:
        return f"No conclusion for other parts: the test has too few different ones{without}."
    low, high = test["interval"]
    return f"For other parts, {low:.0%} to {high:.0%} correct is expected (95 % confidence){without}."


def _confusion(
    labels: Sequence[str], confusion: Sequence[Sequence[int]]
) -> list[tuple[str, list[tuple[int, str]], tuple[str, ...]]]:
    """Return the rows of the confusion matrix: true class, count and colour per predicted class, and other cells."""
    rows = []
    for true, (label, counts) in enumerate(zip(labels, confusion, strict=True)):
        total = max(1, sum(counts))
        cells = [
            (count, f"rgba({'46,160,67' if true == predicted else '214,64,69'},{0.65 * count / total:.2f})")
            for predicted, count in enumerate(counts)
        ]
        rows.append((label, cells, cells_of(count_named(confusion, true))))
    return rows


def split_sizes(splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Return the number of images and of groups (sources) of each split as text."""
    return [
        f"{len(samples)} {name.replace('_', '-')} ({len({sample['group'] for sample in samples})} sources)"
        for name, samples in splits.items()
    ]


def curves_of(epochs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return losses and validation measure as the lines of a chart with 520x200 pixels; None without epochs."""
    if not epochs:
        return None
    losses = [max(float(epoch["loss"]), 0.0) for epoch in epochs]
    validation_losses = [float(epoch["validation_loss"]) for epoch in epochs]
    maximum = max(*losses, *validation_losses, 1e-9)
    measure = epochs[0].get("measure", "mean recall")
    curves = (
        ("#7b4fc9", "training loss", [loss / maximum for loss in losses]),
        ("#c98a4f", "validation loss", [loss / maximum for loss in validation_losses]),
        (
            "#2ea043",
            f"validation {measure}",
            [float(epoch["validation_score"]) for epoch in epochs],
        ),
    )
    step = 480 / max(1, len(epochs) - 1)
    return {
        "lines": [
            {
                "colour": colour,
                "name": name,
                "points": " ".join(f"{20 + step * k:.1f},{150 - 130 * value:.1f}" for k, value in enumerate(values)),
            }
            for colour, name, values in curves
        ],
        "epochs": len(epochs),
        "best": max((epoch["epoch"] for epoch in epochs if epoch["best"]), default=0),
        "maximum": maximum,
    }


def _figure(prediction: Sequence[Any], labels: Sequence[str], read: Callable[[str], Image], heats: Heats) -> Figure:
    path, true, predicted, score = prediction
    image = read(path)
    small = shrink(image, SHOWN_SIDE_PIXELS)
    images = [small]
    if path in heats:
        heat, region = heats[path]
        x, y = small.shape[1] / image.shape[1], small.shape[0] / image.shape[0]
        scaled = Box(region.left * x, region.top * y, region.right * x, region.bottom * y)
        images.append(paint_heat(small, heat, scaled, palette("inferno", 0.65)))
    caption = f"{labels[true]}, classified as {labels[predicted]} {score:.0%}"
    return Figure(tuple(map(image_uri, images)), caption, str(path))


def _settings(report: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "layer explained": report["layer"],
        "input": "{}x{}, {}".format(*report["input_size"], report["fit"]),
        **report["provenance"]["wish"],
        **report["provenance"]["course"],
        **{key: report["provenance"].get(key, "") for key in ("date", "command", "torch")},
    }
