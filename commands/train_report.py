"""Writes the results of a training: the verified model file, and the report beside it."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

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

T = TypeVar("T")
log = logging.getLogger("recipro-stream")

SHOWN_MISTAKES: Final = 24
"""Maximum number of misclassified images in a report; the highest scores come first."""


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """Content of a training report."""

    images: str
    """The path of the data set as given by the user."""
    options: str
    """Options that the user added to the path, such as ``?bits=12``; usually empty."""
    result: FinetuneResult
    parts: Mapping[str, Sequence[Sample]]
    left_out: Sequence[str]
    similar: Sequence[NearDuplicate]
    grouped: bool
    """Whether the data set states which images show the same part."""


def files_beside(output: Path) -> dict[str, Path]:
    """Return the paths of the files beside the model file, by suffix."""
    return {kind: output.with_suffix(f".{kind}") for kind in ("report.json", "report.html", "test.txt", "progress.pt")}


def unchecked_file(output: Path) -> Path:
    """Return the temporary path of the weights; they stay there if the verification fails."""
    return output.with_suffix(".unchecked.safetensors")


def write_checked(
    output: Path, file: Checkpoint, model: FinetuneModel, image_path: str, read: ReadImage
) -> NetworkExplainer:
    """Write a model to a temporary file, verify it against the network in memory, and rename the file.

    Args:
        output: path of the model file; an existing file stays until the verification has passed.
        file: content of the model file.
        model: the trained network in memory.
        image_path: path of the test image that both networks explain.
        read: reads an image file.

    Returns:
        An explainer of the written model.

    Raises:
        ModelError: the verification failed; the weights stay in ``unchecked_file(output)``.
        ConfigError: the file cannot be renamed.
    """
    from engine.finetuning.verification import check_answers, open_model_file
    from engine.models.checkpoint import save_checkpoint

    def check(unchecked: Path) -> NetworkExplainer:
        explainer = open_model_file(unchecked)
        frame = Frame(read(Path(image_path)), "train", 0, 0.0, source_name=image_path)
        check_answers(explainer, model.net, model.labels, model.preprocessing, frame)
        return explainer

    save_checkpoint(unchecked_file(output), file)
    return move_checked(output, "model", model.name, check)


def move_checked(output: Path, kind: str, network: str, check: Callable[[Path], T]) -> T:
    """Verify ``unchecked_file(output)``, rename it to ``output``, and return the result of ``check``.

    Args:
        output: path of the file; an existing file stays until the verification has passed.
        kind: "model" or "detector", for messages.
        network: name of the network, for messages.
        check: verifies the file at a path; raises ``EngineError``.

    Raises:
        ModelError: the verification failed; the file stays at its temporary path.
        ConfigError: the file cannot be renamed.
    """
    unchecked = unchecked_file(output)
    try:
        checked = check(unchecked)
    except EngineError as reason:
        raise ModelError(
            f"{relative_path(output)}: not written, because the {kind} loaded from the new file {reason}. The weights "
            f"are kept in {relative_path(unchecked)}; please report this with the network's name, {network}"
        ) from reason
    try:
        unchecked.replace(output)
    except OSError as reason:
        raise ConfigError(
            f"{relative_path(output)}: cannot be written ({reason.strerror}); "
            f"the complete {kind} is in {relative_path(unchecked)}; move it"
        ) from None
    return checked


def write_report(output: Path, trained: Trained, explainer: NetworkExplainer, read: ReadImage) -> None:
    """Write the report and the list of test images beside the model file, and print a summary.

    Args:
        output: path of the model file.
        trained: content of the report.
        explainer: explains misclassified images with the written model.
        read: reads an image file.

    Raises:
        ConfigError: a file cannot be written.
    """
    from engine.finetuning.splits import TEST
    from overlays.reports.training import conclusion, training_html

    result, labels = trained.result, trained.result.checkpoint.labels
    test = result.metrics[TEST]
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
        "metrics": {part: asdict(metrics) for part, metrics in result.metrics.items()},
        "splits": {part: [asdict(sample) for sample in samples] for part, samples in trained.parts.items()},
        "near_duplicates": [asdict(pair) for pair in trained.similar],
        "left_out": list(trained.left_out),
    }
    paths = files_beside(output)
    write_text(paths["report.json"], json.dumps(report, indent=1) + "\n")
    mistakes = [(score, path) for path, target, prediction, score in test.predictions if target != prediction]
    mistakes.sort(key=lambda mistake: -mistake[0])
    heats = _explain([path for _, path in mistakes[:SHOWN_MISTAKES]], explainer, read)
    page = training_html(report, lambda path: read(Path(path)), heats, max_images=SHOWN_MISTAKES)
    write_text(paths["report.html"], page)
    lines = "".join(f"{Path(sample.path).absolute()}\n" for sample in trained.parts[TEST])
    write_text(paths["test.txt"], lines)
    print_line(f"\n{conclusion(report)}")
    for label, recall, row in zip(labels, test.recalls, test.confusion, strict=True):
        print_line(f"  {label:20} {recall:6.1%} of {sum(row)}")
    print_line(f"\nwritten: {relative_path(output)}; read {relative_path(paths['report.html'])}")
    model = shlex.quote(relative_path(output))
    print_line(f"run it:   uv run run.py stream --model {model} --source camera:0 --sink window")
    test_list = shlex.quote(relative_path(paths["test.txt"]) + trained.options)
    print_line(f"test it:  uv run run.py evaluate {test_list} --model {model} --output DIR")


def _explain(paths: Sequence[str], explainer: NetworkExplainer, read: ReadImage) -> dict[str, Any]:
    """Return the heat map of the top-1 class, and the heat map's region, of each image by path."""
    heats = {}
    for index, path in enumerate(paths):
        try:
            frame = Frame(read(Path(path)), "train", index, 0.0, source_name=path)
        except SourceError as reason:
            log.warning("no heat map in the report: %s", reason)
            continue
        explanation = explainer.explain([frame])[0]
        heats[path] = (explanation.findings[0].heat, explanation.heat_region)
    return heats
