"""One way to learn, whatever learns: balanced batches, a rate that rises and falls, and an end when nothing improves.

The best state on the stopping pictures is the one that stays: by the mean recall of the classes, then by loss.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import ModelError

log = logging.getLogger(__name__)

Numbers = npt.NDArray[np.int_]
Balance = Literal["sampler", "weights", "none"]


class Trainable(Protocol):
    """Something with parameters that names the classes of pictures, by their numbers."""

    def param_groups(self, learning_rate: float) -> list[dict[str, object]]:
        """Return the parameters to be learned and their highest rates, as an optimiser takes them."""
        ...

    def logits(self, numbers: Numbers, *, augment: bool) -> Tensor:
        """Return class scores (N, K) before the softmax; ``augment``: pictures are seen with augmentation."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of what was learned so far."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go back to a copy."""
        ...


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """How long and how fast."""

    epochs: int
    """At the most."""
    batch_size: int
    learning_rate: float
    """The highest, of the layers that were trained before; the new last layer learns four times as fast."""
    patience: int
    """Epochs without improvement on the stopping pictures before it ends."""
    improve_on_loss: bool = False
    """A smaller loss is hope, too, and not a better recall alone: where epochs cost nothing."""
    balance: Balance = "sampler"
    """Rare classes are drawn as often as common ones, count more in the loss, or neither."""
    label_smoothing: float = 0.05
    """Label smoothing."""
    weight_decay: float = 0.01
    stage: str = ""
    """What this stretch is called where there are several."""


@dataclass(frozen=True, slots=True)
class EpochStats:
    """Where a training stands after one epoch."""

    epoch: int
    epochs: int
    loss: float
    """Cross-entropy of what it learned from, a mean."""
    validation_loss: float
    validation_recall: float
    """Mean recall of the classes on the stopping pictures."""
    best: bool
    seconds: float
    """Since the start of this stretch."""
    stage: str


def train(
    trainable: Trainable,
    classes: Numbers,
    train_indices: Numbers,
    validation_indices: Numbers,
    config: TrainingConfig,
    *,
    seed: int,
    on_epoch: Callable[[EpochStats], None],
    stop: Callable[[], bool] = lambda: False,
    warm_start: bool = False,
) -> list[EpochStats]:
    """Teach, and leave the learner in its best state.

    Args:
        trainable: who learns.
        classes: every picture's class, by its number.
        train_indices: numbers of the pictures to learn from.
        validation_indices: numbers of the pictures that tell when to end.
        config: how.
        seed: of the order.
        on_epoch: told of every epoch.
        stop: asked after every batch; True ends it with what is best so far.
        warm_start: the learner knows something already: what is no better than that is not kept.

    Raises:
        ModelError: the loss left all bounds before anything was learned.
    """
    started_at = time.perf_counter()
    rng = np.random.default_rng((seed, 8))
    weights = class_weights(classes[train_indices], config.balance)
    batches = max(1, math.ceil(len(train_indices) / config.batch_size))
    optimiser = torch.optim.AdamW(trainable.param_groups(config.learning_rate), weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser,
        max_lr=[float(group["lr"]) for group in optimiser.param_groups],
        total_steps=max(2, config.epochs * batches),
        pct_start=0.15,
    )
    told: list[EpochStats] = []
    best, since, state = (-1.0, 0.0), 0, trainable.state_dict()
    least = math.inf
    if warm_start:
        loss, recall = evaluate(trainable, classes, validation_indices)
        best = (recall, -loss)
    for epoch in range(1, config.epochs + 1):
        losses = []
        for numbers in np.array_split(_order(classes[train_indices], train_indices, config.balance, rng), batches):
            if stop():
                trainable.load_state_dict(state)
                return told
            losses.append(_step(trainable, numbers, classes, weights, config, optimiser))
            schedule.step()
        if not math.isfinite(losses[-1]):
            return _ran_away(trainable, told, state, warm_start=warm_start)
        loss, recall = evaluate(trainable, classes, validation_indices)
        better = (recall, -loss) > best
        hope = better or (config.improve_on_loss and loss < least)
        best, least, since = max(best, (recall, -loss)), min(least, loss), 0 if hope else since + 1
        if better:
            state = trainable.state_dict()
        seconds = time.perf_counter() - started_at
        told.append(
            EpochStats(epoch, config.epochs, float(np.mean(losses)), loss, recall, better, seconds, config.stage)
        )
        on_epoch(told[-1])
        if since >= config.patience:
            break
    trainable.load_state_dict(state)
    return told


def _ran_away(
    trainable: Trainable, told: list[EpochStats], state: dict[str, Tensor], *, warm_start: bool
) -> list[EpochStats]:
    """End with what is best so far; where nothing was learned, say so."""
    if not told or not (warm_start or any(epoch.best for epoch in told)):
        raise ModelError("the loss left all bounds in the first epoch; choose a lower --learning-rate")
    log.warning("the loss left all bounds in epoch %d: what was best before stays", len(told) + 1)
    trainable.load_state_dict(state)
    return told


def _step(  # noqa: PLR0917 - all that a step takes
    trainable: Trainable, numbers: Numbers, classes: Numbers, weights: Tensor | None, config: TrainingConfig,
    optimiser: torch.optim.Optimizer,
) -> float:  # fmt: skip
    scores = trainable.logits(numbers, augment=True)
    truth = torch.from_numpy(classes[numbers]).to(scores.device)
    loss = F.cross_entropy(scores, truth, weight=weights, label_smoothing=config.label_smoothing)
    optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    optimiser.step()
    return float(loss.detach())


def class_weights(classes: Numbers, balance: Balance) -> Tensor | None:
    """Return each class's weight in the loss, one on average over the pictures; None where all count alike."""
    if balance != "weights":
        return None
    counts = np.bincount(classes)
    return torch.from_numpy(len(classes) / (len(counts) * counts)).float()


def _order(classes: Numbers, numbers: Numbers, balance: Balance, rng: np.random.Generator) -> Numbers:
    """Return which pictures an epoch visits: each once, or as many drawn so that classes come equally often.

    A class is gone through once before any of its pictures comes again.
    """
    if balance != "sampler":
        return rng.permutation(numbers)
    kinds = np.unique(classes)
    each = math.ceil(len(numbers) / len(kinds))
    drawn = [_epoch_orders(numbers[classes == kind], each, rng) for kind in kinds]
    return rng.permutation(np.concatenate(drawn))[: len(numbers)]


def _epoch_orders(numbers: Numbers, count: int, rng: np.random.Generator) -> Numbers:
    rounds = [rng.permutation(numbers) for _ in range(math.ceil(count / len(numbers)))]
    return np.concatenate(rounds)[:count]


def predict_logits(trainable: Trainable, numbers: Numbers, batch: int = 32) -> Tensor:
    """Return class scores (N, K) of pictures as they are."""
    parts = [numbers[first : first + batch] for first in range(0, len(numbers), batch)]
    with torch.inference_mode():
        return torch.cat([trainable.logits(part, augment=False).float().cpu() for part in parts])


def evaluate(trainable: Trainable, classes: Numbers, numbers: Numbers) -> tuple[float, float]:
    """Return loss and mean recall of the classes."""
    scores = predict_logits(trainable, numbers)
    truth = classes[numbers]
    right = scores.argmax(1).numpy() == truth
    recall = float(np.mean([right[truth == kind].mean() for kind in np.unique(truth)]))
    return float(F.cross_entropy(scores, torch.from_numpy(truth))), recall


def wilson_interval(fraction: float, count: int, deviations: float = 1.96) -> tuple[float, float]:
    """Return between which shares the true one lies, 95 times of 100, when ``count`` witnesses gave this share.

    Wilson's score interval; E. B. Wilson, *Probable inference, the law of succession, and statistical inference*, 1927.
    """
    square = deviations**2
    middle = (fraction + square / (2 * count)) / (1 + square / count)
    away = deviations / (1 + square / count) * math.sqrt(fraction * (1 - fraction) / count + square / (4 * count**2))
    return max(0.0, middle - away), min(1.0, middle + away)


def confusion(truth: Sequence[int], given: Sequence[int], count: int) -> list[list[int]]:
    """Return counts by true class (row) and given class (column)."""
    table = np.zeros((count, count), int)
    np.add.at(table, (np.asarray(truth, int), np.asarray(given, int)), 1)
    return [[int(one) for one in row] for row in table]
