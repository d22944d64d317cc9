"""From the line's pictures to the shipped network: two stretches of training, an examination, and one file.

Knows nothing about the line: pictures, labels and what to write about them come from the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from engine.line_training.evaluate import Examination, examine
from engine.line_training.preprocessing import Recipe
from engine.line_training.sample_pool import Draw
from engine.line_training.trainer import FINISH, PLAN, Progress, Stage, train
from engine.models.checkpoint import ModelFile
from engine.models.line_net import INPUT_SIZE, LAYER, LineNet
from engine.models.weights import put_into
from pipeline.frames import Image, Truth

_ALBUM_PICTURES = 3000
_FINISH_ALBUM_PICTURES = 1200
_ANEW_ALBUM_PICTURES = 300
_LEAST_PICTURES = 60
_ANEW = (Stage(96, 100, 48, 3e-3), Stage(None, 400, 12, 2e-3))
"""A short plan: a pattern as plain as a stamp is learned in minutes."""


@dataclass(frozen=True, slots=True)
class Lessons:
    """What a network learns from."""

    first: Draw
    """Pictures of the plan from close-ups to whole ones."""
    last: Draw
    """Pictures of the last stretch: more of what is rare and easily mistaken."""
    labels: Sequence[str]


def teach(
    lessons: Lessons, *, seed: int, effort: float, tell: Callable[[Progress], None]
) -> tuple[LineNet, dict[str, Any]]:
    """Train a small network.

    Args:
        lessons: the pictures.
        seed: of weights and of what is drawn.
        effort: share of the full training, above 0.
        tell: told where it stands.

    Returns:
        The network in evaluation mode, and what the training did, for its provenance.
    """
    recipe = Recipe(tuple(lessons.labels), INPUT_SIZE)
    plan, finish = (
        [replace(stage, steps=max(2, round(stage.steps * effort))) for stage in stages] for stages in (PLAN, FINISH)
    )
    album, last_album = (
        max(_LEAST_PICTURES, round(most * min(effort, 1.0))) for most in (_ALBUM_PICTURES, _FINISH_ALBUM_PICTURES)
    )
    torch.manual_seed(seed)
    net = LineNet(len(lessons.labels))
    report = train(net, lessons.first, recipe=recipe, plan=plan, album=album, seed=seed, on_progress=tell)
    finished = train(net, lessons.last, recipe=recipe, plan=finish, album=last_album, seed=seed + 1, on_progress=tell)
    told = {"torch": torch.__version__, "effort": effort, "training": asdict(report), "finish": asdict(finished)}
    return net, told


def teach_anew(
    pupil: ModelFile, draw: Draw, *, seed: int, effort: float, tell: Callable[[Progress], None]
) -> tuple[LineNet, dict[str, Any]]:
    """Teach a trained network something else in a few minutes, with the same labels.

    Returns:
        The network in evaluation mode, and what the training did, for its provenance.
    """
    plan = [replace(stage, steps=max(2, round(stage.steps * effort))) for stage in _ANEW]
    net = LineNet(len(pupil.labels))
    put_into(net, pupil.state)
    torch.manual_seed(seed)
    recipe = Recipe(tuple(pupil.labels), INPUT_SIZE)
    album = max(_LEAST_PICTURES, round(_ANEW_ALBUM_PICTURES * min(effort, 1.0)))
    report = train(net, draw, recipe=recipe, plan=plan, album=album, renewed=1, seed=seed, on_progress=tell)
    return net, {"torch": torch.__version__, "effort": effort, "training": asdict(report)}


def examined(
    net: LineNet, labels: Sequence[str], exams: Mapping[str, Iterable[tuple[Image, Truth]]]
) -> dict[str, Examination]:
    """Examine the network on each set of pictures, by its name."""
    recipe = Recipe(tuple(labels), INPUT_SIZE)
    return {name: examine(net, samples, recipe=recipe) for name, samples in exams.items()}


def packed(net: LineNet, labels: Sequence[str], provenance: Mapping[str, Any]) -> ModelFile:
    """Return the network as a model file's content."""
    recipe = Recipe(tuple(labels), INPUT_SIZE)
    state = dict(net.state_dict())
    return ModelFile(state, "line_net", recipe.labels, INPUT_SIZE, recipe.mean, recipe.std, LAYER, provenance)
