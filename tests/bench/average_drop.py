"""Compares readings of the definition of Average Drop (ways of masking) on the same photos and maps.

    uv run python -m tests.bench.average_drop --photos DIR --weights DIR [DIR ...] --networks resnet50 --limit 100

The paper multiplies the picture by the map and says no more. A reading is how the photo is cut, how the map is enlarged
and normalised, and whether the picture is multiplied before its colours are normalised (what is hidden turns black) or
after (it turns to the mean colour). For each reading: Average Drop with the standard error of its paired difference to
ours, Coherency, Complexity; and the same Average Drop taken otherwise: for the masked picture's own best class, and as
one share of all scores' sum. One JSON line a network, kernel and reading; then by how sure the network was.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.evaluation import metrics
from engine.methods.kernels import STENCILS, Kernel
from engine.methods.recipro import normalise, plan_for, top_classes
from engine.models.preprocess import Fit, Preprocessing
from engine.split.network import SplitModel
from pipeline.frames import Frame, Image
from stream.images import found_images, read_image
from stream.sources import IMAGE_SUFFIXES
from tests.bench.figures import environment, print_line
from tests.bench.side_by_side import NETWORKS, cut, with_error

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """A variant of the definition; the defaults are ours."""

    fit: str = "crop"
    """``crop`` (the middle square), ``256`` (the middle 7/8 of it: scaled to 256, cut to 224) or ``stretch``."""
    enlarged: str = "bilinear"
    """``bilinear`` between the centres of cells, ``corners`` (cells' centres pulled to the border), ``bicubic``."""
    hidden: str = "mean"
    """Fill of hidden pixels: the ``mean`` colour or ``black``."""
    scaled: str = "min-max"
    """The map: ``min-max`` normalised, over its ``max`` alone, or ``logits``: min-max of scores before the softmax."""


OURS = Reading()
READINGS = (
    OURS,
    Reading(hidden="black"),
    Reading(enlarged="corners"),
    Reading(enlarged="corners", hidden="black"),
    Reading(enlarged="bicubic"),
    Reading(scaled="logits"),
    Reading(scaled="max"),
    Reading(fit="256"),
    Reading(fit="stretch"),
    Reading(fit="stretch", enlarged="corners", hidden="black"),
)
CUTS = (OURS, Reading(fit="256"))


class Reader:
    """A network that explains photos, and its results for variants of the definition."""

    def __init__(self, name: str, weights: Sequence[Path], readings: Sequence[Reading] = READINGS) -> None:
        self.readings = readings
        self.split: SplitModel
        self.split, _ = cut(name, weights)
        fed = NETWORKS[name]
        self.size = fed.size
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (fed.mean, fed.std))

    def colours(self, image: Image, fit: str) -> Tensor:
        """Return the photo fitted to the input, (1, 3, H, W) in [0, 1]."""
        size = tuple(round(side * 256 / 224) for side in self.size) if fit == "256" else self.size
        how: Fit = "stretch" if fit == "stretch" else "crop"
        pixels = Preprocessing((size[0], size[1]), (0.0,) * 3, (1.0,) * 3, how).pixels([Frame(image, "photo", 0, 0.0)])
        top, left = (size[0] - self.size[0]) // 2, (size[1] - self.size[1]) // 2
        return pixels[:, :, top : top + self.size[0], left : left + self.size[1]].float() / 255

    def explain(self, colours: Tensor, kernel: Kernel, target: int | None) -> tuple[Tensor, Tensor, int]:
        """Return softmax scores (N, K), every cell's class scores before the softmax (N, h * w), and the class."""
        features = self.split.head((colours - self.mean) / self.std)
        scores, cell_logits = plan_for(self.split, features, kernel)(features)
        chosen = int(top_classes(scores, 1)) if target is None else target
        return scores.float().softmax(1), cell_logits.float(), chosen

    def map_of(self, cell_logits: Tensor, target: int, reading: Reading) -> Tensor:
        """Return cells' class scores (1, h * w, K) as a map at the input's size, in [0, 1]."""
        cells = (cell_logits if reading.scaled == "logits" else cell_logits.softmax(2))[:, :, target : target + 1]
        if reading.scaled == "logits":
            cells = cells - cells.min()
        cells = cells / cells.max() if reading.scaled == "max" else normalise(cells)
        heat = cells.reshape(1, 1, *self.split.grid)
        if reading.enlarged == "bicubic":
            return F.interpolate(heat, size=self.size, mode="bicubic", align_corners=False)[0, 0].clamp(0, 1)
        corners = reading.enlarged == "corners"
        return F.interpolate(heat, size=self.size, mode="bilinear", align_corners=corners)[0, 0]

    def read(self, image: Image, kernel: Kernel) -> list[dict[str, Any]]:
        """Return the result of each variant for a photo."""
        plain: dict[str, tuple[Tensor, Tensor, Tensor, int]] = {}
        results = []
        for reading in self.readings:
            if reading.fit not in plain:
                colours = self.colours(image, reading.fit)
                plain[reading.fit] = colours, *self.explain(colours, kernel, None)
            colours, scores, cell_logits, target = plain[reading.fit]
            shown = self.map_of(cell_logits, target, reading)
            masked = colours * shown if reading.hidden == "black" else (colours - self.mean) * shown + self.mean
            after, again, _ = self.explain(masked, kernel, target)
            score, left = float(scores[0, target]), float(after[0, target])
            results.append({
                "class": target, "score": score, "left": left, "drop": metrics.drop(score, left),
                "drop_of_best": metrics.drop(score, float(after.max())),
                "coherency": metrics.coherency(shown.numpy(), self.map_of(again, target, reading).numpy()),
                "complexity": metrics.complexity(shown.numpy()),
            })  # fmt: skip
        return results


def report(
    name: str, kernel: str, readings: Sequence[Reading], photos: Sequence[Sequence[dict[str, Any]]]
) -> None:  # fmt: skip
    """Print one line for each variant; the first is ours."""
    ours = [photo[0]["drop"] for photo in photos]
    for number, reading in enumerate(readings):
        records = [photo[number] for photo in photos]
        drops, cohs, cpls = ([record[key] for record in records] for key in ("drop", "coherency", "complexity"))
        lost = 1 - sum(record["left"] for record in records) / sum(record["score"] for record in records)
        print_line(
            bench="average_drop", network=name, kernel=kernel, photos=len(photos), **reading.__dict__,
            average_drop=with_error(drops), to_ours=with_error([a - b for a, b in zip(drops, ours, strict=True)]),
            coherency=with_error(cohs), complexity=with_error(cpls),
            adcc_of_means=round(100 * metrics.adcc_of_means(drops, cohs, cpls), 2),
            drop_of_best=with_error([record["drop_of_best"] for record in records]), drop_of_sums=round(100 * lost, 2),
            **environment(),
        )  # fmt: skip


def report_sureness(name: str, kernel: str, photos: Sequence[dict[str, Any]], right: Sequence[bool]) -> None:
    """Print the Average Drop by score, and for right and wrong answers."""
    groups = {f"score {low:.2f} to {high:.2f}": [low <= reading["score"] < high for reading in photos]
              for low, high in ((0, 0.5), (0.5, 0.8), (0.8, 0.95), (0.95, 1.01))}  # fmt: skip
    groups |= {"named right": list(right), "named wrong": [not reading for reading in right]}
    record = {
        group: {"photos": sum(inside), "average_drop": with_error([reading["drop"] for reading, is_in in
                zip(photos, inside, strict=True) if is_in])}
        for group, inside in groups.items() if any(inside)
    }  # fmt: skip
    print_line(bench="average_drop_by_sureness", network=name, kernel=kernel, groups=record, **environment())


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", required=True, help="File names begin with the class's index.")
    parser.add_argument("--weights", type=Path, nargs="+", required=True)
    parser.add_argument("--networks", nargs="+", default=["resnet50"], choices=list(NETWORKS))
    parser.add_argument("--kernels", nargs="+", default=list(STENCILS), choices=list(STENCILS))
    parser.add_argument("--cuts", action="store_true", help="Only ours, and the photo cut as the networks were tested.")
    parser.add_argument("--limit", type=int, default=100, help="So many photos, evenly chosen.")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(arguments.threads)
    paths = found_images(arguments.photos, IMAGE_SUFFIXES)
    count = min(arguments.limit, len(paths))
    chosen = [paths[index * len(paths) // count] for index in range(count)]
    for name in arguments.networks:
        reader = Reader(
            name, arguments.weights, [reading for reading in READINGS if not arguments.cuts or reading in CUTS]
        )
        photos: dict[Kernel, list[list[dict[str, Any]]]] = {kernel: [] for kernel in arguments.kernels}
        with torch.inference_mode():
            for number, path in enumerate(chosen):
                for kernel, readings in photos.items():
                    readings.append(reader.read(read_image(path), kernel))
                log.info("%s: %d of %d", name, number + 1, count)
        known = [int(match[0]) if (match := re.match(r"\d+", path.name)) else -1 for path in chosen]
        for kernel, readings in photos.items():
            report(name, kernel, reader.readings, readings)
            right = [reading[0]["class"] == index for reading, index in zip(readings, known, strict=True)]
            report_sureness(name, kernel, [reading[0] for reading in readings], right)


if __name__ == "__main__":
    main()
