"""A training as one page that needs nothing else: a conclusion, what each class costs, and where it was mistaken.

Values in, HTML out. Every word that comes from outside is escaped. Knows nothing about how anything was learned.
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
"""By a picture's path: the map of the class it was called, and the rectangle of the picture that the map covers."""


def training_html(
    report: Mapping[str, Any], read: Callable[[str], Image], heats: Heats | None = None, *, pictures: int = 24
) -> str:
    """Return the whole page.

    Args:
        report: what ``run.py train`` wrote as JSON.
        read: gives a picture by its path.
        heats: where the network looked in the mistaken pictures.
        pictures: how many mistaken pictures are shown, the surest first.
    """
    labels, found = report["labels"], report["metrics"]["test"]
    wrong = sorted((one for one in found["predictions"] if one[1] != one[2]), key=lambda one: -one[3])
    shown = "".join(_figure(one, labels, read, heats or {}) for one in wrong[:pictures])
    lines = (
        f"{len(several)} {part.replace('_', '-')} ({len({one['group'] for one in several})} sources)"
        for part, several in report["splits"].items()
    )
    title = f"{report['model']}: {len(labels)} classes"
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f'<meta http-equiv=Content-Security-Policy content="{POLICY}">',
        "<meta name=viewport content='width=device-width,initial-scale=1'>",
        f"<title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1>",
        f"<p class=c>{escape(conclusion(report))}</p>",
        f"<p>Pictures: {escape(', '.join(lines))}. The held-out ones were never used before they examined it.</p>",
        "<h2>Held out: what it said</h2>", _confusion(labels, found), _thresholds(labels, found),
        "<h2>How it went</h2>", _curves(report["epochs"]),
        f"<h2>Mistaken ({len(wrong)}), the surest first</h2>",
        "<p class=s>Beside each picture: where the network looked for the class it named.</p>" if heats else "",
        f"<div class=row>{shown}</div>",
        _similar(report.get("near_duplicates", ())),
        "<h2>What ran</h2>", _facts(report),
        *(_listing(part, several) for part, several in report["splits"].items()),
        _left_out(report["left_out"]), "</html>\n",
    ]  # fmt: skip
    return "\n".join(parts)


def conclusion(report: Mapping[str, Any]) -> str:
    """Return what a training came to, in words."""
    labels, found = report["labels"], report["metrics"]["test"]
    told = (
        f"Held out: {found['accuracy']:.1%} of {found['images']} pictures are named right, mean recall "
        f"{found['mean_recall']:.1%}."
    )
    counts = [count_named(found["confusion"], k) for k in range(len(labels))]
    worst = max(range(len(labels)), key=lambda k: 1.0 - (counts[k].recall or 0.0))
    if counts[worst].escapes:
        total = counts[worst].hits + counts[worst].escapes
        told += f" Missed most: {labels[worst]}, {counts[worst].escapes} of {total}."
    if (good := good_class(labels)) is not None:
        told += (
            f" {counts[good].false_alarms} pictures of other classes are called {labels[good]}, and "
            f"{counts[good].escapes} of {labels[good]} something else."
        )
    return f"{told} {_of_other_parts(report)}"


def _of_other_parts(report: Mapping[str, Any]) -> str:
    """Return what the held-out pictures tell of others, and why no more."""
    found = report["metrics"]["test"]
    similar = sum(one["split"] == "test" for one in report.get("near_duplicates", ()))
    without = f", without the {similar} pictures that look nearly like learned ones" if similar else ""
    if not report.get("grouped", True):
        return "Nothing is concluded for other parts: which pictures show one part is not known."
    if found["interval"] is None:
        return f"Nothing is concluded for other parts: too few different ones were held out{without}."
    low, high = found["interval"]
    return f"Of other parts {low:.0%} to {high:.0%} would be named right, 95 times of 100{without}."


def _thresholds(labels: Sequence[str], found: Mapping[str, Any]) -> str:
    if not found.get("scores"):
        return "<p class=s>With this many classes and pictures no table of thresholds is made.</p>"
    truth = [one[1] for one in found["predictions"]]
    return f"<h2>Held out: with a threshold</h2>{threshold_table(labels, truth, found['scores'])}"


def _similar(pairs: Sequence[Mapping[str, Any]]) -> str:
    """Return the list of pictures that look nearly like one in another part."""
    if not pairs:
        return ""
    rows = "".join(
        f"<tr><td class=w>{escape(one['split'].replace('_', '-'))}<td class=w>{escape(one['path'])}"
        f"<td class=w>{escape(one['learned'])}<td>{one['different_bits']}<td class=w>{_classes(one)}"
        for one in pairs
    )
    return (
        f"<h2>Nearly alike ({len(pairs)})</h2><p>These look nearly like a picture that is learned from. If both show "
        "one part, what is measured is too good: group them.</p><table><tr><th class=w>part<th class=w>picture"
        f"<th class=w>looks like<th>bits apart, of 256<th class=w>classes</tr>{rows}</table>"
    )


def _classes(pair: Mapping[str, Any]) -> str:
    first, second = pair.get("labels", ("", ""))
    return escape(first) if first == second else f"<b>{escape(first)}, {escape(second)}</b>"


def _confusion(labels: Sequence[str], found: Mapping[str, Any]) -> str:
    """Return a table: a row for each true class, a column for each answer."""
    head = "".join(f"<th>{escape(label)}" for label in labels)
    rows = []
    for k, (label, counts) in enumerate(zip(labels, found["confusion"], strict=True)):
        total = max(1, sum(counts))
        cells = "".join(
            f"<td style='background:rgba({'46,160,67' if k == j else '214,64,69'},{0.65 * count / total:.2f})'>{count}"
            for j, count in enumerate(counts)
        )
        rows.append(f"<tr><th class=w>{escape(label)}{cells}{cells_of(count_named(found['confusion'], k))}")
    return (
        f"<table><tr><th class=w>is \\ said{head}<th>precision<th>recall<th>escapes<th>false alarms</tr>"
        f"{''.join(rows)}</table><p class=s>Rows: what a picture shows; columns: the class of its highest score. "
        "Escapes: pictures of the class that are called something else. False alarms: other pictures that are "
        "called it.</p>"
    )


def _curves(epochs: Sequence[Mapping[str, Any]]) -> str:
    """Return loss and stopping recall over epochs, as one SVG."""
    if not epochs:
        return ""
    losses = [max(float(one["loss"]), 0.0) for one in epochs]
    top = max(*losses, *(float(one["validation_loss"]) for one in epochs), 1e-9)
    lines = (
        ("#7b4fc9", "loss", [one / top for one in losses]),
        ("#c98a4f", "loss, stopping", [float(one["validation_loss"]) / top for one in epochs]),
        ("#2ea043", "mean recall, stopping", [float(one["validation_recall"]) for one in epochs]),
    )
    drawn = []
    for place, (colour, name, values) in enumerate(lines):
        step = 480 / max(1, len(values) - 1)
        points = " ".join(f"{20 + step * k:.1f},{150 - 130 * value:.1f}" for k, value in enumerate(values))
        drawn.append(f"<polyline points='{points}' fill='none' stroke='{colour}' stroke-width='2'/>")
        drawn.append(f"<text x='{20 + 170 * place}' y='190' style='fill:{colour}'>{name}</text>")
    best = max((one["epoch"] for one in epochs if one["best"]), default=0)
    drawn.append(f"<text x='20' y='170'>1</text><text x='490' y='170'>{len(epochs)}</text>")
    return (
        f"<svg viewBox='0 0 520 200' role=img aria-label='loss and recall'>{''.join(drawn)}</svg>"
        f"<p class=s>{len(epochs)} epochs; the weights are those of epoch {best}. Losses are drawn as shares of "
        f"{top:.2f}.</p>"
    )


def _figure(answer: Sequence[Any], labels: Sequence[str], read: Callable[[str], Image], heats: Heats) -> str:
    path, true, given, score = answer
    image = read(path)
    small = scale_image(image, min(1.0, SHOWN_SIDE_PIXELS / max(image.shape[:2])))
    drawn = [small]
    if path in heats:
        heat, region = heats[path]
        across, down = small.shape[1] / image.shape[1], small.shape[0] / image.shape[0]
        place = Box(region.left * across, region.top * down, region.right * across, region.bottom * down)
        drawn.append(paint_heat(small, heat, place, palette("inferno", 0.65)))
    words = f"{labels[true]}, said {labels[given]} {score:.0%}"
    return (
        f"<figure><div class=pair>{''.join(map(_inline, drawn))}</div><figcaption>{escape(words)}<br>"
        f"<span class=s>{escape(str(path))}</span></figcaption></figure>"
    )


def _inline(image: Image) -> str:
    packed = base64.b64encode(encode_image(image, 80)).decode("ascii")
    return f"<img alt='' src='data:image/jpeg;base64,{packed}'>"


def _facts(report: Mapping[str, Any]) -> str:
    told = {
        "layer explained": report["layer"],
        "input": "{}x{}, {}".format(*report["input_size"], report["fit"]),
        **report["provenance"]["wish"],
        **report["provenance"]["course"],
        **{key: report["provenance"].get(key, "") for key in ("date", "command", "torch")},
    }
    rows = (f"<tr><td class=w>{escape(key)}<td class=w>{escape(str(value))}" for key, value in told.items())
    return f"<table>{''.join(rows)}</table>"


def _listing(part: str, several: Sequence[Mapping[str, str]]) -> str:
    rows = "".join(
        f"<tr><td class=w>{escape(one['path'])}<td class=w>{escape(one['label'])}<td class=w>{escape(one['group'])}"
        for one in several
    )
    name = escape(part.replace("_", "-"))
    return f"<details><summary>{name}: {len(several)} pictures</summary><table>{rows}</table></details>"


def _left_out(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    told = "".join(f"<li>{escape(line)}" for line in lines)
    return f"<h2>Left out: {len(lines)}</h2><ul>{told}</ul>"
