"""`run.py evaluate`: does the heat tell the truth?"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commands import options
from commands.joining import make_network
from commands.options import RUN, TRUTH, option, stated
from commands.signals import until_interrupted
from commands.terminal import fail, near, say
from commands.truths import TruthsOf, find_truths, read_meaning
from pipeline.config import make_config
from pipeline.errors import SourceError

if TYPE_CHECKING:
    from engine.evaluation.examiner import Examiner
    from engine.evaluation.journal import Journal

log = logging.getLogger("recipro-stream")


def evaluate(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="A folder or glob of pictures.")],
    output: Annotated[Path, option(RUN, "A folder for the results. One begun before is gone on with.")],
    model: options.Model,
    weights: options.Weights = None,
    labels: options.Labels = None,
    layer: options.Layer = None,
    kernel: options.Kernel = None,
    input_size: options.InputSize = None,
    fit: options.Fit = None,
    mean: options.Mean = None,
    std: options.Std = None,
    threads: options.Threads = None,
    boxes: Annotated[
        Path | None, option(TRUTH, "COCO JSON, or a folder of YOLO .txt or VOC .xml named like the pictures.")
    ] = None,
    box_names: Annotated[
        Path | None, option(TRUTH, "YOLO's class names: its YAML, or a text file, one a line.")
    ] = None,
    class_map: Annotated[
        Path | None, option(TRUTH, 'JSON: {"car": [817, 511]}, the classes of the network a box class stands for.')
    ] = None,
    any_box: Annotated[bool, option(TRUTH, "Count every box, whatever its class.", "--any-box")] = False,
    limit: Annotated[int | None, option(RUN, "So many pictures, evenly chosen. Default: all.", min=1)] = None,
    steps: Annotated[
        int, option(RUN, "Parts in which Deletion and Insertion move the pixels; 0: neither. [default: 28]", min=0)
    ] = 28,
) -> None:
    """Measure on your pictures whether the heat tells the truth; leaves result.json, result.csv and report.html."""
    from engine.evaluation.build import Wanted, build_examiner
    from engine.evaluation.journal import RECORDS, Journal, write_result
    from engine.evaluation.summary import summarise
    from overlays.evaluation_page import ROWS, evaluation_page
    from stream.images import found_images, read_image
    from stream.sources import IMAGE_SUFFIXES

    engine = {
        "model": model, "weights": weights, "labels": labels, "layer": layer, "kernel": kernel,
        "input_size": input_size, "fit": fit, "mean": mean, "std": std, "threads": threads,
    }  # fmt: skip
    config = make_config({}, "command line", {"engine": stated(engine)})
    paths = {path.name if Path(folder).is_dir() else str(path): path for path in found_images(folder, IMAGE_SUFFIXES)}
    chosen = list(paths) if limit is None or limit >= len(paths) else _evenly(list(paths), limit)
    truths_of = find_truths(boxes, box_names)
    examiner = build_examiner(
        make_network(config), config.engine, Wanted(steps, any_box=any_box, meaning=read_meaning(class_map))
    )
    settings = {
        "pictures": folder, **engine, "kernel": config.engine.kernel, "fit": config.engine.fit, "steps": steps,
        "layer": examiner.split.layer, "grid": "{}x{}".format(*examiner.split.grid), "boxes": boxes and str(boxes),
        "box_names": box_names and str(box_names), "class_map": class_map and str(class_map), "any_box": any_box,
        "input_size": "{}x{}".format(*examiner.split.image_size),
    }  # fmt: skip
    del settings["threads"]
    begun = threading.Event()
    begun.set()
    with until_interrupted(begun) as stop, Journal(output, settings) as journal:
        _examine(examiner, [(name, paths[name]) for name in chosen], journal, truths_of, stop)
        records = [journal.records[name] for name in chosen if name in journal.records]
    if not records:
        fail(f"{folder}: no picture was measured; none decodes, or the run was ended before the first")
    summary = summarise(records)
    write_result(output, settings, summary, records)
    title = f"{config.engine.model}, Recipro-CAM ({config.engine.kernel})"
    page = evaluation_page(title, settings, summary, records, lambda name: read_image(paths[name]))
    (output / "report.html").write_text(page, encoding="utf-8")
    for key, name, _, factor in ROWS:
        if summary.get(key) is not None:
            say(f"{name:28} {factor * float(summary[key] or 0):8.2f}")
    say(f"\n{len(records)} of {len(chosen)} pictures; read {near(output / 'report.html')} ({RECORDS} holds each one)")


def _evenly(names: list[str], count: int) -> list[str]:
    return [names[place * len(names) // count] for place in range(count)]


def _examine(
    examiner: Examiner, pictures: list[tuple[str, Path]], journal: Journal, truths_of: TruthsOf | None,
    stop: threading.Event,
) -> None:  # fmt: skip
    """Measure the pictures that the journal does not hold yet, and tell how far it is."""
    from rich.console import Console
    from rich.progress import Progress

    from pipeline.frames import Frame
    from stream.images import read_image

    waiting = [(name, path) for name, path in pictures if name not in journal.records]
    if len(waiting) < len(pictures):
        say(f"{len(pictures) - len(waiting)} of {len(pictures)} pictures were measured before; going on.")
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for index, (name, path) in enumerate(progress.track(waiting, description="measuring")):
            if stop.is_set():
                return
            try:
                image = read_image(path)
            except SourceError as reason:
                log.warning("left out: %s", reason)
                continue
            truths = None if truths_of is None else truths_of(path, image.shape[:2])
            journal.add({"image": name, **examiner.examine(Frame(image, "evaluate", index, 0.0), truths)})
