"""An evaluation as one page that needs nothing else: table, distributions, the best and the worst pictures.

Values in, HTML out. Every word that comes from outside is escaped. Knows nothing about how anything was measured.
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
    ("accuracy", "Named right", "as the folder is called", 100.0),
    ("pointing", "Pointing game", "peak in a box of the class, or on the mask", 100.0),
    ("pointing_chance", "... by chance", "a peak on any cell", 100.0),
    ("pointing_15px", "Pointing game, 15 px", "peak within 15 px of the picture from it", 100.0),
    ("pointing_15px_chance", "... by chance", "a peak on any cell", 100.0),
    ("pointing_15px_right", "... of those named right", "the same", 100.0),
    ("energy_inside", "Energy inside", "share of the heat in boxes of the class, or on the mask", 100.0),
    ("energy_chance", "... by chance", "heat spread evenly", 100.0),
    ("stability", "Temporal stability", "r of the maps of neighbouring frames", 100.0),
    ("picture_stability", "... of the picture", "r of the neighbouring frames themselves", 100.0),
    ("unrest", "Unrest", "the maps' change for each unit of the pictures'", 1.0),
    ("follows", "Follows the picture", "rank correlation of both changes", 100.0),
    ("label_kept", "Same top-1 class", "in the neighbouring frame", 100.0),
    ("randomised", "Randomised weights", "rank correlation, near 0 is right", 100.0),
    ("seconds_per_image_p50", "Time per image, median", "ms", 1000.0),
)
"""Summary key, its name, what to look for, and the factor it is shown with."""

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
    """A picture beside its explanation."""

    record: Mapping[str, Any]
    image: Image
    """uint8 RGB, (height, width, 3)."""


def evaluation_html(
    title: str, settings: Mapping[str, Any], summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]],
    images: Mapping[str, Image],
) -> str:  # fmt: skip
    """Return the whole page.

    Args:
        title: its heading.
        settings: what was evaluated, and how.
        summary: the means.
        records: one a picture, with ``image``, ``label``, ``score``, ``adcc``, ``heat`` and ``region``.
        images: the pictures of ``shown_records``, by their ``image``.
    """
    best, worst = shown_records(records)
    told = "".join(f"<tr><td>{escape(str(k))}<td>{escape(str(v))}" for k, v in settings.items())
    charts = "".join(histogram(key, [float(one[key]) for one in records if one.get(key) is not None]) for key in CHARTS)
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width,initial-scale=1'>",
        f"<title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1>",
        f"<p>{escape(conclusion(summary))}</p>",
        f"<p>{len(records)} pictures; each one's top-1 class explained. Shares in per cent.</p>",
        f"<table>{_table(summary)}</table><h2>Distributions</h2><div class=row>{charts}</div>",
        "<h2>The best by ADCC</h2>", _gallery([ReportImage(one, images[one["image"]]) for one in best]),
        "<h2>The worst by ADCC</h2>", _gallery([ReportImage(one, images[one["image"]]) for one in worst]),
        f"<h2>What ran</h2><table>{told}</table></html>\n",
    ]  # fmt: skip
    return "\n".join(parts)


def conclusion(summary: Mapping[str, Any]) -> str:
    """Return what an evaluation came to, in words; a share beside the one that chance would give."""
    told = []
    if summary.get("accuracy") is not None:
        told.append(f"{summary['accuracy']:.1%} of the pictures are named right.")
    if summary.get("pointing_15px") is not None:
        chance = summary.get("pointing_15px_chance")
        beside = f", where a cell chosen by chance would in {chance:.1%}" if chance is not None else ""
        told.append(
            f"In {summary['pointing_15px']:.1%} of {summary['images_pointed']} pictures the hottest cell lies on the "
            f"object or within 15 pixels of it{beside}."
        )
    if summary.get("average_drop") is not None:
        told.append(f"With all but the heat hidden, {summary['average_drop']:.1%} of the score is lost on average.")
    if summary.get("flat_maps"):
        told.append(f"{summary['flat_maps']} of {summary['images']} maps are flat and show nothing.")
    if summary.get("randomised") is not None and summary.get("flat_maps") != summary.get("images"):
        told.append(
            f"The same network with shuffled weights gives maps whose rank correlation with these is "
            f"{summary['randomised']:.2f}; near 0 is right."
        )
    return " ".join(told)


def shown_records(
    records: Sequence[Mapping[str, Any]], pictures: int = 6
) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]:
    """Return the best and the worst by ADCC, the very best and the very worst first; no picture is both."""
    ranked = sorted(records, key=lambda one: float(one["adcc"]), reverse=True)
    return ranked[:pictures], ranked[::-1][: min(pictures, max(0, len(ranked) - pictures))]


def _table(summary: Mapping[str, Any]) -> str:
    rows = []
    for key, name, what, factor in ROWS:
        if summary.get(key) is not None:
            rows.append(f"<tr><td>{name}<td class=n>{factor * float(summary[key]):.2f}<td class=s>{escape(what)}")
    if summary.get("images_like_learned"):
        rows.append(f"<tr><td>Pictures nearly like learned ones<td class=n>{summary['images_like_learned']}<td>")
    if summary.get("pointing") is not None:
        rows.append(f"<tr><td>Pictures with a box of the class, or a mask<td class=n>{summary['images_pointed']}<td>")
    return "".join(rows)


def histogram(name: str, values: Sequence[float]) -> str:
    """Return how values in [0, 1] are spread, as an SVG of 20 bars; nothing for no value."""
    if not values:
        return ""
    counts, _ = np.histogram(np.clip(values, 0.0, 1.0), BINS, (0.0, 1.0))
    most = int(counts.max())
    bars = "".join(
        f"<rect x='{10 * place}' y='{80 - 70 * count / most:.1f}' width='9' height='{70 * count / most:.1f}'/>"
        for place, count in enumerate(counts.tolist())
    )
    label = f"{escape(name)}: mean {np.mean(values):.3f}, n {len(values)}"
    return (
        f"<svg viewBox='0 -14 200 110' role=img aria-label='{label}'><text x='0' y='-3'>{label}</text>{bars}"
        "<text x='0' y='93'>0</text><text x='194' y='93'>1</text></svg>"
    )


def _gallery(shown: Sequence[ReportImage]) -> str:
    return f"<div class=row>{''.join(map(_figure, shown))}</div>"


def _figure(shown: ReportImage) -> str:
    one, image = shown.record, shown.image
    heat = np.asarray(one["heat"], np.float32)
    painted = paint_heat(image, heat, Box(*one["region"]), palette("inferno", 0.65))
    painted = np.array(painted)
    for box in one.get("boxes", ()):
        draw_box(painted, Box(*box), BOX_COLOUR, max(1, image.shape[0] // 150))
    words = (
        f"{one['label']} {100 * one['score']:.0f} %; ADCC {100 * one['adcc']:.0f}, drop {100 * one['drop']:.0f}, "
        f"coherency {100 * one['coherency']:.0f}, complexity {100 * one['complexity']:.0f}"
    )
    return (
        f"<figure><div class=row>{_inline(image)}{_inline(painted)}</div>"
        f"<figcaption>{escape(words)}<br><span class=s>{escape(str(one['image']))}</span></figcaption></figure>"
    )


def _inline(image: Image) -> str:
    small = scale_image(image, min(1.0, SHOWN_SIDE_PIXELS / max(image.shape[:2])))
    packed = base64.b64encode(encode_image(small, 80)).decode("ascii")
    return f"<img alt='' src='data:image/jpeg;base64,{packed}'>"
