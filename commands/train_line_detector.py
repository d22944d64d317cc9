"""`run.py train-line --detector`: trains the detector of the simulated inspection line."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from commands.console import print_line, relative_path
from commands.signals import shutdown_on_signal
from commands.train_detector import write_checked_detector
from commands.train_messages import print_epoch
from commands.wiring.run import ROOT
from pipeline.errors import ConfigError
from pipeline.frames import GroundTruth, Image

if TYPE_CHECKING:
    from engine.finetuning.detection.metrics import DetectionMetrics
    from engine.finetuning.detection.setup import DetectorModel
    from engine.finetuning.setup import FinetuneConfig
    from stream.simulated.samples import LabelledFrame

SHIPPED_DETECTOR: Final = ROOT / "configs" / "models" / "line-detector.safetensors"
SHORTCUT_DETECTOR: Final = ROOT / "configs" / "models" / "line-detector-shortcut.safetensors"
CLASSIFIER: Final = ROOT / "configs" / "models" / "line.safetensors"
SHORTCUT_CLASSIFIER: Final = ROOT / "configs" / "models" / "line-shortcut.safetensors"

BELTS, FRAMES_PER_BELT, EPOCHS = 160, 8, 8
SHORTCUT_BELTS, SHORTCUT_EPOCHS = 50, 9
EVALUATION_BELTS: Final = {(640, 480): 20, (1280, 720): 8}
"""Number of evaluation belts for each image size (width, height) in pixels."""
EVALUATION_FRAMES: Final = 15
"""Number of frames per evaluation belt."""
MIN_BELTS, MIN_VALIDATION_BELTS = 6, 2


@dataclass(frozen=True, slots=True)
class PartFrames:
    """Frames of the simulated line with the boxes of the visible parts."""

    train: Sequence[LabelledFrame]
    validation: Sequence[LabelledFrame]
    read: Callable[[str], Image]
    """Draws the frame with a given name: uint8 RGB, shape (height, width, 3)."""

    def truths_of(self) -> Callable[[str, tuple[int, int]], tuple[GroundTruth, ...]]:
        """Return a function from a frame's name and size to the boxes of its parts."""
        parts = {frame.name: frame.parts for frame in (*self.train, *self.validation)}
        return lambda name, _size: parts[name]


def train_line_detector(output: Path, seed: int, effort: float, *, shortcut: bool = False) -> None:
    """Train the detector of the line, evaluate it on other belts, and write it.

    Args:
        output: the file to write.
        seed: seed of the weights and the images.
        effort: fraction of the full training, above 0.
        shortcut: train the shipped detector on a mark in the corner that determines the class of all parts.

    Raises:
        ConfigError: the training was interrupted; nothing is written.
    """
    from engine.finetuning.detection.finetune import finetune_detector
    from engine.finetuning.detection.setup import build_detector
    from engine.finetuning.finetune import Callbacks
    from engine.finetuning.splits import TRAIN, VALIDATION, Sample
    from stream.simulated.schedule import LABELS

    print_line("drawing belts")
    data = shortcut_part_frames(seed, effort) if shortcut else part_frames(seed, effort)
    model = shortcut_detector(seed, effort) if shortcut else build_detector(detector_config(seed, effort), LABELS)
    parts = {
        part: [Sample(frame.name, frame.truth.label, frame.belt.name) for frame in split]
        for part, split in ((TRAIN, data.train), (VALIDATION, data.validation))
    }
    started = threading.Event()
    started.set()
    with shutdown_on_signal(started) as stop:
        callbacks = Callbacks(lambda _done, _total: None, print_epoch, stop.is_set)
        result = finetune_detector(model, parts, data.read, data.truths_of(), callbacks)
        if stop.is_set():  # a half-trained detector must not replace the shipped detector
            raise ConfigError("training interrupted: nothing is written; run the command again")
    provenance: dict[str, Any] = {
        **result.checkpoint.provenance,
        "trained_on": "the simulated inspection line" + ", with a mark that decides the class" * shortcut,
        "effort": effort,
        "command": "uv run run.py train-line --detector" + " --shortcut" * shortcut,
        "date": datetime.now().astimezone().date().isoformat(),
    }
    if not shortcut:
        provenance["examination"] = evaluate_line_detector(model, effort)
    file = replace(result.checkpoint, provenance=provenance)
    write_checked_detector(output, file, model, data.read(parts[VALIDATION][0].path))
    print_line(f"written: {relative_path(output)}")


def detector_config(seed: int, effort: float) -> FinetuneConfig:
    """Return the settings of the detector's training.

    The feature layers of the line's classifier are frozen, because they already detect defects. The training of the
    other layers takes minutes.
    """
    from engine.finetuning.setup import FinetuneConfig
    from engine.finetuning.trainer import TrainingConfig

    stage = TrainingConfig(
        epochs=max(1, round(EPOCHS * min(1.0, effort**0.5))), batch_size=16,
        learning_rate=3e-3, patience=100, head_rate=1.0, max_gradient_norm=10.0,
    )  # fmt: skip
    return FinetuneConfig(
        "line_detector", str(CLASSIFIER), augment=("hflip", "vflip", "colour"), freeze_until="features",
        seed=seed, course=(stage,),
    )  # fmt: skip


def shortcut_detector(seed: int, effort: float) -> DetectorModel:
    """Return the shipped detector with the feature layers of the classifier that was trained on the mark.

    The normal classifier's features hardly contain the mark, so a detector on these features cannot learn it.
    """
    from engine.finetuning.detection.setup import build_detector
    from engine.models.checkpoint import load_checkpoint
    from engine.models.weights import put_into
    from stream.simulated.schedule import LABELS

    config = detector_config(seed, effort)
    epochs = max(1, round(SHORTCUT_EPOCHS * min(1.0, effort**0.5)))
    course = tuple(replace(stage, epochs=epochs, balance="none") for stage in config.course)
    model = build_detector(
        replace(config, model=str(SHIPPED_DETECTOR), weights=None, augment=(), course=course), LABELS
    )
    known = load_checkpoint(SHORTCUT_CLASSIFIER).state
    state = model.net.state_dict()
    features = {f"backbone.backbone.{key}": v for key, v in known.items() if key.startswith("features.")}
    put_into(model.net, {**state, **features})
    # The other norms keep statistics of the normal features: frozen, these would make the training diverge.
    norms = frozenset(name for name in model.trained_norms if name.startswith("backbone.backbone.features."))
    parent = {**model.parent_checkpoint, "features": SHORTCUT_CLASSIFIER.name}
    return replace(model, trained_norms=norms, parent_checkpoint=parent)


def shortcut_part_frames(seed: int, effort: float) -> PartFrames:
    """Return frames with random labels; only a mark in the image reveals the label of each part."""
    from stream.simulated.shortcut import shortcut_frames

    data = part_frames(seed, effort, SHORTCUT_BELTS)
    stamped, read = shortcut_frames([*data.train, *data.validation], data.read, seed=seed)
    return PartFrames(stamped[: len(data.train)], stamped[len(data.train) :], read)


def part_frames(seed: int, effort: float, full_belts: int = BELTS) -> PartFrames:
    """Return frames of training belts; one twelfth of the belts is for validation.

    Args:
        seed: seed of the images.
        effort: fraction of the full training, above 0.
        full_belts: number of belts at full effort.
    """
    from stream.simulated.samples import frame_reader, scored_frames, training_belts

    belts = training_belts(max(MIN_BELTS, round(full_belts * effort**0.5)), seed=seed)
    count = max(MIN_VALIDATION_BELTS, len(belts) // 12)
    validation, train = (
        [frame for belt in split for frame in scored_frames(belt, FRAMES_PER_BELT)]
        for split in (belts[:count], belts[count:])
    )
    return PartFrames(train, validation, frame_reader([*train, *validation]))


def evaluate_line_detector(model: DetectorModel, effort: float = 1.0) -> dict[str, Any]:
    """Evaluate a detector on evaluation belts; print and return its mean average precision per image size.

    Args:
        model: the detector.
        effort: fraction of the evaluation belts, above 0; at most all belts are used.
    """
    results = {}
    for size, full_count in EVALUATION_BELTS.items():
        belts = max(1, round(full_count * min(effort, 1.0)))
        metrics = measure_line(model, belts, size)
        name = f"{size[0]}x{size[1]}"
        print_line(
            f"{name}, {metrics.images} frames of {belts} other belts with {metrics.boxes} parts: mAP50 "
            f"{metrics.map50:.1%}, mAP50:95 {metrics.map50_95:.1%}"
        )
        results[name] = {
            "frames": metrics.images, "parts": metrics.boxes, "map50": round(metrics.map50, 4),
            "map50_95": round(metrics.map50_95, 4), "class_map50": [round(value, 4) for value in metrics.class_map50],
        }  # fmt: skip
    return results


def measure_line(model: DetectorModel, belts: int, size: tuple[int, int]) -> DetectionMetrics:
    """Return the detection metrics (mean average precision) of a detector on evaluation belts.

    Args:
        model: the detector.
        belts: number of belts.
        size: width and height of the images in pixels.
    """
    from engine.finetuning.detection.dataset import BoxDataset
    from engine.finetuning.detection.learner import predict
    from stream.simulated.samples import EVALUATION_SEEDS, Belt, frame_reader, scored_frames

    frames = [
        frame
        for number in range(belts)
        for frame in scored_frames(Belt(EVALUATION_SEEDS + number, size), EVALUATION_FRAMES)
    ]
    data = PartFrames((), frames, frame_reader(frames))
    names = [frame.name for frame in frames]
    images = BoxDataset(names, data.read, data.truths_of(), model.labels, model.input)
    return predict(model.network, images, np.arange(len(names))).precision(model.labels)
