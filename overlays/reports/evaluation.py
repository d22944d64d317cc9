"""HTML report of an evaluation: a self-contained page with table, histograms, best and worst images.

Text from outside is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

import numpy as np

from overlays.render.colormaps import palette
from overlays.render.heatmap import draw_box, paint_heat
from overlays.render.jpeg import encode_image, scale_image
from pipeline.frames import Box, Image

BINS: Final = 20
SHOWN_SIDE_PIXELS: Final = 320
BOX_COLOUR: Final = (0, 230, 118)

ROWS: Final = (
    ("average_drop", "Average Drop", "lower is better", 100.0),
    ("increase", "Increase", "higher is better", 100.0),
    ("coherency", "Coherency", "(r + 1) / 2, higher is better", 100.0),
    ("correlation", "Correlation r", "higher is better", 100.0),
    ("complexity", "Complexity", "lower is better", 100.0),
    ("adcc_of_means", "ADCC over means", "Recipro-CAM's convention, higher is better", 100.0),
    ("adcc_per_image", "ADCC per image", "Poppi et al., higher is better", 100.0),
    ("deletion", "Deletion", "area, lower is better", 100.0),
    ("insertion", "Insertion", "area, higher is better", 100.0),
    ("accuracy", "Correctly classified", "by the name of the folder", 100.0),
    ("pointing", "Pointing game", "peak in a box of the class, or on the mask", 100.0),
    ("pointing_chance", "... by chance", "a peak on any cell", 100.0),
    ("pointing_15px", "Pointing game, 15 px", "peak at most 15 px of the image from it", 100.0),
    ("pointing_15px_chance", "... by chance", "a peak on any cell", 100.0),
    ("pointing_15px_right", "... of those correctly classified", "the same", 100.0),
    ("energy_inside", "Energy inside", "fraction of the heat in boxes of the class, or on the mask", 100.0),
    ("energy_chance", "... by chance", "uniform heat", 100.0),
    ("stability", "Temporal stability", "r of the maps of neighbouring frames", 100.0),
    ("picture_stability", "... of the image", "r of the neighbouring frames themselves", 100.0),
    ("unrest", "Unrest", "change of the maps per change of the images", 1.0),
    ("follows", "Follows the image", "rank correlation of both changes", 100.0),
    ("label_kept", "Same top-1 class", "in the neighbouring frame", 100.0),
    ("randomised", "Randomised weights", "rank correlation, near 0 is right", 100.0),
    ("seconds_per_image_p50", "Time per image, median", "ms", 1000.0),
)
"""Summary key, name, explanation, and the factor of the displayed value."""

CHARTS: Final = (
    "score", "drop", "coherency", "complexity", "adcc", "deletion", "insertion", "energy_inside", "stability",
)  # fmt: skip

_STYLE: Final = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1b1b1f;background:#fff}
table{border-collapse:collapse}td,th{padding:.25rem .9rem .25rem 0;text-align:left}td.n{text-align:right;
font-variant-numeric:tabular-nums}.s{color:#6a6a72}.row{display:flex;flex-wrap:wrap;gap:1rem}
figure{margin:0;width:20.5rem}figure .row{gap:.25rem;flex-wrap:nowrap}figure img{width:10rem;height:auto}
figcaption{font-size:13px;overflow-wrap:anywhere}
svg{width:15rem;height:auto}svg rect{fill:#7b4fc9}svg text{font-size:11px;fill:currentColor}
@media(prefers-color-scheme:dark){body{background:#16161a;color:#e7e7ea}.s{color:#a0a0a8}}
"""


@dataclass(frozen=True, slots=True, eq=False)
class ReportImage:
    """An image with its evaluation record."""

    record: Mapping[str, Any]
    image: Image
    """uint8 RGB, (height, width, 3)."""


def evaluation_html(
    title: str, settings: Mapping[str, Any], summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]],
    images: Mapping[str, Image],
) -> str:  # fmt: skip
    """Return the page.

    Args:
        title: the heading.
        settings: what was evaluated, and how.
        summary: the means.
        records: one per image, with ``image``, ``label``, ``score``, ``adcc``, ``heat`` and ``region``.
        images: the images of ``shown_records``, by their ``image``.
    """
    best, worst = shown_records(records)
    facts = "".join(f"<tr><td>{escape(str(k))}<td>{escape(str(v))}" for k, v in settings.items())
    charts = "".join(histogram(key, [float(r[key]) for r in records if r.get(key) is not None]) for key in CHARTS)
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width,initial-scale=1'>",
        f"<title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1>",
        f"<p>{escape(conclusion(summary))}</p>",
        f"<p>{len(records)} images; the top-1 class of each is explained. Fractions in per cent.</p>",
        f"<table>{_table(summary)}</table><h2>Distributions</h2><div class=row>{charts}</div>",
        "<h2>Best by ADCC</h2>", _gallery([ReportImage(record, images[record["image"]]) for record in best]),
        "<h2>Worst by ADCC</h2>", _gallery([ReportImage(record, images[record["image"]]) for record in worst]),
        f"<h2>Settings</h2><table>{facts}</table></html>\n",
    ]  # fmt: skip
    return "\n".join(parts)


def conclusion(summary: Mapping[str, Any]) -> str:
    """Return the result of an evaluation as text; fractions are compared with chance."""
    sentences = []
    if summary.get("accuracy") is not None:
        sentences.append(f"{summary['accuracy']:.1%} of the images are correctly classified.")
    if summary.get("pointing_15px") is not None:
        chance = summary.get("pointing_15px_chance")
        compared = f" (a random cell: {chance:.1%})" if chance is not None else ""
        sentences.append(
            f"In {summary['pointing_15px']:.1%} of {summary['images_pointed']} images the hottest cell lies on the "
            f"object or at most 15 pixels from it{compared}."
        )
    if summary.get("average_drop") is not None:
        sentences.append(
            f"With everything but the heat hidden, {summary['average_drop']:.1%} of the score is lost on average."
        )
    if summary.get("flat_maps"):
        sentences.append(f"{summary['flat_maps']} of {summary['images']} maps are flat and show nothing.")
    if summary.get("randomised") is not None and summary.get("flat_maps") != summary.get("images"):
        sentences.append(
            f"The rank correlation with the maps of the same network with shuffled weights is "
            f"{summary['randomised']:.2f}; near 0 is right."
        )
    return " ".join(sentences)


def shown_records(
    records: Sequence[Mapping[str, Any]], count: int = 6
) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]:
    """Return the ``count`` best and worst records by ADCC, the extremes first; no record is in both."""
    ranked = sorted(records, key=lambda record: float(record["adcc"]), reverse=True)
    return ranked[:count], ranked[::-1][: min(count, max(0, len(ranked) - count))]


def _table(summary: Mapping[str, Any]) -> str:
    rows = []
    for key, name, explanation, factor in ROWS:
        if summary.get(key) is not None:
            rows.append(
                f"<tr><td>{name}<td class=n>{factor * float(summary[key]):.2f}<td class=s>{escape(explanation)}"
            )
    if summary.get("images_like_learned"):
        rows.append(f"<tr><td>Images similar to training images<td class=n>{summary['images_like_learned']}<td>")
    if summary.get("pointing") is not None:
        rows.append(f"<tr><td>Images with a box of the class, or a mask<td class=n>{summary['images_pointed']}<td>")
    return "".join(rows)


def histogram(name: str, values: Sequence[float]) -> str:
    """Return a histogram of values in [0, 1] as an SVG of 20 bars; empty without values."""
    if not values:
        return ""
    counts, _ = np.histogram(np.clip(values, 0.0, 1.0), BINS, (0.0, 1.0))
    highest = int(counts.max())
    bars = "".join(
        f"<rect x='{10 * k}' y='{80 - 70 * count / highest:.1f}' width='9' height='{70 * count / highest:.1f}'/>"
        for k, count in enumerate(counts.tolist())
    )
    label = f"{escape(name)}: mean {np.mean(values):.3f}, n {len(values)}"
    return (
        f"<svg viewBox='0 -14 200 110' role=img aria-label='{label}'><text x='0' y='-3'>{label}</text>{bars}"
        "<text x='0' y='93'>0</text><text x='194' y='93'>1</text></svg>"
    )


def _gallery(shown: Sequence[ReportImage]) -> str:
    return f"<div class=row>{''.join(map(_image_html, shown))}</div>"


def _image_html(shown: ReportImage) -> str:
    record, image = shown.record, shown.image
    heat = np.asarray(record["heat"], np.float32)
    painted = paint_heat(image, heat, Box(*record["region"]), palette("inferno", 0.65))
    painted = np.array(painted)
    for box in record.get("boxes", ()):
        draw_box(painted, Box(*box), BOX_COLOUR, max(1, image.shape[0] // 150))
    caption = (
        f"{record['label']} {100 * record['score']:.0f} %; ADCC {100 * record['adcc']:.0f}, "
        f"drop {100 * record['drop']:.0f}, coherency {100 * record['coherency']:.0f}, "
        f"complexity {100 * record['complexity']:.0f}"
    )
    return (
        f"<figure><div class=row>{_inline(image)}{_inline(painted)}</div>"
        f"<figcaption>{escape(caption)}<br><span class=s>{escape(str(record['image']))}</span></figcaption></figure>"
    )


def _inline(image: Image) -> str:
    small = scale_image(image, min(1.0, SHOWN_SIDE_PIXELS / max(image.shape[:2])))
    packed = base64.b64encode(encode_image(small, 80)).decode("ascii")
    return f"<img alt='' src='data:image/jpeg;base64,{packed}'>"
