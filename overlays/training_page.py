"""A training as one page that needs nothing else: confusion, recalls, how it went, and what was mistaken.

Values in, HTML out. Every word that comes from outside is escaped. Knows nothing about how anything was learned.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, Final

from overlays.jpeg import encode_picture, scaled_picture
from pipeline.frames import Image

SHOWN_SIDE_PIXELS: Final = 240

_STYLE: Final = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1b1b1f;background:#fff}
table{border-collapse:collapse;margin:.5rem 0}td,th{padding:.25rem .7rem;text-align:right;
font-variant-numeric:tabular-nums}
th{font-weight:600}td.w,th.w{text-align:left}.s{color:#6a6a72}.row{display:flex;flex-wrap:wrap;gap:1rem}
figure{margin:0;width:11rem}figure img{max-width:11rem;max-height:11rem}
figcaption{font-size:13px;overflow-wrap:anywhere}
svg{width:34rem;max-width:100%;height:auto}svg text{font-size:11px;fill:currentColor}summary{cursor:pointer}
@media(prefers-color-scheme:dark){body{background:#16161a;color:#e7e7ea}.s{color:#a0a0a8}}
"""


def training_page(report: Mapping[str, Any], read: Callable[[str], Image], *, pictures: int = 24) -> str:
    """Return the whole page.

    Args:
        report: what ``run.py train`` wrote as JSON.
        read: gives a picture by its path.
        pictures: how many mistaken pictures are shown, the surest first.
    """
    labels, found = report["labels"], report["examined"]["held_out"]
    wrong = sorted((one for one in found["answers"] if one[1] != one[2]), key=lambda one: -one[3])
    lines = (
        f"{len(several)} {part.replace('_', '-')} ({len({one['source'] for one in several})} sources)"
        for part, several in report["parts"].items()
    )
    title = f"{report['model']}: {len(labels)} classes"
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width,initial-scale=1'>",
        f"<title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1>",
        f"<p>Pictures: {escape(', '.join(lines))}. The held-out ones were never used before they examined it:",
        f"<b>{found['accuracy']:.1%}</b> of {found['pictures']} named right",
        f"({likely_in_words(found['likely'])}),",
        f"mean recall {found['mean_recall']:.1%}.</p>",
        "<h2>Held out: what it said</h2>", _confusion(labels, found),
        "<h2>How it went</h2>", _curves(report["epochs"]),
        f"<h2>Mistaken ({len(wrong)}), the surest first</h2>",
        f"<div class=row>{''.join(_figure(one, labels, read) for one in wrong[:pictures])}</div>",
        "<h2>What ran</h2>", _facts(report),
        *(_listing(part, several) for part, several in report["parts"].items()),
        _left_out(report["left_out"]), "</html>\n",
    ]  # fmt: skip
    return "\n".join(parts)


def likely_in_words(likely: Sequence[float] | None) -> str:
    """Return what the held-out pictures tell of others."""
    if likely is None:
        return "of other parts it tells little: too few different ones were held out"
    return f"of other parts {likely[0]:.0%} to {likely[1]:.0%} would be, 95 times of 100"


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
        rows.append(f"<tr><th class=w>{escape(label)}{cells}<td>{found['recalls'][k]:.1%}")
    return f"<table><tr><th class=w>is \\ said{head}<th>recall</tr>{''.join(rows)}</table>"


def _curves(epochs: Sequence[Mapping[str, Any]]) -> str:
    """Return loss and stopping recall over epochs, as one SVG."""
    if not epochs:
        return ""
    losses = [max(float(one["loss"]), 0.0) for one in epochs]
    top = max(*losses, *(float(one["stopping_loss"]) for one in epochs), 1e-9)
    lines = (
        ("#7b4fc9", "loss", [one / top for one in losses]),
        ("#c98a4f", "loss, stopping", [float(one["stopping_loss"]) / top for one in epochs]),
        ("#2ea043", "mean recall, stopping", [float(one["stopping_recall"]) for one in epochs]),
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


def _figure(answer: Sequence[Any], labels: Sequence[str], read: Callable[[str], Image]) -> str:
    path, true, given, score = answer
    image = read(path)
    small = scaled_picture(image, min(1.0, SHOWN_SIDE_PIXELS / max(image.shape[:2])))
    packed = base64.b64encode(encode_picture(small, 80)).decode("ascii")
    words = f"{labels[true]}, said {labels[given]} {score:.0%}"
    return (
        f"<figure><img alt='' src='data:image/jpeg;base64,{packed}'><figcaption>{escape(words)}<br>"
        f"<span class=s>{escape(str(path))}</span></figcaption></figure>"
    )


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
        f"<tr><td class=w>{escape(one['path'])}<td class=w>{escape(one['label'])}<td class=w>{escape(one['source'])}"
        for one in several
    )
    name = escape(part.replace("_", "-"))
    return f"<details><summary>{name}: {len(several)} pictures</summary><table>{rows}</table></details>"


def _left_out(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    told = "".join(f"<li>{escape(line)}" for line in lines)
    return f"<h2>Left out: {len(lines)} that do not decode</h2><ul>{told}</ul>"
