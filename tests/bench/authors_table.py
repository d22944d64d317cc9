"""The authors' table on photos of one's own: methods x networks, ADCC and its parts, with one command.

    uv run --extra evaluate python -m tests.bench.authors_table --photos DIR --weights DIR [DIR ...] --output DIR

Every photo's top-1 class is explained; the photo's middle square is scaled to the input. Score-CAM runs the network
once for each channel, and again for the map of the masked photo: it (and EigenCAM, which is slow as well) is measured
on ``--subset`` photos, drawn by ``--seed``, with all other methods beside it on the same ones; there Deletion and
Insertion are measured too (``--steps``). Stopped, it goes on where it was; a larger ``--subset`` begins with the same
photos. ``--time`` measures the time of one explanation instead, methods in turn, and wants a quiet machine. One JSON
line a row; the table as Markdown goes to OUTPUT/table.md.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from engine.evaluation import metrics
from engine.methods.registry import find_method
from engine.models.loader import load_network
from engine.models.preprocess import Preprocessing
from engine.split.network import split_network
from pipeline.frames import Frame
from stream.images import found_images, read_image
from stream.sources import IMAGE_SUFFIXES
from tests.bench.figures import interleaved, place, print_line, quantiles
from tests.bench.side_by_side import DEAR, NETWORKS, WAYS, Run, examine_all, find_weights, values_of, with_error

COLUMNS = {
    "drop": "Average Drop", "increase": "Increase", "coherency": "Coherency", "complexity": "Complexity",
    "adcc_of_means": "ADCC over means", "adcc": "ADCC per image", "deletion": "Deletion", "insertion": "Insertion",
}  # fmt: skip


def row(records: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return mean and standard error of each measure, in per cent; ADCC over means has no error."""
    told = {key: with_error(values) for key in COLUMNS if (values := values_of(records, key))}
    parts = [values_of(records, key) for key in ("drop", "coherency", "complexity")]
    told["adcc_of_means"] = [round(100 * metrics.adcc_of_means(*parts), 2)]
    return {key: told[key] for key in COLUMNS if key in told}


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a table, with the columns that any of them has."""
    keys = [key for key in COLUMNS if any(key in one["percent"] for one in rows)]
    heads = ["network", "method", "n", *(COLUMNS[key] for key in keys)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for one in rows:
        figures = [" ± ".join(f"{value:.1f}" for value in one["percent"].get(key, [])) for key in keys]
        lines.append(f"| {one['network']} | {one['method']} | {one['photos']} | " + " | ".join(figures) + " |")
    return "\n".join(lines) + "\n"


def measure(photos: Sequence[Path], told: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of every network: all photos by all cheap methods, then the subset by all."""
    drawn = random.Random(told.seed).sample(photos, len(photos))[: told.subset]
    cheap = [way for way in told.methods if way not in DEAR]
    rows = []
    for part, chosen, ways, steps in (("all", photos, cheap, 0), ("subset", drawn, told.methods, told.steps)):
        for name in told.networks if part in told.parts else ():
            run = Run(chosen, ways, "crop", steps)
            for way, records in examine_all(name, told.weights, run, told.output / part).items():
                told_row = {"part": part, "network": name, "method": way, "photos": len(records)}
                rows.append(told_row | {"percent": row(records)})
                print_line(bench="authors_table", **rows[-1], **place())
    return rows


def time_methods(photo: Path, told: argparse.Namespace) -> None:
    """Print how long one explanation takes, scores included, the methods in turn."""
    for name in told.networks:
        fed = NETWORKS[name]
        network = load_network(name, weights=find_weights(told.weights, fed.file))
        split = split_network(network.module, network.layer, fed.size)
        preprocessing = Preprocessing(fed.size, fed.mean, fed.std, "crop")
        image = preprocessing.normalised(preprocessing.pixels([Frame(read_image(photo), name, 0, 0.0)]))
        ways = {way: _asked(find_method(*WAYS[way]), split, image) for way in told.methods}
        with torch.inference_mode():
            ways["plain network"] = lambda _round, split=split, image=image: split.tail(split.head(image))
            seconds = interleaved({way: ask for way, ask in ways.items() if way not in DEAR}, told.rounds)
            seconds |= interleaved({way: ask for way, ask in ways.items() if way in DEAR}, 3, 0)
        times = {way: quantiles(taken) for way, taken in seconds.items()}
        print_line(bench="time_of_methods", network=name, threads=torch.get_num_threads(), times=times, **place())


def _asked(method: Any, split: Any, image: torch.Tensor) -> Any:
    return lambda _round: method(split, image)


def main() -> None:
    """Measure what the command line names."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--photos", required=True)
    ask.add_argument("--weights", type=Path, nargs="+", required=True)
    ask.add_argument("--output", type=Path, required=True)
    ask.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    ask.add_argument("--methods", nargs="+", default=list(WAYS), choices=list(WAYS))
    ask.add_argument("--parts", nargs="+", default=["all", "subset"], choices=["all", "subset"])
    ask.add_argument("--subset", type=int, default=24)
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument("--steps", type=int, default=14)
    ask.add_argument("--limit", type=int)
    ask.add_argument("--threads", type=int, default=2)
    ask.add_argument("--time", action="store_true")
    ask.add_argument("--rounds", type=int, default=30)
    told = ask.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(told.threads)
    photos = found_images(told.photos, IMAGE_SUFFIXES)[: told.limit]
    if told.time:
        time_methods(photos[0], told)
        return
    rows = measure(photos, told)
    parts = [[one for one in rows if one["part"] == part] for part in ("all", "subset")]
    (told.output / "table.md").write_text("\n".join(as_markdown(part) for part in parts if part), encoding="utf-8")


if __name__ == "__main__":
    main()
