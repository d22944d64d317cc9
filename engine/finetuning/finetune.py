"""Fine-tuning: trains a network on labelled images, evaluates it, and returns the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from engine.finetuning.dataset import ImageDataset
from engine.finetuning.setup import FinetuneModel, provenance_of
from engine.finetuning.splits import TEST, TRAIN, VALIDATION, Sample
from engine.finetuning.trainables import FullFinetuner, LinearProbe
from engine.finetuning.trainer import (
    EpochStats,
    Numbers,
    TrainingConfig,
    confusion,
    predict_logits,
    train,
    wilson_interval,
)
from engine.models.checkpoint import Checkpoint
from engine.models.loader import RANDOM
from engine.runtime.devices import choose_device
from pipeline.frames import Image

MIN_GROUPS_FOR_INTERVAL = 5
"""With fewer groups no confidence interval is given."""

MAX_SCORES = 400_000
"""Maximum number of scores in a report."""

HEAD_WARM_UP = TrainingConfig(epochs=60, batch_size=64, learning_rate=3e-3, patience=15, stage="last layer alone")
"""Trains the new last layer alone before the whole network: a random one would distort the pretrained features.
Kumar et al., *Fine-tuning can distort pretrained features*, arXiv:2202.10054."""


@dataclass(frozen=True, slots=True)
class SplitMetrics:
    """Results of the network on one split."""

    images: int
    accuracy: float
    mean_recall: float
    recalls: tuple[float, ...]
    """By class."""
    confusion: tuple[tuple[int, ...], ...]
    """Counts by true class (row) and predicted class (column)."""
    predictions: tuple[tuple[str, int, int, float], ...]
    """Path, true class, predicted class and its score, for every image."""
    scores: tuple[tuple[float, ...], ...]
    """The scores of all classes, for every image; empty above ``MAX_SCORES`` numbers."""
    interval: tuple[float, float] | None
    """95 % Wilson interval of the accuracy on new parts; each group counts once, near duplicates of training images do
    not count. None: the groups are not known, or there are fewer than ``MIN_GROUPS_FOR_INTERVAL``."""
    counted_groups: int
    """Number of groups behind the interval."""


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """Checkpoint and results of a training."""

    checkpoint: Checkpoint
    epochs: tuple[EpochStats, ...]
    training: TrainingConfig
    metrics: Mapping[str, SplitMetrics]
    """By split: validation and test."""


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Functions that report progress and may stop the training."""

    features: Callable[[int, int], None]
    """Of a linear probe: number of images done, number of images."""
    epoch: Callable[[EpochStats], None]
    stop: Callable[[], bool]


def finetune(
    model: FinetuneModel, parts: Mapping[str, Sequence[Sample]], read: Callable[[str], Image], callbacks: Callbacks, *,
    grouped: bool = True, look_alikes: Collection[str] = (),
) -> FinetuneResult:  # fmt: skip
    """Train a network on labelled images and evaluate it.

    The same images, configuration, thread count and machine give the same weights on a CPU.

    Args:
        model: the network; its weights change.
        parts: the train, validation and test splits, each with all classes of the model.
        read: reads an image by its path.
        callbacks: report progress and stop the training.
        grouped: whether the samples' groups are known; otherwise there is no confidence interval.
        look_alikes: paths of near duplicates of training images; the interval leaves them out.

    Raises:
        ModelError: the loss diverged before the first improvement.
    """
    config = model.config
    samples = [one for several in parts.values() for one in several]
    classes = np.array([model.labels.index(one.label) for one in samples])
    numbers = _numbered(parts)
    training = config.training()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        pictures = ImageDataset([one.path for one in samples], read, model.preprocessing)
        task = _Task(model, pictures, classes, numbers, choose_device(config.device), callbacks)
        epochs: list[EpochStats] = []
        if config.linear_probe or model.warm_up_head:
            trainable: LinearProbe | FullFinetuner = _linear_probe(task)
            epochs = _train_stage(
                trainable, task, training if config.linear_probe else HEAD_WARM_UP, warm_start=model.warm_start
            )
        if not config.linear_probe:
            trainable = FullFinetuner(
                model.net, model.head_name, pictures, model.augmentation,
                device=task.device, precision=config.precision, untrained=config.weights == RANDOM,
            )  # fmt: skip
            epochs = _train_stage(trainable, task, training, warm_start=config.weights != RANDOM) or epochs
    counted = [one.group if grouped and one.path not in look_alikes else None for one in samples]
    metrics = {part: _evaluate(task, trainable, samples, numbers[part], counted) for part in (VALIDATION, TEST)}
    provenance = provenance_of(model) | _provenance(training, epochs, parts, metrics)
    return FinetuneResult(_packed(model, parts, provenance), tuple(epochs), training, metrics)


def _packed(model: FinetuneModel, parts: Mapping[str, Sequence[Sample]], provenance: Mapping[str, Any]) -> Checkpoint:
    state = {key: value.detach().cpu().contiguous() for key, value in model.net.state_dict().items()}
    shown = model.preprocessing
    seen = {one.digest for part in (TRAIN, VALIDATION) for one in parts[part] if one.digest}
    return Checkpoint(
        state, model.name, model.labels, shown.input_size, shown.mean, shown.std, model.layer, provenance, shown.fit,
        model.truncate_at, model.trained_digests | seen,
    )  # fmt: skip


def _numbered(parts: Mapping[str, Sequence[Sample]]) -> dict[str, Numbers]:
    """Return the indices of each split's images in the concatenation of all splits."""
    ends = np.cumsum([len(several) for several in parts.values()])
    return {part: np.arange(end - len(parts[part]), end) for part, end in zip(parts, ends, strict=True)}


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    """Data that the stages of a training share."""

    model: FinetuneModel
    images: ImageDataset
    classes: Numbers
    numbers: Mapping[str, Numbers]
    device: torch.device
    callbacks: Callbacks


def _linear_probe(task: _Task) -> LinearProbe:
    """Return a linear probe; with augmented views where no other stage follows it."""
    model, config = task.model, task.model.config
    return LinearProbe(
        model.net,
        model.head_name,
        task.images,
        model.augmentation,
        device=task.device,
        views=config.views if config.linear_probe and config.augment else 1,
        seed=config.seed,
        train_indices=task.numbers[TRAIN],
        on_progress=task.callbacks.features,
        precision=config.precision,
    )


def _train_stage(
    trainable: LinearProbe | FullFinetuner, task: _Task, training: TrainingConfig, *, warm_start: bool = False
) -> list[EpochStats]:
    return train(
        trainable, task.classes, task.numbers[TRAIN], task.numbers[VALIDATION], training,
        seed=task.model.config.seed, on_epoch=task.callbacks.epoch, stop=task.callbacks.stop, warm_start=warm_start,
    )  # fmt: skip


def _evaluate(
    task: _Task, trainable: FullFinetuner | LinearProbe, samples: Sequence[Sample], numbers: Numbers,
    counted: Sequence[str | None],
) -> SplitMetrics:  # fmt: skip
    """Return the results on some images; ``counted`` has each sample's group, None leaves it out of the interval."""
    labels = task.model.labels
    scores = torch.softmax(predict_logits(trainable, numbers), 1)
    given = scores.argmax(1).tolist()
    truth = task.classes[numbers].tolist()
    table = confusion(truth, given, len(labels))
    recalls = tuple(row[k] / max(1, sum(row)) for k, row in enumerate(table))
    answers = tuple(
        (samples[number].path, true, guess, round(float(row[guess]), 4))
        for number, true, guess, row in zip(numbers.tolist(), truth, given, scores, strict=True)
    )
    fraction = sum(row[k] for k, row in enumerate(table)) / len(numbers)
    apart = [
        (counted[number], true == guess) for number, true, guess in zip(numbers.tolist(), truth, given, strict=True)
        if counted[number] is not None
    ]  # fmt: skip
    sources = len({source for source, _ in apart})
    return SplitMetrics(
        len(numbers),
        fraction,
        float(np.mean(recalls)),
        recalls,
        tuple(map(tuple, table)),
        answers,
        tuple(tuple(round(float(one), 4) for one in row) for row in scores) if scores.numel() <= MAX_SCORES else (),
        wilson_interval(float(np.mean([right for _, right in apart])), sources)
        if sources >= MIN_GROUPS_FOR_INTERVAL
        else None,
        sources,
    )


def _provenance(
    training: TrainingConfig, epochs: Sequence[EpochStats], parts: Mapping[str, Sequence[Sample]],
    found: Mapping[str, SplitMetrics],
) -> dict[str, Any]:  # fmt: skip
    best = next((epoch for epoch in reversed(epochs) if epoch.best), None)
    return {
        "course": asdict(training),
        "epochs": len(epochs),
        "best_epoch": best.epoch if best else 0,
        "images": {part: len(several) for part, several in parts.items()},
        "groups": {part: len({one.group for one in several}) for part, several in parts.items()},
        "test": {
            "accuracy": round(found[TEST].accuracy, 4), "mean_recall": round(found[TEST].mean_recall, 4)
        },
        "torch": torch.__version__,
    }  # fmt: skip
