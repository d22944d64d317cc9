"""Output of a training: the model file, verified before it gets its name, and the report beside it."""

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
from pipeline.errors import ConfigError, EngineError, ModelError, SourceError
from pipeline.frames import Frame

if TYPE_CHECKING:
    from engine.explainers.network import NetworkExplainer
    from engine.finetuning.finetune import FinetuneResult
    from engine.finetuning.near_duplicates import NearDuplicate
    from engine.finetuning.setup import FinetuneModel
    from engine.finetuning.splits import Sample
    from engine.models.checkpoint import Checkpoint

log = logging.getLogger("recipro-stream")

SHOWN_MISTAKES: Final = 24
"""How many misclassified images a report shows, those with the highest score first."""


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """Content of a training report."""

    images: str
    """The data set as the user named it."""
    options: str
    """Options for reading the images, such as ``?bits=12``; usually empty."""
    result: FinetuneResult
    parts: Mapping[str, Sequence[Sample]]
    left_out: Sequence[str]
    similar: Sequence[NearDuplicate]
    grouped: bool
    """Whether it is known which images show the same part."""


def files_beside(output: Path) -> dict[str, Path]:
    """Return the paths of the files beside the model, by their suffix."""
    return {kind: output.with_suffix(f".{kind}") for kind in ("report.json", "report.html", "test.txt")}


def unchecked_file(output: Path) -> Path:
    """Return the path of the weights until they are verified; they stay there if the verification fails."""
    return output.with_suffix(".unchecked.safetensors")


def write_checked(
    output: Path, file: Checkpoint, model: FinetuneModel, image_path: str, read: ReadImage
) -> NetworkExplainer:
    """Write a model, compare the written file with the network in memory, and then move it to its name.

    Args:
        output: path of the model; a file there stays until the verification has passed.
        file: content of the model file.
        model: the trained network in memory.
        image_path: path of the image that both explain.
        read: reads an image file.

    Returns:
        An explainer of the written model.

    Raises:
        ModelError: the written model differs from the trained one; the weights stay in ``unchecked_file(output)``.
        ConfigError: the file cannot be moved to its name.
    """
    from engine.finetuning.verification import check_answers, open_model_file
    from engine.models.checkpoint import save_checkpoint

    place = unchecked_file(output)
    save_checkpoint(place, file)
    try:
        explainer = open_model_file(place)
        frame = Frame(read(Path(image_path)), "train", 0, 0.0, source_name=image_path)
        check_answers(explainer, model.net, model.labels, model.preprocessing, frame)
    except EngineError as reason:
        raise ModelError(
            f"{relative_path(output)}: not written: the model, read again, {reason}. The weights are kept in "
            f" {relative_path(place)}; please report this with the network's name, {model.name}"
        ) from reason
    try:
        place.replace(output)
    except OSError as reason:
        raise ConfigError(
            f"{relative_path(output)}: cannot be written ({reason.strerror}); "
            f"the complete model is in {relative_path(place)}; move it"
        ) from None
    return explainer


def write_report(output: Path, trained: Trained, explainer: NetworkExplainer, read: ReadImage) -> None:
    """Write the report and the list of test images beside the model, and print a summary."""
    from engine.finetuning.splits import TEST
    from overlays.reports.training import conclusion, training_html

    result, labels = trained.result, trained.result.checkpoint.labels
    found = result.metrics[TEST]
    report: dict[str, Any] = {
        "model": output.name,
        "images": trained.images + trained.options,
        "labels": list(labels),
        "provenance": dict(result.checkpoint.provenance),
        "layer": result.checkpoint.layer,
        "input_size": list(result.checkpoint.input_size),
        "fit": result.checkpoint.fit,
        "grouped": trained.grouped,
        "epochs": [asdict(epoch) for epoch in result.epochs],
        "metrics": {part: asdict(one) for part, one in result.metrics.items()},
        "splits": {part: [asdict(one) for one in several] for part, several in trained.parts.items()},
        "near_duplicates": [asdict(one) for one in trained.similar],
        "left_out": list(trained.left_out),
    }
    places = files_beside(output)
    write_text(places["report.json"], json.dumps(report, indent=1) + "\n")
    mistakes = sorted((one for one in found.predictions if one[1] != one[2]), key=lambda one: -one[3])
    heats = _explained([one[0] for one in mistakes[:SHOWN_MISTAKES]], explainer, read)
    page = training_html(report, lambda path: read(Path(path)), heats, max_images=SHOWN_MISTAKES)
    write_text(places["report.html"], page)
    lines = "".join(f"{Path(one.path).absolute()}\n" for one in trained.parts[TEST])
    write_text(places["test.txt"], lines)
    print_line(f"\n{conclusion(report)}")
    for label, recall, row in zip(labels, found.recalls, found.confusion, strict=True):
        print_line(f"  {label:20} {recall:6.1%} of {sum(row)}")
    print_line(f"\nwritten: {relative_path(output)}; read {relative_path(places['report.html'])}")
    model = shlex.quote(relative_path(output))
    print_line(f"run it:   uv run run.py stream --model {model} --source camera:0 --sink window")
    held_out = shlex.quote(relative_path(places["test.txt"]) + trained.options)
    print_line(f"test it:  uv run run.py evaluate {held_out} --model {model} --output DIR")


def _explained(paths: Sequence[str], explainer: NetworkExplainer, read: ReadImage) -> dict[str, Any]:
    """Return the heat map and its region for the top-1 class of each image, by path."""
    found = {}
    for index, path in enumerate(paths):
        try:
            frame = Frame(read(Path(path)), "train", index, 0.0, source_name=path)
        except SourceError as reason:
            log.warning("no heat map in the report: %s", reason)
            continue
        explanation = explainer.explain([frame])[0]
        found[path] = (explanation.findings[0].heat, explanation.heat_region)
    return found
