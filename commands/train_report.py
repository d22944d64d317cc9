"""What a training leaves: the model, checked before it has its name, and the report beside it."""

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
"""How many mistaken pictures a report shows, the surest first."""


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """What a report tells of."""

    images: str
    """What the user named."""
    options: str
    """How the pictures are read, ``?bits=12``; mostly empty."""
    diploma: FinetuneResult
    parts: Mapping[str, Sequence[Sample]]
    left_out: Sequence[str]
    similar: Sequence[NearDuplicate]
    grouped: bool
    """Whether it is known which pictures show one part."""


def files_beside(output: Path) -> dict[str, Path]:
    """Return the files that are written beside the model."""
    return {kind: output.with_suffix(f".{kind}") for kind in ("report.json", "report.html", "test.txt")}


def unchecked_file(output: Path) -> Path:
    """Return where the weights lie until they are checked, and stay if the check fails."""
    return output.with_suffix(".unchecked.safetensors")


def write_checked(
    output: Path, file: Checkpoint, model: FinetuneModel, picture: str, read: ReadImage
) -> NetworkExplainer:
    """Write a model, explain a picture with what was written, compare, and only then give it its name.

    Args:
        output: its place; what lies there stays until the check has passed.
        file: the model.
        model: the network that was trained, in memory.
        picture: the path of the picture that is explained.
        read: reads it.

    Raises:
        ModelError: what was written is not what was trained. The weights stay beside it, under another name.
    """
    from engine.finetuning.verification import check_answers, open_model_file
    from engine.models.checkpoint import save_checkpoint

    place = unchecked_file(output)
    save_checkpoint(place, file)
    try:
        explainer = open_model_file(place)
        frame = Frame(read(Path(picture)), "train", 0, 0.0, source_name=picture)
        check_answers(explainer, model.net, model.labels, model.preprocessing, frame)
    except EngineError as reason:
        raise ModelError(
            f"{relative_path(output)}: is not written, for what was trained "
            f"cannot be used: read again, it {reason}. The "
            f"weights are kept in {relative_path(place)}; please report this with the network's name, {model.name}"
        ) from reason
    try:
        place.replace(output)
    except OSError as reason:
        raise ConfigError(
            f"{relative_path(output)}: cannot be written ({reason.strerror}); "
            f"the model is whole in {relative_path(place)}"
        ) from None
    return explainer


def write_report(output: Path, trained: Trained, explainer: NetworkExplainer, read: ReadImage) -> None:
    """Write what came of a training beside the model, and tell the most of it."""
    from engine.finetuning.splits import TEST
    from overlays.reports.training import conclusion, training_html

    result, labels = trained.diploma, trained.diploma.checkpoint.labels
    found = result.metrics[TEST]
    told: dict[str, Any] = {
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
    write_text(places["report.json"], json.dumps(told, indent=1) + "\n")
    mistakes = sorted((one for one in found.predictions if one[1] != one[2]), key=lambda one: -one[3])
    heats = _explained([one[0] for one in mistakes[:SHOWN_MISTAKES]], explainer, read)
    page = training_html(told, lambda path: read(Path(path)), heats, pictures=SHOWN_MISTAKES)
    write_text(places["report.html"], page)
    lines = "".join(f"{Path(one.path).absolute()}\n" for one in trained.parts[TEST])
    write_text(places["test.txt"], lines)
    print_line(f"\n{conclusion(told)}")
    for label, recall, row in zip(labels, found.recalls, found.confusion, strict=True):
        print_line(f"  {label:20} {recall:6.1%} of {sum(row)}")
    print_line(f"\nwritten: {relative_path(output)}; read {relative_path(places['report.html'])}")
    model = shlex.quote(relative_path(output))
    print_line(f"run it:   uv run run.py stream --model {model} --source camera:0 --sink window")
    held_out = shlex.quote(relative_path(places["test.txt"]) + trained.options)
    print_line(f"ask it:   uv run run.py evaluate {held_out} --model {model} --output DIR")


def _explained(paths: Sequence[str], explainer: NetworkExplainer, read: ReadImage) -> dict[str, Any]:
    """Return by path where the network looked: (heat, region) of its top-1 class."""
    found = {}
    for index, path in enumerate(paths):
        try:
            frame = Frame(read(Path(path)), "train", index, 0.0, source_name=path)
        except SourceError as reason:
            log.warning("without its heat in the report: %s", reason)
            continue
        explanation = explainer.explain([frame])[0]
        found[path] = (explanation.findings[0].heat, explanation.heat_region)
    return found
