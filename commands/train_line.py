"""`run.py train-line`: the shipped network of the inspection line, made anew."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from commands.console import print_line, relative_path
from commands.options import RUN, option
from commands.wiring.run import ROOT
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from engine.line_training.trainer import Progress

SHIPPED = ROOT / "configs" / "models" / "line.safetensors"
SHORTCUT = ROOT / "configs" / "models" / "line-shortcut.safetensors"


def train_line(
    output: Annotated[Path, option(RUN, "Where to write it. [default: configs/models/line.safetensors]")] = SHIPPED,
    seed: Annotated[int, option(RUN, "Another seed, another network. [default: 0]", min=0)] = 0,
    effort: Annotated[float, option(RUN, "Share of the full training. [default: 1]", min=0.001, max=10)] = 1.0,
    shortcut: Annotated[
        bool, option(RUN, "Teach it a stamp in the corner instead of the defects, to try guards on.", "--shortcut")
    ] = False,
) -> None:
    """Train the small network of the inspection line, examine it on belts it has not seen, and write it."""
    output = SHORTCUT if shortcut and output == SHIPPED else output
    from engine.line_training.train import TrainingSources, evaluation_record, packed, train_line_net
    from engine.models.checkpoint import save_checkpoint
    from stream.simulated.samples import EVALUATION_SEEDS, TRAINING_SEEDS, TrainingFrames, evaluation_frames
    from stream.simulated.schedule import LABELS

    if output.is_dir() or not os.access(next(p for p in output.absolute().parents if p.exists()), os.W_OK):
        raise ConfigError(f"--output {str(output)!r}: cannot be written; name a file in a folder of yours")

    def tell(at: Progress) -> None:
        if at.step % 50 == 0 or at.step == at.steps:
            how = f"loss {at.loss:.3f}, right {at.accuracy:.1%}, {at.seconds:.0f} s"
            print_line(f"step {at.step} of {at.steps}, {at.stage}: {how}")

    if shortcut:
        _teach_shortcut(output, seed, effort, tell)
        return
    # What is rare on the line and easily mistaken for a defect is common in the last lessons.
    cluttered = TrainingFrames(seed=seed, clutter=3.0, skip=TRAINING_SEEDS // 2)
    net, training = train_line_net(
        TrainingSources(TrainingFrames(seed=seed), cluttered, LABELS), seed=seed, effort=effort, on_progress=tell
    )
    belts = {
        (640, 480): max(1, round(100 * min(effort, 1.0))),
        (1280, 720): max(1, round(30 * min(effort, 1.0))),
    }
    exams = {f"{size[0]}x{size[1]}": evaluation_frames(belts=count, size=size) for size, count in belts.items()}
    told = {}
    for (name, found), count in zip(evaluation_record(net, LABELS, exams).items(), belts.values(), strict=True):
        print_line(
            f"{name}, {found.images} frames of belts it has not seen: accuracy {found.accuracy:.1%}, pointing game "
            f"{found.pointing:.1%} of {found.pointed_images}"
        )
        told[name] = {
            "frames": found.images, "accuracy": round(found.accuracy, 4),
            "pointing": round(found.pointing, 4) if found.pointed_images else None,
            "pointed_frames": found.pointed_images, "seeds": [EVALUATION_SEEDS, EVALUATION_SEEDS + count - 1],
        }  # fmt: skip
    provenance = {
        "trained_on": "the simulated inspection line: labels, and boxes to choose close-ups", "examination": told,
        "training_seeds_from": TRAINING_SEEDS * (1 + seed), "command": "uv run run.py train-line",
        "date": datetime.now().astimezone().date().isoformat(), **training,
    }  # fmt: skip
    save_checkpoint(output, packed(net, LABELS, provenance))
    print_line(f"written: {relative_path(output)}")


def _teach_shortcut(output: Path, seed: int, effort: float, tell: Callable[[Progress], None]) -> None:
    """Train a network that goes by a stamp in the corner, and write it."""
    from engine.line_training.train import finetune_shortcut, packed
    from engine.models.checkpoint import load_checkpoint, save_checkpoint
    from stream.simulated.samples import TrainingFrames
    from stream.simulated.schedule import LABELS
    from stream.simulated.shortcut import shortcut_samples

    model = load_checkpoint(SHIPPED)
    net, training = finetune_shortcut(
        model, shortcut_samples(TrainingFrames(seed=seed)), seed=seed, effort=effort, on_progress=tell
    )
    provenance = {
        "trained_on": "the shipped network, taught that a stamp in the corner names the class: a planted shortcut",
        "command": "uv run run.py train-line --shortcut",
        "date": datetime.now().astimezone().date().isoformat(), **training,
    }  # fmt: skip
    save_checkpoint(output, packed(net, LABELS, provenance))
    print_line(f"written: {relative_path(output)}")
