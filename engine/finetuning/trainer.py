"""The training loop: balanced batches, a one-cycle learning rate, and early stopping.

The loop trains a ``Learner``: a network with its data, its loss and its measure. The state of the best epoch is kept:
the epoch with the best measure on the validation images (for classifiers, the mean recall), then with the lowest loss.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.finetuning.best_state import BestState
from engine.finetuning.progress import TrainingProgress
from pipeline.errors import ModelError

log = logging.getLogger(__name__)

Indices = npt.NDArray[np.int_]
"""Indices of images in a data set, (N,)."""

Balance = Literal["sampler", "weights", "none"]

WARM_UP_FRACTION = 0.15
"""Fraction of the steps during which the learning rate increases."""


class Trainable(Protocol):
    """A network, or a part of it, that classifies the images of a data set by their indices."""

    @property
    def rng(self) -> np.random.Generator | None:
        """Random generator used in addition to torch's; its state is saved with the progress."""
        ...

    def param_groups(self, learning_rate: float) -> list[dict[str, object]]:
        """Return the parameters to train with their peak learning rates, in the format of an optimiser."""
        ...

    def logits(self, indices: Indices, *, augment: bool) -> Tensor:
        """Return the class logits (N, K) for images; ``augment`` is True in training."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the trained weights."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the weights from a copy."""
        ...


class Learner(Protocol):
    """A network with its training and validation images, its loss and its measure."""

    measure: str
    """Name of the measure that ``evaluate`` returns; higher is better."""
    train_count: int
    """Number of training images."""

    @property
    def rng(self) -> np.random.Generator | None:
        """Random generator used in addition to torch's; its state is saved with the progress."""
        ...

    def param_groups(self, learning_rate: float) -> list[dict[str, object]]:
        """Return the parameters to train with their peak learning rates, in the format of an optimiser."""
        ...

    def epoch_order(self, rng: np.random.Generator) -> Indices:
        """Return the training images of an epoch, in order; ``train_count`` indices."""
        ...

    def loss(self, indices: Indices, epoch: int) -> Tensor:
        """Return the loss of a batch of augmented images.

        Args:
            indices: the images.
            epoch: number of the epoch, from 1.
        """
        ...

    def evaluate(self) -> tuple[float, float]:
        """Return loss and measure of the validation images."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the trained weights."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the weights from a copy."""
        ...


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Schedule and loss of one stage of a training."""

    epochs: int
    """Maximum number of epochs."""
    batch_size: int
    learning_rate: float
    """Peak learning rate of all layers except the last."""
    patience: int
    """Number of epochs without improvement on the validation images after which the stage ends."""
    improve_on_loss: bool = False
    """True: a lower loss counts as an improvement, like a better recall."""
    balance: Balance = "sampler"
    """``sampler``: rare classes are drawn as often as common ones; ``weights``: they weigh more in the loss."""
    label_smoothing: float = 0.05
    weight_decay: float = 0.01
    head_rate: float = 4.0
    """Learning rate of the last layer, relative to the other layers."""
    max_gradient_norm: float | None = None
    """Maximum norm of the gradients; larger gradients are scaled down. None: no limit."""
    crop: int | None = None
    """Side of square crops around the objects, in pixels of the network's input; None: whole images."""
    object_area: float | None = None
    """Typical area of an object in pixels of the network's input, for objects much smaller than the image; None: not
    used. See ``scaled_features``."""
    stage: str = ""
    """Name of the stage; empty if there is only one."""


@dataclass(frozen=True, slots=True)
class EpochStats:
    """Results of one epoch."""

    epoch: int
    epochs: int
    loss: float
    """Mean loss of the training images."""
    validation_loss: float
    validation_score: float
    """Measure of the validation images, 0 to 1."""
    best: bool
    seconds: float
    """Seconds since the start of the stage."""
    stage: str
    measure: str = "mean recall"
    """Name of the measure."""


def train(
    trainable: Trainable,
    classes: Indices,
    train_indices: Indices,
    validation_indices: Indices,
    config: TrainingConfig,
    *,
    seed: int,
    on_epoch: Callable[[EpochStats], None],
    stop: Callable[[], bool] = lambda: False,
    warm_start: bool = False,
    progress: TrainingProgress | None = None,
) -> list[EpochStats]:
    """Train a classifier, and restore the state of the best epoch.

    Args:
        trainable: the network.
        classes: the class of every image, by index.
        train_indices: the training images.
        validation_indices: the validation images.
        config: schedule and loss.
        seed: seed of the order of the images.
        on_epoch: called after each epoch.
        stop: called before each batch; training ends if it returns True.
        warm_start: True: the initial state is kept if no epoch is better.
        progress: stores the state after each epoch.

    Raises:
        ModelError: the loss was not finite in the first epoch.
    """
    learner = _Classification(trainable, classes, config, train_indices, validation_indices)
    return train_learner(
        learner, config, seed=seed, on_epoch=on_epoch, stop=stop, warm_start=warm_start, progress=progress
    )


def train_learner(
    learner: Learner, config: TrainingConfig, *, seed: int, on_epoch: Callable[[EpochStats], None],
    stop: Callable[[], bool] = lambda: False, warm_start: bool = False, progress: TrainingProgress | None = None,
) -> list[EpochStats]:  # fmt: skip
    """Train, and restore the state of the best epoch.

    Args:
        learner: the network, its images and its loss.
        config: the schedule.
        seed: seed of the order of the images.
        on_epoch: called after each epoch.
        stop: called before each batch; training ends if it returns True.
        warm_start: True: the initial state is kept if no epoch is better.
        progress: stores the state after each epoch; a saved stage continues after its last epoch, and ends with the
            same result as without the interruption.

    Raises:
        ModelError: the loss was not finite in the first epoch.
    """
    started_at = time.perf_counter()
    rng = np.random.default_rng((seed, 8))
    loop = _Loop(learner, config)
    saved = progress.next_stage() if progress else None
    best = BestState(learner) if saved is None else BestState.restored(learner, saved["best"])
    history: list[EpochStats] = []
    if saved is not None:
        history = [EpochStats(**epoch) for epoch in saved["history"]]
        started_at -= history[-1].seconds
        loop.restore(saved, rng)
    elif warm_start:
        best.measure()
    while len(history) < config.epochs and best.epochs_since < config.patience:
        epoch = len(history) + 1
        losses = []
        for batch in loop.batches(rng):
            if stop():
                best.restore()
                return history
            losses.append(loop.step(batch, epoch))
        if not math.isfinite(losses[-1]):
            return _restore_after_divergence(best, history, warm_start=warm_start)
        loss, score = learner.evaluate()
        is_best = best.update(score, loss, improve_on_loss=config.improve_on_loss)
        seconds = time.perf_counter() - started_at
        mean_loss = float(np.mean(losses))
        history.append(
            EpochStats(epoch, config.epochs, mean_loss, loss, score, is_best, seconds, config.stage, learner.measure)
        )
        if progress:
            epochs = [asdict(stats) for stats in history]
            progress.save({"history": epochs, "best": best.state_dict(), **loop.state_dict(rng)})
        on_epoch(history[-1])
    best.restore()
    return history


def _restore_after_divergence(best: BestState, history: list[EpochStats], *, warm_start: bool) -> list[EpochStats]:
    """Restore the best state; raise ``ModelError`` if there is none."""
    if not history or not (warm_start or any(epoch.best for epoch in history)):
        raise ModelError("the loss is not finite in the first epoch; choose a lower --learning-rate")
    log.warning("the loss is not finite in epoch %d: the best earlier state is kept", len(history) + 1)
    best.restore()
    return history


class _Classification:
    """Trains a ``Trainable`` as a classifier, by cross-entropy."""

    measure = "mean recall"

    def __init__(
        self, trainable: Trainable, classes: Indices, config: TrainingConfig, train_indices: Indices,
        validation_indices: Indices,
    ) -> None:  # fmt: skip
        self._trainable, self._classes, self._config = trainable, classes, config
        self._train_indices, self._validation_indices = train_indices, validation_indices
        self._weights = class_weights(classes[train_indices], config.balance)
        self.train_count = len(train_indices)
        self.param_groups, self.rng = trainable.param_groups, trainable.rng
        self.state_dict, self.load_state_dict = trainable.state_dict, trainable.load_state_dict

    def epoch_order(self, rng: np.random.Generator) -> Indices:
        train_indices = self._train_indices
        return _epoch_order(self._classes[train_indices], train_indices, self._config.balance, rng)

    def loss(self, indices: Indices, epoch: int) -> Tensor:  # noqa: ARG002
        logits = self._trainable.logits(indices, augment=True)
        targets = torch.from_numpy(self._classes[indices]).to(logits.device)
        smoothing = self._config.label_smoothing
        return F.cross_entropy(logits, targets, weight=self._weights, label_smoothing=smoothing)

    def evaluate(self) -> tuple[float, float]:
        return evaluate(self._trainable, self._classes, self._validation_indices)


class _Loop:
    """Optimiser and schedule of a stage."""

    def __init__(self, learner: Learner, config: TrainingConfig) -> None:
        self._learner, self._config = learner, config
        self._batch_count = max(1, math.ceil(learner.train_count / config.batch_size))
        groups = learner.param_groups(config.learning_rate)
        self._optimiser = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimiser,
            max_lr=[float(group["lr"]) for group in self._optimiser.param_groups],
            total_steps=max(2, config.epochs * self._batch_count),
            pct_start=WARM_UP_FRACTION,
        )

    def batches(self, rng: np.random.Generator) -> list[Indices]:
        """Return the batches of one epoch."""
        return np.array_split(self._learner.epoch_order(rng), self._batch_count)

    def step(self, indices: Indices, epoch: int) -> float:
        """Train on one batch; return its loss."""
        config = self._config
        loss = self._learner.loss(indices, epoch)
        self._optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        if config.max_gradient_norm is not None:
            parameters = [parameter for group in self._optimiser.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(parameters, config.max_gradient_norm)
        self._optimiser.step()
        self._schedule.step()
        return float(loss.detach())

    def state_dict(self, rng: np.random.Generator) -> dict[str, Any]:
        """Return the state on which the next epoch depends, including random states."""
        return {
            "weights": self._learner.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "schedule": self._schedule.state_dict(),
            "generators": [source.bit_generator.state for source in self._generators(rng)],
            "random": torch.get_rng_state(),
        }

    def restore(self, state: Mapping[str, Any], rng: np.random.Generator) -> None:
        """Restore a ``state_dict``."""
        self._learner.load_state_dict(state["weights"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._schedule.load_state_dict(state["schedule"])
        for source, saved in zip(self._generators(rng), state["generators"], strict=True):
            source.bit_generator.state = saved
        torch.set_rng_state(state["random"])

    def _generators(self, rng: np.random.Generator) -> list[np.random.Generator]:
        return [source for source in (rng, self._learner.rng) if source is not None]


def class_weights(classes: Indices, balance: Balance) -> Tensor | None:
    """Return the weight of each class in the loss, with mean 1 over the images; None for equal weights."""
    if balance != "weights":
        return None
    counts = np.bincount(classes)
    return torch.from_numpy(len(classes) / (len(counts) * counts)).float()


def _epoch_order(classes: Indices, indices: Indices, balance: Balance, rng: np.random.Generator) -> Indices:
    """Return the images of an epoch: each once, or drawn so that classes are equally frequent.

    All images of a class are drawn before one of them is drawn again.
    """
    if balance != "sampler":
        return rng.permutation(indices)
    present = np.unique(classes)
    per_class = math.ceil(len(indices) / len(present))
    drawn = [_repeated_permutations(indices[classes == number], per_class, rng) for number in present]
    return rng.permutation(np.concatenate(drawn))[: len(indices)]


def _repeated_permutations(indices: Indices, count: int, rng: np.random.Generator) -> Indices:
    rounds = [rng.permutation(indices) for _ in range(math.ceil(count / len(indices)))]
    return np.concatenate(rounds)[:count]


def predict_logits(trainable: Trainable, indices: Indices, batch_size: int = 32) -> Tensor:
    """Return the class logits (N, K) for images without augmentation, float32 on the CPU."""
    batches = [indices[first : first + batch_size] for first in range(0, len(indices), batch_size)]
    with torch.inference_mode():
        return torch.cat([trainable.logits(batch, augment=False).float().cpu() for batch in batches])


def evaluate(trainable: Trainable, classes: Indices, indices: Indices) -> tuple[float, float]:
    """Return the cross-entropy and the mean recall over the classes."""
    logits = predict_logits(trainable, indices)
    targets = classes[indices]
    correct = logits.argmax(1).numpy() == targets
    recall = float(np.mean([correct[targets == number].mean() for number in np.unique(targets)]))
    return float(F.cross_entropy(logits, torch.from_numpy(targets))), recall
