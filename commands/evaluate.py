"""`run.py evaluate`: does the heat tell the truth?"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Annotated, Final

import typer

from commands import options
from commands.annotations import Annotations, load_boxes, load_masks, read_class_map
from commands.console import fail, print_line, relative_path, write_text
from commands.evaluation_inputs import VIDEO_LIMIT, file_digest, open_input
from commands.options import NETWORK, RUN, TRUTH, drop_none, option
from commands.signals import shutdown_on_signal
from commands.trained_images import Learned, warn_of_learned
from commands.wiring.run import make_network
from pipeline.config_loader import validate_config
from pipeline.errors import ConfigError

log = logging.getLogger("recipro-stream")

MAX_STEPS: Final = 224
"""RISE's own number, a row of pixels each."""


def evaluate(
    pictures: Annotated[
        str, typer.Argument(metavar="PICTURES", help="A folder, glob or .txt list of pictures, or a video.")
    ],
    output: Annotated[Path, option(RUN, "A folder for the results. One begun before is gone on with.")],
    model: options.Model,
    weights: options.Weights = None,
    labels: options.Labels = None,
    layer: options.Layer = None,
    method: Annotated[
        str | None,
        option(
            NETWORK,
            "recipro-cam (default); to compare: cam, grad-cam, grad-cam++, layer-cam, score-cam, eigen-cam.",
        ),
    ] = None,
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
    masks: Annotated[
        Path | None, option(TRUTH, "Pixel masks named like the pictures, in a folder; beside them, or of its own.")
    ] = None,
    mask_above: Annotated[
        int, option(TRUTH, "A mask's pixel brighter than this is the object. [default: 0]", min=0, max=254)
    ] = 0,
    limit: Annotated[
        int | None,
        option(RUN, f"So many pictures, evenly chosen. Default: all; of a video {VIDEO_LIMIT} frames.", min=1),
    ] = None,
    steps: Annotated[
        int, option(RUN, "Parts in which Deletion and Insertion move the pixels; 0: neither. [default: 28]", min=0)
    ] = 28,
) -> None:
    """Measure on your pictures whether the heat tells the truth; leaves result.json, result.csv and report.html."""
    from engine.evaluation.factory import EvaluationOptions, build_evaluator
    from engine.evaluation.results import RECORDS, ResultsLog, write_result
    from engine.evaluation.summary import summarise
    from engine.export.metadata import is_exported
    from overlays.reports.evaluation import ROWS, conclusion, evaluation_html, shown_records

    engine = {
        "model": model, "weights": weights, "labels": labels, "layer": layer, "kernel": kernel,
        "input_size": input_size, "fit": fit, "mean": mean, "std": std, "threads": threads,
    }  # fmt: skip
    config = validate_config({}, "command line", {"engine": drop_none(engine)})
    if is_exported(config.engine.model):
        raise ConfigError(
            f"--model {config.engine.model!r}: an exported file cannot be taken apart to be measured; name the network "
            "it was made of, or the .safetensors that `train` wrote"
        )
    if kernel and method not in {None, "recipro-cam"}:
        raise ConfigError(f"--kernel {kernel!r}: is of recipro-cam, not of {method}; leave one of them out")
    if masks and boxes:
        raise ConfigError(f"--masks {str(masks)!r} and --boxes {str(boxes)!r}: one truth at a time; leave one out")
    if steps > MAX_STEPS:
        raise ConfigError(
            f"--steps {steps}: {MAX_STEPS} at the most, as in the paper: each is one more run of the network, and the "
            "area under a finer curve is the same"
        )
    meaning = read_class_map(class_map)
    wanted = EvaluationOptions(method=method or "recipro-cam", steps=steps, any_box=any_box, class_map=meaning)
    known = load_boxes(boxes, box_names) if boxes else load_masks(masks, mask_above) if masks else Annotations()
    work = open_input(pictures, limit, known, Learned(config.engine.model))
    evaluator = build_evaluator(make_network(config), config.engine, wanted)
    _check_meaning(meaning, class_map, evaluator.split.classes)
    settings = {
        "pictures": pictures, "method": wanted.method, **engine, "kernel": config.engine.kernel, "fit": evaluator.fit,
        "steps": steps,
        "layer": evaluator.split.layer, "grid": "{}x{}".format(*evaluator.split.grid), "boxes": boxes and str(boxes),
        "box_names": box_names and str(box_names), "class_map": class_map and str(class_map), "any_box": any_box,
        "masks": masks and str(masks), "mask_above": mask_above,
        "input_size": "{}x{}".format(*evaluator.split.image_size),
        "files": _digests(config.engine.model, config.engine.weights, boxes, box_names, class_map, work.recording),
    }  # fmt: skip
    del settings["threads"]
    begun = threading.Event()
    begun.set()
    with shutdown_on_signal(begun) as stop, ResultsLog(output, settings) as results:
        work.examine(evaluator, results, stop)
        records = [results.records[name] for name in work.names if name in results.records]
    if not records:
        fail(f"{pictures}: no picture was measured; none decodes, or the run was ended before the first")
    summary = summarise(records)
    warn_of_learned(records)
    if boxes and not summary["images_pointed"]:
        log.warning(
            "no picture has a box of the class explained: say what boxes stand for by --class-map, or --any-box"
        )
    write_result(output, settings, summary, records)
    best, worst = shown_records(records)
    images = work.images([one["image"] for one in (*best, *worst)])
    how = f"recipro-cam ({config.engine.kernel})" if wanted.method == "recipro-cam" else wanted.method
    page = evaluation_html(f"{config.engine.model}, {how}", settings, summary, records, images)
    write_text(output / "report.html", page)
    for key, name, _, factor in ROWS:
        if summary.get(key) is not None:
            print_line(f"{name:28} {factor * float(summary[key] or 0):8.2f}")
    print_line(f"\n{conclusion(summary)}")
    page_place = relative_path(output / "report.html")
    print_line(f"\n{len(records)} of {len(work.names)} pictures; read {page_place} ({RECORDS} holds each one)")


def _check_meaning(meaning: dict[str, list[int]], class_map: Path | None, classes: int) -> None:
    for name, several in meaning.items():
        for one in several:
            if not 0 <= one < classes:
                raise ConfigError(
                    f"--class-map {str(class_map)!r}: {name!r} stands for {one}; the network's classes go from 0 to "
                    f"{classes - 1}"
                )


def _digests(*places: str | Path | None) -> dict[str, str]:
    """Return what the files were that figures depend on: trained again, a network is another one under one name."""
    files = [Path(place) for place in places if place is not None and Path(place).is_file()]
    names = [one.name for one in files]
    return {one.name if names.count(one.name) == 1 else str(one): file_digest(one) for one in files}
