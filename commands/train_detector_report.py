"""Writes the report of a detector's training: metrics, mistakes, and heat map evaluation on test images."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from commands.console import print_line, relative_path, write_text
from commands.images import ReadImage
from commands.train_report import files_beside
from pipeline.frames import Box, Frame, GroundTruth

if TYPE_CHECKING:
    from engine.detectors.input_format import InputFormat
    from engine.finetuning.detection.confusion import ComparedImage
    from engine.finetuning.detection.finetune import DetectorResult
    from engine.finetuning.near_duplicates import NearDuplicate
    from engine.finetuning.splits import Sample
    from overlays.reports.detector_training import ShownImage

log = logging.getLogger("recipro-stream")

EVIDENCE_IMAGES: Final = 24
"""Maximum number of test images whose boxes are explained."""
BOXES_PER_IMAGE: Final = 2
DELETION_STEPS: Final = 6


@dataclass(frozen=True, slots=True, eq=False)
class TrainedDetector:
    """Content of a training report."""

    images: str
    """The data set as given by the user."""
    result: DetectorResult
    parts: Mapping[str, Sequence[Sample]]
    truths: Mapping[str, Sequence[GroundTruth]]
    """Annotated objects of each test image that has objects, by its path; boxes in pixels of the image."""
    left_out: Sequence[str]
    similar: Sequence[NearDuplicate]
    grouped: bool


def write_detector_report(output: Path, trained: TrainedDetector, read: ReadImage) -> None:
    """Write the report (JSON and HTML) and the list of test images beside the detector's file; print a summary.

    Args:
        output: path of the detector's file, which exists.
        trained: content of the report.
        read: reads an image file.
    """
    from engine.finetuning.detection.confusion import box_confusion
    from engine.finetuning.splits import TEST
    from overlays.reports.detector_training import conclusion, detector_training_html

    result = trained.result
    checkpoint, test = result.checkpoint, result.metrics[TEST]
    report: dict[str, Any] = {
        "model": output.name,
        "images": trained.images,
        "labels": list(checkpoint.labels),
        "input_size": list(checkpoint.input.size),
        "provenance": dict(checkpoint.provenance),
        "grouped": trained.grouped,
        "epochs": [asdict(epoch) for epoch in result.epochs],
        "metrics": {part: asdict(metrics) for part, metrics in result.metrics.items()},
        "score": round(result.score, 4),
        "confusion": box_confusion(list(result.compared.values()), len(checkpoint.labels)),
        "evidence": _evidence(output, trained, read),
        "splits": {part: [asdict(sample) for sample in samples] for part, samples in trained.parts.items()},
        "near_duplicates": [asdict(pair) for pair in trained.similar],
        "left_out": list(trained.left_out),
    }
    report = _without_nan(report)
    paths = files_beside(output)
    write_text(paths["report.json"], json.dumps(report, indent=1, allow_nan=False) + "\n")
    best, worst = _galleries(result, checkpoint.input, read)
    page = detector_training_html(report, lambda path: read(Path(path)), best, worst)
    write_text(paths["report.html"], page)
    write_text(paths["test.txt"], "".join(f"{Path(sample.path).absolute()}\n" for sample in trained.parts[TEST]))
    print_line(f"\n{conclusion(report)}")
    for line in _class_lines(checkpoint.labels, test.class_map50):
        print_line(line)
    model = shlex.quote(relative_path(output))
    print_line(f"\nwritten: {relative_path(output)}; read {relative_path(paths['report.html'])}")
    print_line(f"run it:   uv run run.py stream --model {model} --source camera:0 --sink http://127.0.0.1:8000")
    label = shlex.quote(checkpoint.labels[0])
    print_line(f"ask it:   uv run run.py why IMAGE --model {model} --box LEFT,TOP,WIDTH,HEIGHT --class {label}")


def _evidence(output: Path, trained: TrainedDetector, read: ReadImage) -> list[dict[str, Any]]:
    """Evaluate the heat maps of found objects on some test images, and return the records."""
    from engine.detectors.detector import Detector
    from engine.detectors.loader import load_detector
    from engine.evaluation.detectors.evaluator import BoxEvaluationOptions, BoxEvaluator

    detector = load_detector(output)
    if not isinstance(detector, Detector):
        log.warning(
            "the position of the evidence is not measured: each map of a two-stage detector covers one region only"
        )
        return []
    paths = list(trained.truths)
    options = BoxEvaluationOptions(
        ("keep", "drop"), DELETION_STEPS, boxes_per_image=BOXES_PER_IMAGE, backend="eager", randomize=False
    )
    evaluator = BoxEvaluator(detector, options)
    records = []
    for index, path in enumerate(paths[:: max(1, len(paths) // EVIDENCE_IMAGES)][:EVIDENCE_IMAGES]):
        frame = Frame(read(Path(path)), "train", index, 0.0, source_name=path)
        records.append({**evaluator.evaluate(frame, trained.truths[path]), "image": path})
    return records


def _galleries(
    result: DetectorResult, input_format: InputFormat, read: ReadImage
) -> tuple[list[ShownImage], list[ShownImage]]:
    """Return the test images without mistakes, and the test images with the most mistakes."""
    from overlays.reports.detector_training import MAX_SHOWN

    ranked = sorted(result.compared.items(), key=lambda pair: (-pair[1].mistakes, pair[1].hits))
    worst = [pair for pair in ranked[:MAX_SHOWN] if pair[1].mistakes]
    best = [pair for pair in ranked[len(worst) :][::-1][:MAX_SHOWN] if not pair[1].mistakes]

    def shown(pairs: Sequence[tuple[str, ComparedImage]]) -> list[ShownImage]:
        return [_shown(path, compared, result, input_format, read(Path(path)).shape) for path, compared in pairs]

    return shown(best), shown(worst)


def _shown(
    path: str, compared: ComparedImage, result: DetectorResult, input_format: InputFormat, shape: tuple[int, ...]
) -> ShownImage:
    import torch

    from overlays.reports.detector_training import ShownImage

    labels, placement = result.checkpoint.labels, input_format.place(shape[0], shape[1])

    def box(corners: tuple[float, float, float, float]) -> Box:
        return Box(*placement.to_image(torch.tensor(corners)).tolist())

    found_objects = {found.truth for found in compared.found}
    return ShownImage(
        path,
        [
            (
                box(found.box),
                labels[found.label],
                found.score,
                None if found.truth is None else labels[compared.objects[found.truth][0]],
            )
            for found in compared.found
        ],
        [
            (box(corners), labels[label])
            for index, (label, corners) in enumerate(compared.objects)
            if index not in found_objects
        ],
    )


def _class_lines(labels: Sequence[str], values: Sequence[float]) -> list[str]:
    width = max(len(label) for label in labels)
    return [
        f"  {label:{width}} " + ("no box" if value != value else f"{value:6.1%}")  # noqa: PLR0124 - NaN
        for label, value in zip(labels, values, strict=True)
    ]


def _without_nan(value: Any) -> Any:  # noqa: ANN401 - JSON is anything
    """Replace NaN by None in a JSON value, because JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value  # noqa: PLR0124
