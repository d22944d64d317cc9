"""The pointing game on pictures with boxes: methods side by side, paired with Grad-CAM.

    uv run --extra evaluate python -m tests.bench.pointing --boxes FOLDER --usable usable_top1.json \\
        --class-map imagenet_to_coco.json --weights DIR [DIR ...] --output DIR

FOLDER is a YOLO data set; the file of usable pictures names those, relative to ``--root``, whose top-1 class is an
annotated one for some network. Played where a box of the explained class is known. Every figure comes with its standard
error; ``against`` is the mean of the paired differences to Grad-CAM, picture by picture, with theirs, and how many
pictures either method alone hits. One JSON line a network and method.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from engine.evaluation import metrics
from engine.evaluation.boxes import yolo_boxes
from pipeline.config_loader import read_yaml
from pipeline.frames import Box, GroundTruth
from stream.images import read_image
from tests.bench.figures import environment, print_line
from tests.bench.side_by_side import DEAR, NETWORKS, WAYS, Run, examine_all, values_of, with_error

GAMES = ("pointing", "pointing_15px", "energy_inside")
YARDSTICK = "Grad-CAM"


def read_truths(images: Sequence[Path], names: Sequence[str]) -> dict[str, tuple[GroundTruth, ...]]:
    """Return what each picture holds; its label file stands beside it."""
    return {
        path.name: yolo_boxes(
            path.with_suffix(".txt").read_text(encoding="utf-8"), names, read_image(path).shape[:2], path.name
        )
        for path in images
    }


def against(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], game: str) -> dict[str, Any]:
    """Return the mean paired difference in points with its standard error, and the pictures that only one hits."""
    first, other = values_of(ours, game), values_of(theirs, game)
    apart = [a - b for a, b in zip(first, other, strict=True)]
    line: dict[str, Any] = {"points": with_error(apart)}
    if game != "energy_inside":
        line["only_ours"], line["only_theirs"] = apart.count(1.0), apart.count(-1.0)
    return line


def centre_hits(records: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return whether the picture's centre, always, would have hit."""
    hits = []
    for record in records:
        if record["pointing"] is not None:
            left, top, right, bottom = record["region"]
            boxes = [Box(*box) for box in record["boxes"]]
            hits.append(float(metrics.points_at(((left + right) / 2, (top + bottom) / 2), boxes)))
    return hits


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=Path, required=True)
    parser.add_argument("--usable", type=Path, required=True)
    parser.add_argument("--root", type=Path, help="What the usable pictures' names are relative to.")
    parser.add_argument("--class-map", type=Path, required=True)
    parser.add_argument("--weights", type=Path, nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", default=["resnet18", "resnet50"], choices=list(NETWORKS))
    cheap = [way for way in WAYS if way not in DEAR]
    parser.add_argument("--methods", nargs="+", default=cheap, choices=list(WAYS))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(arguments.threads)
    listed = read_yaml((arguments.boxes / "config.yaml").read_text(encoding="utf-8"), "config.yaml")["names"]
    names = [listed[key] for key in sorted(listed)] if isinstance(listed, dict) else listed
    root = arguments.root or arguments.usable.parent.parent
    images = [root / name for name in json.loads(arguments.usable.read_text(encoding="utf-8"))]
    meaning = next(iter(json.loads(arguments.class_map.read_text(encoding="utf-8")).values()))
    run = Run(images, arguments.methods, "stretch", 0, read_truths(images, names), meaning)
    for name in arguments.networks:
        records = examine_all(name, arguments.weights, run, arguments.output)
        for way, ours in records.items():
            line: dict[str, Any] = {game: with_error(values_of(ours, game)) for game in GAMES}
            line["average_drop"] = with_error(values_of(ours, "drop"))
            if YARDSTICK in records and way != YARDSTICK:
                line["against"] = {game: against(ours, records[YARDSTICK], game) for game in GAMES}
            line["centre"] = with_error(centre_hits(ours))
            count = len(values_of(ours, "pointing"))
            print_line(
                bench="pointing", network=name, method=way, pictures=len(ours), played=count, **line, **environment()
            )


if __name__ == "__main__":
    main()
