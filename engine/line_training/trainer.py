"""Train a small classifier on labelled pictures, and examine it: is it right, and does it look at the right place?

A defect fills a hundredth of a picture, and the mean over all cells drowns it: trained on whole pictures alone the
network learns nothing for a long time. So it learns from close-ups first, cut around the known boxes, then from
larger pieces, then from whole pictures. What a cell says has the same weight at every stage, since scores are sums of
cells over a fixed count; the last layer is rescaled to the mean at the end. Boxes choose the close-ups, and no loss
tells the network which cell to light up. Pictures without boxes train, too: on the stages that show them whole.

Knows nothing about where pictures come from. The same pictures, seed, thread count and machine give the same weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from engine.line_training.preprocessing import Preprocessing
from engine.line_training.sample_pool import Draw, SamplePool
from pipeline.errors import ModelError

_SPOT_CELLS = 12.0
"""How many cells a defect is taken to fill: scores are sums over cells divided by this."""


@dataclass(frozen=True, slots=True)
class CurriculumStage:
    """A stretch of training on pieces of one size."""

    side: int | None
    """Side in input pixels of the square pieces; None for whole pictures."""
    steps: int
    batch: int
    learning_rate: float
    """Its highest; it rises at first and falls to nothing."""


PLAN = (CurriculumStage(96, 1800, 96, 5e-3), CurriculumStage(160, 200, 40, 2e-3), CurriculumStage(None, 700, 32, 2e-3))
"""From close-ups to whole pictures."""

FINISH = (CurriculumStage(None, 220, 32, 1e-3),)
"""A last stretch, for whole pictures with more of what is rare and easily mistaken."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training stands, for whoever shows it."""

    step: int
    steps: int
    """In all stages together."""
    stage: str
    loss: float
    """Cross-entropy, a running mean."""
    accuracy: float
    """Share named right before the network learned from them, a running mean."""
    seconds: float
    """Since the start."""


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What a training did."""

    steps: int
    images: int
    """How many pictures were drawn; each is seen in many pieces."""
    seed: int
    loss: float
    accuracy: float
    seconds: float


def train(
    net: nn.Module,
    draw: Draw,
    *,
    recipe: Preprocessing,
    plan: Sequence[CurriculumStage] = PLAN,
    album: int = 3000,
    renewed: int = 6,
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
) -> TrainingReport:
    """Train ``net`` in place on the CPU and leave it in evaluation mode.

    The net has ``features`` (convolutions), a mean over cells, and ``classifier`` (one linear layer). ``album``
    pictures are kept at a time, ``renewed`` of them replaced before each step. Pictures are mirrored both ways: use it
    for things that may lie any way round. Raises ``ModelError`` for a label that the recipe does not know, and for a
    net that is built otherwise.
    """
    start = time.perf_counter()
    rng = np.random.default_rng((seed, 21))
    model = _Trainer(net, recipe)
    pictures = SamplePool(draw, recipe, count=album, rng=rng)
    steps = sum(stage.steps for stage in plan)
    done, loss_mean, right_mean = 0, float(np.log(len(recipe.labels))), 1.0 / len(recipe.labels)
    for stage in plan:
        model.begin(stage)
        for _ in range(stage.steps):
            pictures.renew(rng.integers(0, album, renewed))
            side = stage.side
            loss, right = model.learn(
                *(pictures.wholes(stage.batch) if side is None else pictures.close_ups(stage.batch, side))
            )
            done += 1
            loss_mean += 0.05 * (loss - loss_mean)
            right_mean += 0.05 * (right - right_mean)
            if on_progress is not None:
                name = "whole pictures" if side is None else f"{side} px pieces"
                on_progress(Progress(done, steps, name, loss_mean, right_mean, time.perf_counter() - start))
    model.finish()
    return TrainingReport(steps, pictures.drawn, seed, loss_mean, right_mean, time.perf_counter() - start)


class _Trainer:
    """A net while it learns: its last layer stands in for sums of cells instead of their mean."""

    def __init__(self, net: nn.Module, recipe: Preprocessing) -> None:
        tail = net.get_submodule("classifier")
        if not isinstance(tail, nn.Linear):
            raise ModelError(f"classifier is {type(tail).__name__}: a net to be trained here ends in one Linear layer")
        self._net, self._head, self._tail, self._recipe = net, net.get_submodule("features"), tail, recipe
        net.eval()
        with torch.inference_mode():
            rows, columns = self._head(torch.zeros(1, 3, *recipe.input_size)).shape[2:]
        self._cells = int(rows * columns)
        self._weight = nn.Parameter(tail.weight.detach() * (_SPOT_CELLS / self._cells))
        self._bias = nn.Parameter(tail.bias.detach().clone())
        self._learning = [*self._head.parameters(), self._weight, self._bias]

    def begin(self, stage: CurriculumStage) -> None:
        """Start a stage: its learning rate rises and falls once."""
        self._net.train()
        self._optimiser = torch.optim.AdamW(self._learning, lr=stage.learning_rate, weight_decay=1e-2)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimiser, max_lr=stage.learning_rate, total_steps=max(2, stage.steps), pct_start=0.2
        )

    def learn(self, pieces: torch.Tensor, classes: torch.Tensor) -> tuple[float, float]:
        """Take one step; return the loss and the share named right before it."""
        inputs = self._recipe.normalise(pieces).contiguous(memory_format=torch.channels_last)
        scores = F.linear(self._head(inputs).sum((2, 3)) / _SPOT_CELLS, self._weight, self._bias)
        loss = F.cross_entropy(scores, classes)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._learning, 5.0)
        self._optimiser.step()
        self._schedule.step()
        return float(loss.detach()), float((scores.argmax(1) == classes).float().mean())

    def finish(self) -> None:
        """Give the net its last layer back, rescaled from sums to the mean."""
        with torch.no_grad():
            self._tail.weight.copy_(self._weight * (self._cells / _SPOT_CELLS))
            self._tail.bias.copy_(self._bias)
        self._net.eval()
