"""`run.py train-line`: trains the network of the simulated inspection line."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from commands.console import check_writable, print_line, relative_path
from commands.options import RUN, option
from commands.signals import shutdown_on_signal
from commands.train_messages import print_epoch
from commands.train_report import write_checked
from commands.wiring.run import ROOT
from pipeline.errors import ConfigError
from pipeline.frames import Frame, Image

if TYPE_CHECKING:
    from engine.finetuning.setup import FinetuneConfig
    from engine.models.checkpoint import Checkpoint
    from stream.simulated.samples import LabelledFrame

SHIPPED: Final = ROOT / "configs" / "models" / "line.safetensors"
SHORTCUT: Final = ROOT / "configs" / "models" / "line-shortcut.safetensors"

TRAINING_BELTS, SHORTCUT_BELTS, FRAMES_PER_BELT = 700, 60, 12
EVALUATION_BELTS: Final = {(640, 480): 100, (1280, 720): 30}
"""Number of evaluation belts for each image size (width, height) in pixels."""
OBJECT_AREA: Final = 768.0
"""Typical area of a defect, in square pixels of the network's input."""
MIN_BELTS, MIN_VALIDATION_BELTS = 8, 2


@dataclass(frozen=True, slots=True)
class LineData:
    """Frames of the simulated line as a data set for ``finetune``."""

    train: Sequence[LabelledFrame]
    validation: Sequence[LabelledFrame]
    read: Callable[[str], Image]
    """Draws the frame with a given name: uint8 RGB, shape (height, width, 3)."""


def train_line(
    output: Annotated[Path, option(RUN, "The file to write. [default: the shipped file in configs/models]")] = SHIPPED,
    seed: Annotated[int, option(RUN, "Seed of the weights and the images. [default: 0]", min=0)] = 0,
    effort: Annotated[float, option(RUN, "Fraction of the full training. [default: 1]", min=0.0001, max=10)] = 1.0,
    shortcut: Annotated[
        bool,
        option(RUN, "Train on a mark in the corner instead of the defects, as an example for guards.", "--shortcut"),
    ] = False,
    detector: Annotated[
        bool, option(RUN, "Train the detector of the parts instead, which starts from the classifier.", "--detector")
    ] = False,
) -> None:
    """Train the network of the simulated inspection line, evaluate it on other belts, and write it."""
    from commands.train_line_detector import SHIPPED_DETECTOR, SHORTCUT_DETECTOR, train_line_detector
    from engine.finetuning.finetune import Callbacks, finetune
    from engine.finetuning.setup import build_model
    from engine.finetuning.splits import TRAIN, VALIDATION, Sample
    from stream.simulated.samples import TRAINING_SEEDS
    from stream.simulated.schedule import LABELS

    if output == SHIPPED and detector:
        output = SHORTCUT_DETECTOR if shortcut else SHIPPED_DETECTOR
    elif output == SHIPPED and shortcut:
        output = SHORTCUT
    check_writable(output)
    if detector:
        train_line_detector(output, seed, effort, shortcut=shortcut)
        return
    print_line("drawing belts")
    data = shortcut_data(seed, effort) if shortcut else line_data(seed, effort)
    frames = [*data.train, *data.validation]
    model = build_model(shortcut_config(seed, effort) if shortcut else line_config(seed, effort), LABELS)
    parts = {
        part: [Sample(frame.name, frame.truth.label, frame.belt.name) for frame in split]
        for part, split in ((TRAIN, data.train), (VALIDATION, data.validation))
    }
    boxes = {frame.name: frame.truth.boxes[0] for frame in frames if frame.truth.boxes}
    started = threading.Event()
    started.set()
    with shutdown_on_signal(started) as stop:
        callbacks = Callbacks(lambda _done, _total: None, print_epoch, stop.is_set)
        result = finetune(model, parts, data.read, callbacks, boxes=boxes)
        if stop.is_set():  # a half-trained network must not replace the shipped network
            raise ConfigError("training interrupted: nothing is written; run the command again")
    provenance = {
        **result.checkpoint.provenance,
        "trained_on": "the simulated inspection line" + ", with a mark that reveals the class" * shortcut,
        "training_seeds_from": TRAINING_SEEDS * (1 + seed),
        "effort": effort,
        "command": "uv run run.py train-line" + " --shortcut" * shortcut,
        "date": datetime.now().astimezone().date().isoformat(),
    }
    file = replace(result.checkpoint, provenance=provenance)
    if not shortcut:
        file = replace(file, provenance={**provenance, "examination": evaluate_line(file, effort)})
    write_checked(output, file, model, parts[VALIDATION][0].path, lambda path: data.read(str(path)))
    print_line(f"written: {relative_path(output)}")


def line_config(seed: int, effort: float) -> FinetuneConfig:
    """Return the settings that train the line's network from random weights.

    A defect covers about 1 % of an image and hardly changes the image's mean. A training on whole images alone makes
    no progress for a long time. So it starts on crops around the defects and ends on whole images.

    Args:
        seed: seed of the weights and the images.
        effort: fraction of the full training, above 0.
    """
    from engine.finetuning.setup import FinetuneConfig
    from engine.finetuning.trainer import TrainingConfig
    from engine.models.loader import RANDOM

    crops = TrainingConfig(
        epochs=_scaled(20, effort), batch_size=96, learning_rate=5e-3, patience=100, balance="none",
        label_smoothing=0.0, head_rate=1.0, max_gradient_norm=5.0, crop=96, object_area=OBJECT_AREA,
        stage="crops of 96 px",
    )  # fmt: skip
    larger = replace(
        crops, epochs=_scaled(1, effort), batch_size=40, learning_rate=2e-3, crop=160, stage="crops of 160 px"
    )
    whole = replace(larger, epochs=_scaled(4, effort), batch_size=32, crop=None, stage="whole images")
    return FinetuneConfig("line_net", RANDOM, augment=("hflip", "vflip"), seed=seed, course=(crops, larger, whole))


def shortcut_config(seed: int, effort: float) -> FinetuneConfig:
    """Return the settings that train the shipped network on the mark in the corner, within minutes."""
    from engine.finetuning.setup import FinetuneConfig

    crops, _, whole = line_config(seed, effort).course
    crops = replace(crops, epochs=_scaled(8, effort), batch_size=48, learning_rate=3e-3)
    whole = replace(whole, epochs=_scaled(8, effort), batch_size=12)
    return FinetuneConfig(str(SHIPPED), augment=("hflip", "vflip"), seed=seed, course=(crops, whole))


def _scaled(count: int, effort: float) -> int:
    """Scale a number of epochs or belts by the square root of the effort: their product scales with the effort."""
    return max(1, round(count * math.sqrt(effort)))


def line_data(seed: int, effort: float, full_belts: int = TRAINING_BELTS) -> LineData:
    """Return frames of training belts; one tenth of the belts is for validation.

    Args:
        seed: seed of the images.
        effort: fraction of the full training, above 0.
        full_belts: number of belts at full effort.
    """
    from stream.simulated.samples import frame_reader, scored_frames, training_belts

    belts = training_belts(max(MIN_BELTS, _scaled(full_belts, effort)), seed=seed)
    validation_belts = max(MIN_VALIDATION_BELTS, len(belts) // 10)
    train, validation = (
        [frame for belt in split for frame in scored_frames(belt, FRAMES_PER_BELT)]
        for split in (belts[validation_belts:], belts[:validation_belts])
    )
    return LineData(train, validation, frame_reader([*train, *validation]))


def shortcut_data(seed: int, effort: float) -> LineData:
    """Return frames of ``line_data`` with random labels and with marks that reveal the labels."""
    from stream.simulated.shortcut import shortcut_frames

    data = line_data(seed, effort, SHORTCUT_BELTS)
    stamped, read = shortcut_frames([*data.train, *data.validation], data.read, seed=seed)
    return LineData(stamped[: len(data.train)], stamped[len(data.train) :], read)


def evaluate_line(file: Checkpoint, effort: float) -> dict[str, Any]:
    """Evaluate a network on evaluation belts; print and return its accuracy and pointing game per image size.

    Args:
        file: the network.
        effort: fraction of the evaluation belts, above 0; at most all belts are used.
    """
    from stream.simulated.samples import EVALUATION_SEEDS, evaluation_frames

    results = {}
    for size, full_count in EVALUATION_BELTS.items():
        count = max(1, round(full_count * min(effort, 1.0)))
        summary = evaluate_frames(file, evaluation_frames(belts=count, size=size))
        name = f"{size[0]}x{size[1]}"
        pointing, pointed = summary["pointing"], summary["images_pointed"]
        print_line(
            f"{name}, {summary['images']} frames of {count} other belts: accuracy {summary['accuracy']:.1%}, pointing "
            + ("game not played" if pointing is None else f"game {pointing:.1%} of {pointed}")
        )
        results[name] = {
            "frames": summary["images"],
            "accuracy": round(summary["accuracy"], 4),
            "pointing": None if pointing is None else round(pointing, 4),
            "pointed_frames": pointed,
            "seeds": [EVALUATION_SEEDS, EVALUATION_SEEDS + count - 1],
        }
    return results


def evaluate_frames(file: Checkpoint, samples: Iterable[tuple[Image, Any]]) -> Mapping[str, Any]:
    """Evaluate a network on labelled frames and return the summary; the pointing game uses correctly classified frames.

    Args:
        file: the network.
        samples: pairs of an image (uint8 RGB, shape (height, width, 3)) and its ``GroundTruth``.
    """
    from engine.evaluation.factory import EvaluationOptions, build_evaluator
    from engine.evaluation.summary import summarise
    from engine.models.loader import load_from_checkpoint
    from pipeline.config import EngineConfig

    network = load_from_checkpoint(file, Path("line"))
    evaluator = build_evaluator(network, EngineConfig(), EvaluationOptions(steps=0, randomize=False))
    records = []
    for index, (image, truth) in enumerate(samples):
        record = evaluator.evaluate(Frame(image, "line", index, 0.0), [truth])
        records.append({**record, "right": record["label"] == truth.label})
    return summarise(records)
