"""From the line's pictures to the shipped network: two stretches of training, an examination, and one file.

Knows nothing about the line: pictures, labels and what to write about them come from the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from engine.line_training.evaluate import ClassifierReport, evaluate_classifier
from engine.line_training.preprocessing import Preprocessing
from engine.line_training.sample_pool import Draw
from engine.line_training.trainer import FINISH, PLAN, CurriculumStage, Progress, train
from engine.models.checkpoint import Checkpoint
from engine.models.line_net import INPUT_SIZE, LAYER, LineNet
from engine.models.weights import put_into
from pipeline.frames import GroundTruth, Image

_ALBUM_IMAGES = 3000
_FINISH_ALBUM_IMAGES = 1200
_ANEW_ALBUM_IMAGES = 300
_MIN_IMAGES = 60
_ANEW = (CurriculumStage(96, 100, 48, 3e-3), CurriculumStage(None, 400, 12, 2e-3))
"""A short plan: a pattern as plain as a stamp is learned in minutes."""


@dataclass(frozen=True, slots=True)
class TrainingSources:
    """What a network learns from."""

    first: Draw
    """Pictures of the plan from close-ups to whole ones."""
    last: Draw
    """Pictures of the last stretch: more of what is rare and easily mistaken."""
    labels: Sequence[str]


def train_line_net(
    lessons: TrainingSources, *, seed: int, effort: float, on_progress: Callable[[Progress], None]
) -> tuple[LineNet, dict[str, Any]]:
    """Train a small network.

    Args:
        lessons: the pictures.
        seed: of weights and of what is drawn.
        effort: share of the full training, above 0.
        on_progress: told where it stands.

    Returns:
        The network in evaluation mode, and what the training did, for its provenance.
    """
    recipe = Preprocessing(tuple(lessons.labels), INPUT_SIZE)
    plan, finish = (
        [replace(stage, steps=max(2, round(stage.steps * effort))) for stage in stages] for stages in (PLAN, FINISH)
    )
    album, last_album = (
        max(_MIN_IMAGES, round(most * min(effort, 1.0))) for most in (_ALBUM_IMAGES, _FINISH_ALBUM_IMAGES)
    )
    torch.manual_seed(seed)
    net = LineNet(len(lessons.labels))
    report = train(net, lessons.first, recipe=recipe, plan=plan, album=album, seed=seed, on_progress=on_progress)
    finished = train(
        net, lessons.last, recipe=recipe, plan=finish, album=last_album, seed=seed + 1, on_progress=on_progress
    )
    told = {"torch": torch.__version__, "effort": effort, "training": asdict(report), "finish": asdict(finished)}
    return net, told


def finetune_shortcut(
    model: Checkpoint, draw: Draw, *, seed: int, effort: float, on_progress: Callable[[Progress], None]
) -> tuple[LineNet, dict[str, Any]]:
    """Teach a trained network something else in a few minutes, with the same labels.

    Returns:
        The network in evaluation mode, and what the training did, for its provenance.
    """
    plan = [replace(stage, steps=max(2, round(stage.steps * effort))) for stage in _ANEW]
    net = LineNet(len(model.labels))
    put_into(net, model.state)
    torch.manual_seed(seed)
    recipe = Preprocessing(tuple(model.labels), INPUT_SIZE)
    album = max(_MIN_IMAGES, round(_ANEW_ALBUM_IMAGES * min(effort, 1.0)))
    report = train(net, draw, recipe=recipe, plan=plan, album=album, renewed=1, seed=seed, on_progress=on_progress)
    return net, {"torch": torch.__version__, "effort": effort, "training": asdict(report)}


def evaluation_record(
    net: LineNet, labels: Sequence[str], exams: Mapping[str, Iterable[tuple[Image, GroundTruth]]]
) -> dict[str, ClassifierReport]:
    """Examine the network on each set of pictures, by its name."""
    recipe = Preprocessing(tuple(labels), INPUT_SIZE)
    return {name: evaluate_classifier(net, samples, recipe=recipe) for name, samples in exams.items()}


def packed(net: LineNet, labels: Sequence[str], provenance: Mapping[str, Any]) -> Checkpoint:
    """Return the network as a model file's content."""
    recipe = Preprocessing(tuple(labels), INPUT_SIZE)
    state = dict(net.state_dict())
    return Checkpoint(state, "line_net", recipe.labels, INPUT_SIZE, recipe.mean, recipe.std, LAYER, provenance)
