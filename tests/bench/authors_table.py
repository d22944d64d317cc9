"""Makes the authors' table for other photos: methods x networks, ADCC and its parts, with one command.

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
from tests.bench.figures import environment, interleaved, print_line, quantiles
from tests.bench.side_by_side import DEAR, NETWORKS, WAYS, Run, examine_all, find_weights, values_of, with_error

COLUMNS = {
    "drop": "Average Drop", "increase": "Increase", "coherency": "Coherency", "complexity": "Complexity",
    "adcc_of_means": "ADCC over means", "adcc": "ADCC per image", "deletion": "Deletion", "insertion": "Insertion",
}  # fmt: skip


def row(records: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return mean and standard error of each measure, in per cent; ADCC over means has no error."""
    record = {key: with_error(values) for key in COLUMNS if (values := values_of(records, key))}
    parts = [values_of(records, key) for key in ("drop", "coherency", "complexity")]
    record["adcc_of_means"] = [round(100 * metrics.adcc_of_means(*parts), 2)]
    return {key: record[key] for key in COLUMNS if key in record}


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a table, with the columns that any of them has."""
    keys = [key for key in COLUMNS if any(key in row["percent"] for row in rows)]
    heads = ["network", "method", "n", *(COLUMNS[key] for key in keys)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        figures = [" ± ".join(f"{value:.1f}" for value in row["percent"].get(key, [])) for key in keys]
        lines.append(f"| {row['network']} | {row['method']} | {row['photos']} | " + " | ".join(figures) + " |")
    return "\n".join(lines) + "\n"


def measure(photos: Sequence[Path], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of every network: all photos by all cheap methods, then the subset by all."""
    drawn = random.Random(arguments.seed).sample(photos, len(photos))[: arguments.subset]
    cheap = [way for way in arguments.methods if way not in DEAR]
    rows = []
    for part, chosen, ways, steps in (("all", photos, cheap, 0), ("subset", drawn, arguments.methods, arguments.steps)):
        for name in arguments.networks if part in arguments.parts else ():
            run = Run(chosen, ways, "crop", steps)
            for way, records in examine_all(name, arguments.weights, run, arguments.output / part).items():
                told_row = {"part": part, "network": name, "method": way, "photos": len(records)}
                rows.append(told_row | {"percent": row(records)})
                print_line(bench="authors_table", **rows[-1], **environment())
    return rows


def time_methods(photo: Path, arguments: argparse.Namespace) -> None:
    """Print how long one explanation takes, scores included, the methods in turn."""
    for name in arguments.networks:
        fed = NETWORKS[name]
        network = load_network(name, weights=find_weights(arguments.weights, fed.file))
        split = split_network(network.module, network.layer, fed.size)
        preprocessing = Preprocessing(fed.size, fed.mean, fed.std, "crop")
        image = preprocessing.normalised(preprocessing.pixels([Frame(read_image(photo), name, 0, 0.0)]))
        ways = {way: _asked(find_method(*WAYS[way]), split, image) for way in arguments.methods}
        with torch.inference_mode():
            ways["plain network"] = lambda _round, split=split, image=image: split.tail(split.head(image))
            seconds = interleaved({way: method for way, method in ways.items() if way not in DEAR}, arguments.rounds)
            seconds |= interleaved({way: method for way, method in ways.items() if way in DEAR}, 3, 0)
        times = {way: quantiles(durations) for way, durations in seconds.items()}
        print_line(bench="time_of_methods", network=name, threads=torch.get_num_threads(), times=times, **environment())


def _asked(method: Any, split: Any, image: torch.Tensor) -> Any:
    return lambda _round: method(split, image)


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", required=True)
    parser.add_argument("--weights", type=Path, nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--parts", nargs="+", default=["all", "subset"], choices=["all", "subset"])
    parser.add_argument("--subset", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(arguments.threads)
    photos = found_images(arguments.photos, IMAGE_SUFFIXES)[: arguments.limit]
    if arguments.time:
        time_methods(photos[0], arguments)
        return
    rows = measure(photos, arguments)
    parts = [[row for row in rows if row["part"] == part] for part in ("all", "subset")]
    (arguments.output / "table.md").write_text("\n".join(as_markdown(part) for part in parts if part), encoding="utf-8")


if __name__ == "__main__":
    main()
