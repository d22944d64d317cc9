"""Evaluates a detector for `run.py evaluate`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from commands.actor_pool import with_own_threads
from commands.annotations import load_boxes, read_class_map
from commands.console import fail, print_line, relative_path, write_text
from commands.evaluation_inputs import file_digests, open_input
from commands.evaluation_run import EvaluationRun, check_workers
from commands.options import drop_none
from commands.signals import shutdown_on_signal
from commands.trained_images import TrainedImages, warn_of_trained_images
from pipeline.config_loader import validate_config
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from engine.detectors.detector import Detector
    from engine.evaluation.detectors.evaluator import BoxEvaluationOptions, BoxEvaluator
    from pipeline.config import EngineConfig

log = logging.getLogger("recipro-stream")

BACKEND: Final = "auto"
"""Backend for the forward passes on changed images; a box needs hundreds of passes."""


@dataclass(frozen=True, slots=True)
class BoxFiles:
    """Options that select the annotated objects of an evaluation."""

    boxes: Path | None
    box_names: Path | None
    class_map: Path | None
    any_box: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorEvaluation:
    """Options of a detector's evaluation; the command line options of `run.py evaluate` describe each."""

    images: str
    output: Path
    engine: Mapping[str, Any]
    """Options of the engine: model, weights, labels, input size and threads."""
    truth: BoxFiles
    layout: str | None
    cut: str | None
    method: str | None
    cell_px: int | None
    boxes_per_image: int | None
    drise_masks: int
    limit: int | None
    steps: int
    workers: int


def evaluate_detector(options: DetectorEvaluation) -> None:
    """Evaluate the heat maps of a detector's boxes, and write the results and a report.

    Raises:
        ConfigError: an option is invalid, or no boxes are given.
    """
    from engine.evaluation.detectors.evaluator import BoxEvaluationOptions
    from engine.evaluation.detectors.maps import chosen_methods

    truth = options.truth
    if truth.boxes is None:
        raise ConfigError(
            f"model {options.engine['model']!r} is a detector, whose maps are judged on annotated objects; give --boxes"
        )
    settings = {**options.engine, "boxes": drop_none({"layout": options.layout, "cut": options.cut})}
    config = validate_config({}, "command line", {"engine": drop_none(settings)}).engine
    mapping = read_class_map(truth.class_map)
    methods = chosen_methods(options.method)
    annotations = load_boxes(truth.boxes, truth.box_names)
    inputs = open_input(options.images, options.limit, annotations, TrainedImages(config.model))
    check_workers(options.workers, inputs)
    detector = _load(config)
    check_class_map(mapping, truth.class_map, len(detector.labels))
    chosen = BoxEvaluationOptions(
        methods=methods, steps=options.steps, cell_px=options.cell_px, boxes_per_image=options.boxes_per_image,
        backend=BACKEND, drise_masks=options.drise_masks, any_box=truth.any_box, class_map=mapping,
    )  # fmt: skip
    build = partial(_load_and_build, with_own_threads(config, options.workers), chosen)
    run = EvaluationRun(inputs, _build(detector, chosen), build, options.workers)
    _run(options, config, run, _settings(options, detector, methods, inputs.recording))


def _load_and_build(config: EngineConfig, options: BoxEvaluationOptions) -> BoxEvaluator:
    """Load the detector and build its evaluator in a worker process."""
    return _build(_load(config), options)


def _build(detector: Detector, options: BoxEvaluationOptions) -> BoxEvaluator:
    from engine.evaluation.detectors.evaluator import BoxEvaluator
    from engine.runtime.compile_cache import CompileCache, default_folder

    folder = default_folder()
    return BoxEvaluator(detector, options, None if folder == "off" else CompileCache(Path(folder)))


def _load(config: EngineConfig) -> Detector:
    """Load a one-stage detector, set its input size and cut, and set the number of threads."""
    from dataclasses import replace

    import torch

    from commands.wiring.detectors import load_configured_detector
    from engine.detectors.detector import Detector
    from engine.detectors.runtime import cut_choice

    if config.threads:
        torch.set_num_threads(config.threads)
    detector = load_configured_detector(config)
    if not isinstance(detector, Detector):
        raise ConfigError(
            f"{detector.name}: is a two-stage detector, each of whose maps covers one region only; evaluate supports "
            "one-stage detectors, such as YOLOX"
        )
    cut = cut_choice(config.boxes.cut)
    if cut == "level":
        raise ConfigError("--cut 'level': is measured by the methods level-keep and level-drop; omit --cut")
    return replace(
        detector, input=replace(detector.input, size=config.input_size or detector.input.size),
        complete_cut=detector.complete_cut if isinstance(cut, str) else cut,
    )  # fmt: skip


def check_class_map(mapping: Mapping[str, list[int]], class_map: Path | None, classes: int) -> None:
    """Check that a class map contains only classes of the network.

    Args:
        mapping: indices of the network's classes for each box class.
        class_map: the file of the class map, for messages.
        classes: number of classes of the network.

    Raises:
        ConfigError: an index is out of range.
    """
    for name, several in mapping.items():
        for index in several:
            if not 0 <= index < classes:
                raise ConfigError(
                    f"--class-map {str(class_map)!r}: {name!r} maps to class {index}; the network has the "
                    f"classes 0 to {classes - 1}"
                )


def _settings(
    options: DetectorEvaluation, detector: Detector, methods: tuple[str, ...], recording: str | None
) -> dict[str, Any]:
    """Return all settings that change the results."""
    engine = {key: value for key, value in options.engine.items() if key != "threads"}
    truth = options.truth
    files = (engine["model"], engine["weights"], truth.boxes, truth.box_names, truth.class_map, recording)
    return {
        "images": options.images, **engine, "layout": detector.layout.name, "cut": options.cut,
        "methods": ", ".join(methods),
        "input_size": "{}x{}".format(*detector.input.size), "cell_px": options.cell_px, "steps": options.steps,
        "score": detector.score, "boxes_per_image": options.boxes_per_image, "drise_masks": options.drise_masks,
        "boxes": str(truth.boxes), "box_names": truth.box_names and str(truth.box_names),
        "class_map": truth.class_map and str(truth.class_map), "any_box": truth.any_box,
        "files": file_digests(*files),
    }  # fmt: skip


def _run(
    options: DetectorEvaluation,
    config: EngineConfig,
    run: EvaluationRun,
    settings: dict[str, Any],
) -> None:
    """Evaluate the images, write the results and the report, and print a summary."""
    from engine.evaluation.detectors.summary import summarise_boxes, table_rows
    from engine.evaluation.results import RECORDS, ResultsLog, write_result
    from overlays.reports.box_evaluation import box_conclusion, box_evaluation_html, counts, shown_boxes, table

    started = threading.Event()
    started.set()
    with shutdown_on_signal(started) as stop, ResultsLog(options.output, settings) as results:
        records = run.collect(results, stop)
    if not records:
        fail(
            f"{options.images}: no image was evaluated; none can be decoded, or the run was interrupted before "
            "the first"
        )
    summary = summarise_boxes(records)
    warn_of_trained_images(records)
    if not summary["boxes"]:
        log.warning(
            "no detection matches an annotated object; map box classes to the detector's classes with --class-map, or "
            "give --any-box"
        )
    write_result(options.output, settings, summary, table_rows(records))
    best, worst = shown_boxes(records)
    shown = run.inputs.images(list(dict.fromkeys(box.image for box in (*best, *worst))))
    page = box_evaluation_html(f"{config.model}, boxes", settings, summary, records, shown)
    write_text(options.output / "report.html", page)
    print_line(table_text(*table(summary)))
    print_line(f"\n{counts(summary)} {box_conclusion(summary)}")
    report = relative_path(options.output / "report.html")
    print_line(
        f"\n{len(records)} of {len(run.inputs.names)} images; read {report} ({RECORDS} holds one record for each)"
    )


def table_text(heads: list[str], rows: list[tuple[str, list[str]]]) -> str:
    """Format a table as Markdown; each row is its name and its cells."""
    lines = [["method", *heads], ["---"] * (len(heads) + 1), *([name, *cells] for name, cells in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
