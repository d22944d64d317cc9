"""HTML report on an evaluation: a self-contained page with table, histograms, best and worst images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from overlays.render.colormaps import palette
from overlays.render.heatmap import draw_box, paint_heat
from overlays.reports.page import Figure, image_uri, render_page, shrink
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
"""Rows of the table: summary key, name, explanation, and factor of the displayed value."""

CHARTS: Final = (
    "score", "drop", "coherency", "complexity", "adcc", "deletion", "insertion", "energy_inside", "stability",
)  # fmt: skip


def evaluation_html(
    title: str, settings: Mapping[str, Any], summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]],
    images: Mapping[str, Image],
) -> str:  # fmt: skip
    """Return the report as HTML.

    Args:
        title: the heading.
        settings: names and values of the evaluation's settings.
        summary: the means over all images, by measure.
        records: one record per image, with ``image``, ``label``, ``score``, ``adcc``, ``heat`` and ``region``.
        images: the images of ``shown_records`` by their ``image``; uint8 RGB, (height, width, 3).
    """
    best, worst = shown_records(records)
    values = {key: [float(record[key]) for record in records if record.get(key) is not None] for key in CHARTS}
    return render_page(
        "evaluation.html",
        title=title,
        conclusion=conclusion(summary),
        count=len(records),
        rows=list(_rows(summary)),
        histograms=[histogram(key, chart) for key, chart in values.items() if chart],
        galleries={
            f"{name} by ADCC": [_figure(record, images[record["image"]]) for record in chosen]
            for name, chosen in (("Best", best), ("Worst", worst))
        },
        settings=settings,
    )


def conclusion(summary: Mapping[str, Any]) -> str:
    """Return the result of an evaluation as text, compared with chance."""
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
    """Return the ``count`` best and worst records by ADCC, extremes first; no record is in both lists."""
    ranked = sorted(records, key=lambda record: float(record["adcc"]), reverse=True)
    return ranked[:count], ranked[::-1][: min(count, max(0, len(ranked) - count))]


def _rows(summary: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and explanation of each row of the table."""
    for key, name, explanation, factor in ROWS:
        if summary.get(key) is not None:
            yield name, f"{factor * float(summary[key]):.2f}", explanation
    if summary.get("images_like_learned"):
        yield "Images similar to training images", str(summary["images_like_learned"]), ""
    if summary.get("pointing") is not None:
        yield "Images with a box of the class, or a mask", str(summary["images_pointed"]), ""


class Histogram(NamedTuple):
    """Title and bars of a histogram."""

    title: str
    heights: tuple[float, ...]
    """Height of each bar in pixels; the highest bar has 70."""


def histogram(name: str, values: Sequence[float]) -> Histogram:
    """Return a histogram of ``values``, one or more, over [0, 1]."""
    counts, _ = np.histogram(np.clip(values, 0.0, 1.0), BINS, (0.0, 1.0))
    heights = 70.0 * counts / counts.max()
    return Histogram(f"{name}: mean {np.mean(values):.3f}, n {len(values)}", tuple(heights.tolist()))


def _figure(record: Mapping[str, Any], image: Image) -> Figure:
    heat = np.asarray(record["heat"], np.float32)
    painted = np.array(paint_heat(image, heat, Box(*record["region"]), palette("inferno", 0.65)))
    for box in record.get("boxes", ()):
        draw_box(painted, Box(*box), BOX_COLOUR, max(1, image.shape[0] // 150))
    caption = (
        f"{record['label']} {100 * record['score']:.0f} %; ADCC {100 * record['adcc']:.0f}, "
        f"drop {100 * record['drop']:.0f}, coherency {100 * record['coherency']:.0f}, "
        f"complexity {100 * record['complexity']:.0f}"
    )
    uris = tuple(image_uri(shrink(shown, SHOWN_SIDE_PIXELS)) for shown in (image, painted))
    return Figure(uris, caption, str(record["image"]))
