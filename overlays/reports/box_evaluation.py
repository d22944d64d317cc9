"""HTML report on an evaluation of a detector's heat maps: tables, and the boxes with the best and worst maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from overlays.render.colormaps import palette
from overlays.render.heatmap import draw_box, paint_heat
from overlays.reports.evaluation import BOX_COLOUR, SHOWN_SIDE_PIXELS
from overlays.reports.page import Figure, image_uri, render_page, shrink
from pipeline.frames import Box, Image

COLUMNS: Final = (
    ("difference", "insertion less deletion"),
    ("insertion", "insertion"),
    ("deletion", "deletion"),
    ("similarity_difference", "the same, D-RISE's score"),
    ("less_gaussian-anchor", "less Gaussian at anchor"),
    ("less_odam", "less ODAM"),
    ("pointing", "pointing game"),
    ("energy", "energy in box"),
    ("evidence", "evidence in box"),
    ("randomised", "randomised weights"),
)
"""Key and heading of each measure; docs/evaluation.md defines the measures."""

NAMES: Final = {
    "keep": "keep", "drop": "drop", "level-keep": "fast cut, keep", "level-drop": "fast cut, drop", "odam": "ODAM",
    "odam-cut": "ODAM, complete cut", "eigen-cam": "EigenCAM", "d-rise": "D-RISE",
    "gaussian-anchor": "Gaussian at the anchor", "gaussian-box": "Gaussian in the box", "random": "random",
}  # fmt: skip
"""Name in tables by method."""
SHOWN_BY: Final = ("keep", "drop")
COUNT: Final = 6


class ShownBox(NamedTuple):
    """An evaluated box that the report shows."""

    image: str
    entry: Mapping[str, Any]
    region: Box


def box_evaluation_html(
    title: str, settings: Mapping[str, Any], summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]],
    images: Mapping[str, Image],
) -> str:  # fmt: skip
    """Return the report as HTML.

    Args:
        title: the heading.
        settings: names and values of the evaluation's settings.
        summary: the result of ``summarise_boxes``.
        records: the records of ``BoxEvaluator``, one per image, with the key ``image``.
        images: the images of ``shown_boxes`` by their ``image``; uint8 RGB, (height, width, 3).
    """
    best, worst = shown_boxes(records)
    heads, rows = table(summary)
    return render_page(
        "boxes.html",
        title=title,
        conclusion=box_conclusion(summary),
        counts=counts(summary),
        heads=heads,
        rows=[(name, [value.replace(" ", "\u00a0") for value in values]) for name, values in rows],
        galleries={
            f"{name} by insertion less deletion of keep; keep and drop are shown": [
                box_figure(shown, images[shown.image]) for shown in chosen
            ]
            for name, chosen in (("Best", best), ("Worst", worst))
            if chosen
        },
        settings=settings,
    )


def table(summary: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Return the headings and one row per method; columns without any value are omitted."""
    methods = summary["methods"]
    columns = [(key, name) for key, name in COLUMNS if any(row.get(key) for row in methods.values())]
    rows = [(NAMES.get(name, name), [_cell(row.get(key)) for key, _ in columns]) for name, row in methods.items()]
    return [name for _, name in columns], rows


def _cell(value: Mapping[str, Any] | None) -> str:
    """Return mean and standard error as text; "" for None."""
    if value is None:
        return ""
    return f"{value['mean']:.3f}" + (f" ± {value['se']:.3f}" if value["se"] is not None else "")


def counts(summary: Mapping[str, Any]) -> str:
    """Return a text with the numbers of evaluated boxes, found, missed and unknown objects."""
    text = (
        f"{summary['boxes']} boxes of {summary['images']} images are judged. The detector found {summary['matched']} "
        f"of {summary['matched'] + summary['missed']} annotated objects of its classes (IoU at least 0.5); "
        f"{summary['missed']} are missed"
    )
    if summary["unknown"]:
        text += f", and {summary['unknown']} further objects have a class that it does not know"
    return f"{text}. {summary['extra']} detections match no object."


def box_conclusion(summary: Mapping[str, Any]) -> str:
    """Return a text that compares the shown methods with the Gaussian and with ODAM."""
    sentences = []
    if summary.get("anchor_pointing") is not None:
        sentences.append(
            f"A dot at the anchor scores {summary['anchor_pointing']:.2f} in the pointing game, which proves nothing "
            "by itself."
        )
    for name in SHOWN_BY:
        row = summary["methods"].get(name, {})
        for other, text in (("gaussian-anchor", "the Gaussian at the anchor"), ("odam", "ODAM")):
            value = row.get(f"less_{other}")
            if value is not None:
                error = "" if value["se"] is None else f" ± {value['se']:.3f}"
                sentences.append(
                    f"Insertion less deletion of {name} differs from that of {text} by {value['mean']:+.3f}{error}."
                )
    return " ".join(sentences)


def shown_boxes(records: Sequence[Mapping[str, Any]], count: int = COUNT) -> tuple[list[ShownBox], list[ShownBox]]:
    """Return the ``count`` best and worst boxes by insertion minus deletion; no box is in both lists."""
    boxes = [
        ShownBox(str(record["image"]), entry, Box(*record["region"]))
        for record in records
        for entry in record["judged"]
        if entry["maps"]
    ]
    ranked = sorted(boxes, key=_rank, reverse=True)
    return ranked[:count], ranked[::-1][: min(count, max(0, len(ranked) - count))]


def _rank(shown: ShownBox) -> float:
    """Return insertion minus deletion of the box's first shown method, or its energy if curves were not measured."""
    measured = next(shown.entry["methods"][name] for name in SHOWN_BY if name in shown.entry["methods"])
    if measured.get("insertion") is None:
        return float(measured["energy"])
    return float(measured["insertion"]) - float(measured["deletion"])


def box_figure(shown: ShownBox, image: Image) -> Figure:
    """Return a figure with one picture per heat map of a box: the map and the box over the image."""
    pictures = []
    for heat in shown.entry["maps"].values():
        painted = np.array(
            paint_heat(image, np.asarray(heat, np.float32), _covered(shown, heat), palette("inferno", 0.65))
        )
        draw_box(painted, Box(*shown.entry["box"]), BOX_COLOUR, max(1, image.shape[0] // 150))
        pictures.append(image_uri(shrink(painted, SHOWN_SIDE_PIXELS)))
    caption = f"{shown.entry['label']} {100 * shown.entry['score']:.0f} %, IoU {shown.entry['iou']:.2f}"
    for name in shown.entry["maps"]:
        measured = shown.entry["methods"][name]
        if measured.get("insertion") is not None:
            caption += f"; {name}: insertion {measured['insertion']:.2f}, deletion {measured['deletion']:.2f}"
    return Figure(tuple(pictures), caption, shown.image)


def _covered(shown: ShownBox, heat: Sequence[Sequence[float]]) -> Box:
    """Return the rectangle of the frame that a map covers; the last cells may extend beyond the input."""
    cell, (height, width) = shown.entry["cell_px"], shown.entry["input_size"]
    region = shown.region
    return Box(
        region.left,
        region.top,
        region.left + region.width * len(heat[0]) * cell / width,
        region.top + region.height * len(heat) * cell / height,
    )
