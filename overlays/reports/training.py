"""HTML report of a training: a self-contained page with conclusion, errors per class, and misclassified images.

Text from outside is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, Final

from overlays.render.colormaps import palette
from overlays.render.heatmap import paint_heat
from overlays.render.jpeg import encode_image, scale_image
from overlays.reports.thresholds import POLICY, cells_of, count_named, good_class, threshold_table
from pipeline.frames import Box, Heat, Image

SHOWN_SIDE_PIXELS: Final = 240

_STYLE: Final = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1b1b1f;background:#fff}
table{border-collapse:collapse;margin:.5rem 0}td,th{padding:.25rem .7rem;text-align:right;
font-variant-numeric:tabular-nums}
th{font-weight:600}td.w,th.w{text-align:left}.s{color:#6a6a72}.row{display:flex;flex-wrap:wrap;gap:1rem}
figure{margin:0;width:22.5rem}.pair{display:flex;gap:.25rem}figure img{max-width:11rem;max-height:11rem}
.c{font-size:17px}input[type=range]{width:18rem;vertical-align:middle}
figcaption{font-size:13px;overflow-wrap:anywhere}
svg{width:34rem;max-width:100%;height:auto}svg text{font-size:11px;fill:currentColor}summary{cursor:pointer}
@media(prefers-color-scheme:dark){body{background:#16161a;color:#e7e7ea}.s{color:#a0a0a8}}
"""


Heats = Mapping[str, tuple[Heat, Box]]
"""By an image's path: the heat map of the predicted class, and the rectangle of the image that it covers."""


def training_html(
    report: Mapping[str, Any], read: Callable[[str], Image], heats: Heats | None = None, *, max_images: int = 24
) -> str:
    """Return the page.

    Args:
        report: the JSON report that ``run.py train`` writes.
        read: returns an image by its path.
        heats: the heat maps of misclassified images.
        max_images: maximum number of misclassified images, those with the highest scores first.
    """
    labels, test = report["labels"], report["metrics"]["test"]
    wrong = sorted((row for row in test["predictions"] if row[1] != row[2]), key=lambda row: -row[3])
    figures = "".join(_figure(row, labels, read, heats or {}) for row in wrong[:max_images])
    splits = (
        f"{len(samples)} {name.replace('_', '-')} ({len({sample['group'] for sample in samples})} sources)"
        for name, samples in report["splits"].items()
    )
    title = f"{report['model']}: {len(labels)} classes"
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f'<meta http-equiv=Content-Security-Policy content="{POLICY}">',
        "<meta name=viewport content='width=device-width,initial-scale=1'>",
        f"<title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1>",
        f"<p class=c>{escape(conclusion(report))}</p>",
        f"<p>Images: {escape(', '.join(splits))}. Test images are used for nothing but this test.</p>",
        "<h2>Test: confusion matrix</h2>", _confusion(labels, test), _thresholds(labels, test),
        "<h2>Training curves</h2>", _curves(report["epochs"]),
        f"<h2>Misclassified ({len(wrong)}), highest scores first</h2>",
        "<p class=s>Beside each image: the heat map of the predicted class.</p>" if heats else "",
        f"<div class=row>{figures}</div>",
        _similar(report.get("near_duplicates", ())),
        "<h2>Settings</h2>", _facts(report),
        *(_listing(name, samples) for name, samples in report["splits"].items()),
        _left_out(report["left_out"]), "</html>\n",
    ]  # fmt: skip
    return "\n".join(parts)


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
    """Return the confidence interval for other parts, or why there is none."""
    test = report["metrics"]["test"]
    similar = sum(pair["split"] == "test" for pair in report.get("near_duplicates", ()))
    without = f", without the {similar} images that look similar to training images" if similar else ""
    if not report.get("grouped", True):
        return "No conclusion for other parts: it is unknown which images show the same part."
    if test["interval"] is None:
        return f"No conclusion for other parts: the test has too few different ones{without}."
    low, high = test["interval"]
    return f"For other parts, {low:.0%} to {high:.0%} correct is expected (95 % confidence){without}."


def _thresholds(labels: Sequence[str], test: Mapping[str, Any]) -> str:
    if not test.get("scores"):
        return "<p class=s>There is no table of thresholds: too many classes and images.</p>"
    truth = [row[1] for row in test["predictions"]]
    return f"<h2>Test: with a threshold</h2>{threshold_table(labels, truth, test['scores'])}"


def _similar(pairs: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of image pairs in different splits that look similar."""
    if not pairs:
        return ""
    rows = "".join(
        f"<tr><td class=w>{escape(pair['split'].replace('_', '-'))}<td class=w>{escape(pair['path'])}"
        f"<td class=w>{escape(pair['learned'])}<td>{pair['different_bits']}<td class=w>{_classes(pair)}"
        for pair in pairs
    )
    return (
        f"<h2>Near duplicates ({len(pairs)})</h2><p>These images look similar to a training image. If both show the "
        "same part, the measured figures are too good: group such images.</p><table><tr><th class=w>split"
        f"<th class=w>image<th class=w>training image<th>different bits of 256<th class=w>classes</tr>{rows}</table>"
    )


def _classes(pair: Mapping[str, Any]) -> str:
    first, second = pair.get("labels", ("", ""))
    return escape(first) if first == second else f"<b>{escape(first)}, {escape(second)}</b>"


def _confusion(labels: Sequence[str], test: Mapping[str, Any]) -> str:
    """Return the confusion matrix as a table: a row per true class, a column per predicted class."""
    head = "".join(f"<th>{escape(label)}" for label in labels)
    rows = []
    for k, (label, counts) in enumerate(zip(labels, test["confusion"], strict=True)):
        total = max(1, sum(counts))
        cells = "".join(
            f"<td style='background:rgba({'46,160,67' if k == j else '214,64,69'},{0.65 * count / total:.2f})'>{count}"
            for j, count in enumerate(counts)
        )
        rows.append(f"<tr><th class=w>{escape(label)}{cells}{cells_of(count_named(test['confusion'], k))}")
    return (
        f"<table><tr><th class=w>true \\ predicted{head}<th>precision<th>recall<th>escapes<th>false alarms</tr>"
        f"{''.join(rows)}</table><p class=s>Rows: true class; columns: predicted class (highest score). "
        "Escapes: images of the class that are classified as another class. False alarms: images of other classes "
        "that are classified as it.</p>"
    )


def _curves(epochs: Sequence[Mapping[str, Any]]) -> str:
    """Return loss and validation recall over epochs as an SVG."""
    if not epochs:
        return ""
    losses = [max(float(epoch["loss"]), 0.0) for epoch in epochs]
    top = max(*losses, *(float(epoch["validation_loss"]) for epoch in epochs), 1e-9)
    lines = (
        ("#7b4fc9", "training loss", [loss / top for loss in losses]),
        ("#c98a4f", "validation loss", [float(epoch["validation_loss"]) / top for epoch in epochs]),
        ("#2ea043", "validation mean recall", [float(epoch["validation_recall"]) for epoch in epochs]),
    )
    drawn = []
    for index, (colour, name, values) in enumerate(lines):
        step = 480 / max(1, len(values) - 1)
        points = " ".join(f"{20 + step * k:.1f},{150 - 130 * value:.1f}" for k, value in enumerate(values))
        drawn.append(f"<polyline points='{points}' fill='none' stroke='{colour}' stroke-width='2'/>")
        drawn.append(f"<text x='{20 + 170 * index}' y='190' style='fill:{colour}'>{name}</text>")
    best = max((epoch["epoch"] for epoch in epochs if epoch["best"]), default=0)
    drawn.append(f"<text x='20' y='170'>1</text><text x='490' y='170'>{len(epochs)}</text>")
    return (
        f"<svg viewBox='0 0 520 200' role=img aria-label='loss and recall'>{''.join(drawn)}</svg>"
        f"<p class=s>{len(epochs)} epochs; the weights are those of epoch {best}. Losses are drawn as fractions of "
        f"{top:.2f}.</p>"
    )


def _figure(prediction: Sequence[Any], labels: Sequence[str], read: Callable[[str], Image], heats: Heats) -> str:
    path, true, predicted, score = prediction
    image = read(path)
    small = scale_image(image, min(1.0, SHOWN_SIDE_PIXELS / max(image.shape[:2])))
    images = [small]
    if path in heats:
        heat, region = heats[path]
        x, y = small.shape[1] / image.shape[1], small.shape[0] / image.shape[0]
        scaled = Box(region.left * x, region.top * y, region.right * x, region.bottom * y)
        images.append(paint_heat(small, heat, scaled, palette("inferno", 0.65)))
    caption = f"{labels[true]}, classified as {labels[predicted]} {score:.0%}"
    return (
        f"<figure><div class=pair>{''.join(map(_inline, images))}</div><figcaption>{escape(caption)}<br>"
        f"<span class=s>{escape(str(path))}</span></figcaption></figure>"
    )


def _inline(image: Image) -> str:
    packed = base64.b64encode(encode_image(image, 80)).decode("ascii")
    return f"<img alt='' src='data:image/jpeg;base64,{packed}'>"


def _facts(report: Mapping[str, Any]) -> str:
    facts = {
        "layer explained": report["layer"],
        "input": "{}x{}, {}".format(*report["input_size"], report["fit"]),
        **report["provenance"]["wish"],
        **report["provenance"]["course"],
        **{key: report["provenance"].get(key, "") for key in ("date", "command", "torch")},
    }
    rows = (f"<tr><td class=w>{escape(key)}<td class=w>{escape(str(value))}" for key, value in facts.items())
    return f"<table>{''.join(rows)}</table>"


def _listing(split: str, samples: Sequence[Mapping[str, str]]) -> str:
    rows = "".join(
        f"<tr><td class=w>{escape(sample['path'])}<td class=w>{escape(sample['label'])}"
        f"<td class=w>{escape(sample['group'])}"
        for sample in samples
    )
    name = escape(split.replace("_", "-"))
    return f"<details><summary>{name}: {len(samples)} images</summary><table>{rows}</table></details>"


def _left_out(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}" for line in lines)
    return f"<h2>Left out: {len(lines)}</h2><ul>{items}</ul>"
