"""`run.py evaluate`: measures the faithfulness and the localisation of explanations."""

from __future__ import annotations

import logging
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from commands import options
from commands.actor_pool import with_own_threads
from commands.annotations import Annotations, load_boxes, load_masks, read_class_map
from commands.console import fail, print_line, relative_path, write_text
from commands.evaluate_detector import BoxFiles, DetectorEvaluation, check_class_map, evaluate_detector
from commands.evaluation_inputs import VIDEO_LIMIT, file_digests, open_input
from commands.evaluation_run import EvaluationRun, check_workers
from commands.options import NETWORK, RUN, TRUTH, drop_none, option
from commands.signals import shutdown_on_signal
from commands.trained_images import TrainedImages, warn_of_trained_images
from commands.wiring.run import make_network
from pipeline.config_loader import validate_config
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from engine.evaluation.evaluator import Evaluator
    from engine.evaluation.factory import EvaluationOptions
    from pipeline.config import Config

log = logging.getLogger("recipro-stream")

BOXES: Final = "Detectors"
MAX_STEPS: Final = 224
"""Number of steps in RISE (arXiv:1806.07421): each step changes as many pixels as a row of a 224x224 image."""


def evaluate(
    images: Annotated[str, typer.Argument(metavar="IMAGES", help="A folder, glob or .txt list of images, or a video.")],
    output: Annotated[Path, option(RUN, "A folder for the results. An interrupted evaluation continues there.")],
    model: options.Model,
    weights: options.Weights = None,
    labels: options.Labels = None,
    layer: options.Layer = None,
    method: Annotated[
        str | None,
        option(
            NETWORK,
            "recipro-cam (default); to compare: cam, grad-cam, grad-cam++, layer-cam, score-cam, eigen-cam. Detectors: "
            "a list of keep, drop, level-keep, level-drop, odam, odam-cut, eigen-cam. Default: all.",
        ),
    ] = None,
    kernel: options.Kernel = None,
    input_size: options.InputSize = None,
    fit: options.Fit = None,
    mean: options.Mean = None,
    std: options.Std = None,
    threads: options.Threads = None,
    boxes: Annotated[
        Path | None,
        option(TRUTH, "Boxes: COCO JSON, or a folder of YOLO .txt or VOC .xml files named like the images."),
    ] = None,
    box_names: Annotated[
        Path | None, option(TRUTH, "YOLO's class names: its YAML, or a text file with one name a line.")
    ] = None,
    class_map: Annotated[
        Path | None, option(TRUTH, 'JSON: {"car": [817, 511]}, the network classes that correspond to a box class.')
    ] = None,
    any_box: Annotated[bool, option(TRUTH, "Use every box, regardless of its class.", "--any-box")] = False,
    masks: Annotated[
        Path | None, option(TRUTH, "A folder of pixel masks named like the images; it may be the folder of the images.")
    ] = None,
    mask_above: Annotated[
        int, option(TRUTH, "Mask pixels brighter than this belong to the object. [default: 0]", min=0, max=254)
    ] = 0,
    limit: Annotated[
        int | None,
        option(RUN, f"Maximum number of images, evenly spaced. Default: all; {VIDEO_LIMIT} frames of a video.", min=1),
    ] = None,
    workers: options.Workers = 1,
    steps: Annotated[
        int, option(RUN, "Steps of Deletion and Insertion; 0: do not measure them. [default: 28]", min=0)
    ] = 28,
    layout: Annotated[
        str | None, option(BOXES, "Output layout of an ONNX file. Default: detected from the output shapes.")
    ] = None,
    cell_px: Annotated[
        int | None, option(BOXES, "Side of a cell in pixels of the input. Default: 32 or more.", "--cell", min=1)
    ] = None,
    cut: options.Cut = None,
    boxes_per_image: Annotated[
        int | None, option(BOXES, "Maximum number of judged boxes of an image. Default: all.", min=1)
    ] = None,
    drise_masks: Annotated[
        int, option(BOXES, "Measure D-RISE with this number of masks. [default: 0, no D-RISE]", min=0)
    ] = 0,
) -> None:
    """Evaluate explanations on your images; writes result.json, result.csv and report.html."""
    from commands.wiring.detectors import is_detector

    if steps > MAX_STEPS:
        raise ConfigError(
            f"--steps {steps}: must be at most {MAX_STEPS}, as in the paper; more steps take more time and give the "
            "same area under the curve"
        )
    if is_detector(model):
        _refuse(
            {"layer": layer, "kernel": kernel, "fit": fit, "mean": mean, "std": std, "masks": masks},
            "not an option of a detector",
        )
        evaluate_detector(
            DetectorEvaluation(
                images=images, output=output, layout=layout, cut=cut, method=method, cell_px=cell_px,
                limit=limit, steps=steps,
                engine={
                    "model": model, "weights": weights, "labels": labels, "input_size": input_size, "threads": threads,
                },
                truth=BoxFiles(boxes, box_names, class_map, any_box),
                boxes_per_image=boxes_per_image, drise_masks=drise_masks, workers=workers,
            )
        )  # fmt: skip
        return
    _refuse(
        {"layout": layout, "cut": cut, "cell": cell_px, "boxes-per-image": boxes_per_image, "drise-masks": drise_masks},
        "an option of detectors",
    )
    from engine.evaluation.factory import EvaluationOptions
    from engine.evaluation.results import RECORDS, ResultsLog, write_result
    from engine.evaluation.summary import summarise
    from engine.export.metadata import is_exported, is_foreign_onnx
    from overlays.reports.evaluation import evaluation_html, shown_records

    engine = {
        "model": model, "weights": weights, "labels": labels, "layer": layer, "kernel": kernel,
        "input_size": input_size, "fit": fit, "mean": mean, "std": std, "threads": threads,
    }  # fmt: skip
    config = validate_config({}, "command line", {"engine": drop_none(engine)})
    if is_exported(config.engine.model) and not is_foreign_onnx(config.engine.model):
        raise ConfigError(
            f"--model {config.engine.model!r}: an exported file cannot be split for the evaluation; give the network "
            "that was exported, or the .safetensors file of `train`"
        )
    if kernel and method not in {None, "recipro-cam"}:
        raise ConfigError(f"--kernel {kernel!r}: an option of recipro-cam, not of {method}; omit --kernel or --method")
    if masks and boxes:
        raise ConfigError(
            f"--masks {str(masks)!r} and --boxes {str(boxes)!r}: only one of them can be used; omit the other"
        )
    mapping = read_class_map(class_map)
    evaluation = EvaluationOptions(method=method or "recipro-cam", steps=steps, any_box=any_box, class_map=mapping)
    annotations = load_boxes(boxes, box_names) if boxes else load_masks(masks, mask_above) if masks else Annotations()
    inputs = open_input(images, limit, annotations, TrainedImages(config.engine.model))
    check_workers(workers, inputs)
    evaluator = _build(config, evaluation)
    check_class_map(mapping, class_map, evaluator.split.classes)
    settings = {
        "images": images, "method": evaluation.method, **engine, "kernel": config.engine.kernel,
        "fit": evaluator.fit, "steps": steps,
        "layer": evaluator.split.layer, "grid": "{}x{}".format(*evaluator.split.grid), "boxes": boxes and str(boxes),
        "box_names": box_names and str(box_names), "class_map": class_map and str(class_map), "any_box": any_box,
        "masks": masks and str(masks), "mask_above": mask_above,
        "input_size": "{}x{}".format(*evaluator.split.image_size),
        "files": file_digests(
            config.engine.model, config.engine.weights, boxes, box_names, class_map, inputs.recording
        ),
    }  # fmt: skip
    del settings["threads"]
    started = threading.Event()
    started.set()
    run = EvaluationRun(inputs, evaluator, partial(_build_in_worker, config, evaluation, workers), workers)
    with shutdown_on_signal(started) as stop, ResultsLog(output, settings) as results:
        records = run.collect(results, stop)
    if not records:
        fail(f"{images}: no image was evaluated; none can be decoded, or the run was interrupted before the first")
    summary = summarise(records)
    warn_of_trained_images(records)
    if boxes and not summary["images_pointed"]:
        log.warning(
            "no image has a box of the explained class; map box classes to network classes with --class-map, or give "
            "--any-box"
        )
    write_result(output, settings, summary, records)
    best, worst = shown_records(records)
    shown = inputs.images([record["image"] for record in (*best, *worst)])
    method_name = f"recipro-cam ({config.engine.kernel})" if evaluation.method == "recipro-cam" else evaluation.method
    page = evaluation_html(f"{config.engine.model}, {method_name}", settings, summary, records, shown)
    write_text(output / "report.html", page)
    _print_summary(summary)
    report = relative_path(output / "report.html")
    print_line(f"\n{len(records)} of {len(inputs.names)} images; read {report} ({RECORDS} holds one record for each)")


def _build_in_worker(config: Config, options: EvaluationOptions, workers: int) -> Evaluator:
    """Build the evaluator of a classifier in one of ``workers`` processes."""
    return _build(config.model_copy(update={"engine": with_own_threads(config.engine, workers)}), options)


def _build(config: Config, options: EvaluationOptions) -> Evaluator:
    """Build the evaluator of a classifier."""
    from engine.evaluation.factory import build_evaluator

    return build_evaluator(make_network(config), config.engine, options)


def _print_summary(summary: dict[str, float | int | None]) -> None:
    """Print the mean metrics and the conclusion."""
    from overlays.reports.evaluation import ROWS, conclusion

    for key, name, _, factor in ROWS:
        if summary.get(key) is not None:
            print_line(f"{name:28} {factor * float(summary[key] or 0):8.2f}")
    print_line(f"\n{conclusion(summary)}")


def _refuse(options: dict[str, object], text: str) -> None:
    """Check that none of the options is set.

    Args:
        options: the values by option name, without ``--``.
        text: the reason, for the message.

    Raises:
        ConfigError: an option is set; the message names the first.
    """
    for name, value in options.items():
        if value:
            raise ConfigError(f"--{name} {str(value)!r}: {text}; omit --{name}")
