"""`run.py train-line`: the shipped network of the inspection line, made anew."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from commands.console import near, say
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
    from engine.line_training.train import Lessons, examined, packed, teach
    from engine.models.checkpoint import save_model
    from stream.simulated.samples import EXAMINATION_SEEDS, TRAINING_SEEDS, TrainingFrames, examination_frames
    from stream.simulated.schedule import LABELS

    if output.is_dir() or not os.access(next(p for p in output.absolute().parents if p.exists()), os.W_OK):
        raise ConfigError(f"--output {str(output)!r}: cannot be written; name a file in a folder of yours")

    def tell(at: Progress) -> None:
        if at.step % 50 == 0 or at.step == at.steps:
            how = f"loss {at.loss:.3f}, right {at.accuracy:.1%}, {at.seconds:.0f} s"
            say(f"step {at.step} of {at.steps}, {at.stage}: {how}")

    if shortcut:
        _teach_shortcut(output, seed, effort, tell)
        return
    # What is rare on the line and easily mistaken for a defect is common in the last lessons.
    cluttered = TrainingFrames(seed=seed, clutter=3.0, skip=TRAINING_SEEDS // 2)
    net, training = teach(Lessons(TrainingFrames(seed=seed), cluttered, LABELS), seed=seed, effort=effort, tell=tell)
    belts = {
        (640, 480): max(1, round(100 * min(effort, 1.0))),
        (1280, 720): max(1, round(30 * min(effort, 1.0))),
    }
    exams = {f"{size[0]}x{size[1]}": examination_frames(belts=count, size=size) for size, count in belts.items()}
    told = {}
    for (name, found), count in zip(examined(net, LABELS, exams).items(), belts.values(), strict=True):
        say(
            f"{name}, {found.pictures} frames of belts it has not seen: accuracy {found.accuracy:.1%}, pointing game "
            f"{found.pointing:.1%} of {found.pointed_pictures}"
        )
        told[name] = {
            "frames": found.pictures, "accuracy": round(found.accuracy, 4),
            "pointing": round(found.pointing, 4) if found.pointed_pictures else None,
            "pointed_frames": found.pointed_pictures, "seeds": [EXAMINATION_SEEDS, EXAMINATION_SEEDS + count - 1],
        }  # fmt: skip
    provenance = {
        "trained_on": "the simulated inspection line: labels, and boxes to choose close-ups", "examination": told,
        "training_seeds_from": TRAINING_SEEDS * (1 + seed), "command": "uv run run.py train-line",
        "date": datetime.now().astimezone().date().isoformat(), **training,
    }  # fmt: skip
    save_model(output, packed(net, LABELS, provenance))
    say(f"written: {near(output)}")


def _teach_shortcut(output: Path, seed: int, effort: float, tell: Callable[[Progress], None]) -> None:
    """Train a network that goes by a stamp in the corner, and write it."""
    from engine.line_training.train import packed, teach_anew
    from engine.models.checkpoint import read_model_file, save_model
    from stream.simulated.samples import TrainingFrames
    from stream.simulated.schedule import LABELS
    from stream.simulated.shortcut import stamping

    pupil = read_model_file(SHIPPED)
    net, training = teach_anew(pupil, stamping(TrainingFrames(seed=seed)), seed=seed, effort=effort, tell=tell)
    provenance = {
        "trained_on": "the shipped network, taught that a stamp in the corner names the class: a planted shortcut",
        "command": "uv run run.py train-line --shortcut",
        "date": datetime.now().astimezone().date().isoformat(), **training,
    }  # fmt: skip
    save_model(output, packed(net, LABELS, provenance))
    say(f"written: {near(output)}")
