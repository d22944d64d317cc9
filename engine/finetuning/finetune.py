"""Trains a network on labelled images (fine-tuning), evaluates it, and returns the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from engine.finetuning.dataset import ImageDataset
from engine.finetuning.metrics import confusion, wilson_interval
from engine.finetuning.progress import TrainingProgress
from engine.finetuning.setup import FinetuneModel, provenance_of
from engine.finetuning.splits import TEST, TRAIN, VALIDATION, Sample
from engine.finetuning.trainables import FullFinetuner, LinearProbe, scaled_features
from engine.finetuning.trainer import (
    EpochStats,
    Indices,
    TrainingConfig,
    predict_logits,
    train,
)
from engine.models.checkpoint import Checkpoint
from engine.models.loader import RANDOM
from engine.runtime.devices import choose_device
from pipeline.frames import Box, Image

MIN_GROUPS_FOR_INTERVAL = 5
"""Minimum number of groups for a confidence interval."""

MAX_SCORES = 400_000
"""Maximum number of scores in a report."""

HEAD_WARM_UP = TrainingConfig(epochs=60, batch_size=64, learning_rate=3e-3, patience=15, stage="last layer alone")
"""Trains only the new last layer before the whole network, because a random layer would distort pretrained features.
Kumar et al., *Fine-tuning can distort pretrained features*, arXiv:2202.10054."""


@dataclass(frozen=True, slots=True)
class SplitMetrics:
    """Metrics of the network on one split."""

    images: int
    accuracy: float
    mean_recall: float
    recalls: tuple[float, ...]
    """Recall by class."""
    confusion: tuple[tuple[int, ...], ...]
    """Counts by true class (row) and predicted class (column)."""
    predictions: tuple[tuple[str, int, int, float], ...]
    """Path, true class, predicted class and its score, for each image."""
    scores: tuple[tuple[float, ...], ...]
    """The scores of all classes for each image; empty if there are more than ``MAX_SCORES``."""
    interval: tuple[float, float] | None
    """95 % Wilson interval of the accuracy for new parts. Each group counts once; near duplicates of training images
    are excluded. None: the groups are unknown, or fewer than ``MIN_GROUPS_FOR_INTERVAL``."""
    counted_groups: int
    """Number of groups from which the interval is computed."""


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """Checkpoint and results of a training."""

    checkpoint: Checkpoint
    epochs: tuple[EpochStats, ...]
    """Epochs of the stages that train the whole network, or of the linear probe."""
    metrics: Mapping[str, SplitMetrics]
    """By split: validation and, if there is one, test."""


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Functions that report progress and can stop the training."""

    features: Callable[[int, int], None]
    """Called during the computation of features, with the numbers of finished and of all images."""
    epoch: Callable[[EpochStats], None]
    """Called after each epoch."""
    stop: Callable[[], bool]
    """Called before each batch; training ends if it returns True."""


def finetune(
    model: FinetuneModel, parts: Mapping[str, Sequence[Sample]], read: Callable[[str], Image], callbacks: Callbacks, *,
    boxes: Mapping[str, Box] | None = None, grouped: bool = True, look_alikes: Collection[str] = (),
    progress: TrainingProgress | None = None,
) -> FinetuneResult:  # fmt: skip
    """Train a network on labelled images and evaluate it.

    On a CPU, equal images, configuration, thread count and machine produce equal weights.

    Args:
        model: the network; its weights change.
        parts: the train and validation splits, and optionally the test split, each with all classes of the model.
        read: reads an image by its path.
        callbacks: functions that report progress and can stop the training.
        boxes: the object's box in image pixels, by path; used by stages on crops.
        grouped: True: the groups of the samples are known; False: no confidence interval is computed.
        look_alikes: paths of near duplicates of training images; the interval excludes them.
        progress: stores the state after each epoch.

    Raises:
        ModelError: the loss diverged before the first improvement, or the network cannot be trained on crops.
    """
    config = model.config
    samples = [sample for split in parts.values() for sample in split]
    classes = np.array([model.labels.index(sample.label) for sample in samples])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        images = ImageDataset([sample.path for sample in samples], read, model.preprocessing, boxes=boxes)
        images.preload(callbacks.stop)
        task = _Task(model, images, classes, _indices_of(parts), choose_device(config.device), callbacks, progress)
        trainable, epochs = _train_stages(task)
    groups = [sample.group if grouped and sample.path not in look_alikes else None for sample in samples]
    metrics = {
        part: _evaluate(task, trainable, samples, indices, groups)
        for part, indices in task.indices.items()
        if part != TRAIN
    }
    provenance = provenance_of(model) | _provenance(config.stages(), epochs, parts, metrics)
    return FinetuneResult(_checkpoint(model, parts, provenance), tuple(epochs), metrics)


def _train_stages(task: _Task) -> tuple[LinearProbe | FullFinetuner, list[EpochStats]]:
    """Run all stages; return the trained network and the epochs to report."""
    model, config = task.model, task.model.config
    epochs: list[EpochStats] = []
    if config.linear_probe or model.warm_up_head:
        probe = _linear_probe(task)
        stage = config.stages()[0] if config.linear_probe else HEAD_WARM_UP
        epochs = _train_stage(probe, task, stage, warm_start=model.warm_start)
        if config.linear_probe:
            return probe, epochs
    full_epochs: list[EpochStats] = []
    warm_start = config.weights != RANDOM
    for stage in config.stages():
        with scaled_features(model.net, model.head_name, stage, task.images.size):
            trainable = _full_finetuner(task, stage)
            full_epochs += _train_stage(trainable, task, stage, warm_start=warm_start)
        warm_start = True
    return _full_finetuner(task, replace(stage, crop=None)), full_epochs or epochs


def _checkpoint(
    model: FinetuneModel, parts: Mapping[str, Sequence[Sample]], provenance: Mapping[str, Any]
) -> Checkpoint:
    state = {key: value.detach().cpu().contiguous() for key, value in model.net.state_dict().items()}
    digests = {sample.digest for part in (TRAIN, VALIDATION) for sample in parts[part] if sample.digest}
    preprocessing = model.preprocessing
    return Checkpoint(
        state,
        model.name,
        model.labels,
        preprocessing.input_size,
        preprocessing.mean,
        preprocessing.std,
        model.layer,
        provenance,
        preprocessing.fit,
        model.truncate_at,
        model.trained_digests | digests,
    )


def _indices_of(parts: Mapping[str, Sequence[Sample]]) -> dict[str, Indices]:
    """Return the indices of each split's images in the concatenation of all splits."""
    ends = np.cumsum([len(split) for split in parts.values()])
    return {part: np.arange(end - len(parts[part]), end) for part, end in zip(parts, ends, strict=True)}


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    """Data that the stages of a training share."""

    model: FinetuneModel
    images: ImageDataset
    classes: Indices
    indices: Mapping[str, Indices]
    """Indices of the images of each split."""
    device: torch.device
    callbacks: Callbacks
    progress: TrainingProgress | None


def _linear_probe(task: _Task) -> LinearProbe:
    """Create a linear probe, with augmented views if no other stage follows."""
    model, config = task.model, task.model.config
    return LinearProbe(
        model.net,
        model.head_name,
        task.images,
        model.augmentation,
        device=task.device,
        views=config.views if config.linear_probe and config.augment else 1,
        seed=config.seed,
        train_indices=task.indices[TRAIN],
        on_progress=task.callbacks.features,
        precision=config.precision,
    )


def _full_finetuner(task: _Task, stage: TrainingConfig) -> FullFinetuner:
    model, config = task.model, task.model.config
    return FullFinetuner(
        model.net,
        model.head_name,
        task.images,
        model.augmentation,
        stage,
        device=task.device,
        precision=config.precision,
        untrained=config.weights == RANDOM,
        seed=config.seed,
    )


def _train_stage(
    trainable: LinearProbe | FullFinetuner, task: _Task, stage: TrainingConfig, *, warm_start: bool
) -> list[EpochStats]:
    return train(
        trainable,
        task.classes,
        task.indices[TRAIN],
        task.indices[VALIDATION],
        stage,
        seed=task.model.config.seed,
        on_epoch=task.callbacks.epoch,
        stop=task.callbacks.stop,
        warm_start=warm_start,
        progress=task.progress,
    )


def _evaluate(
    task: _Task, trainable: FullFinetuner | LinearProbe, samples: Sequence[Sample], indices: Indices,
    groups: Sequence[str | None],
) -> SplitMetrics:  # fmt: skip
    """Evaluate some images; samples whose group is None are excluded from the interval."""
    labels = task.model.labels
    scores = torch.softmax(predict_logits(trainable, indices), 1)
    predictions = scores.argmax(1).tolist()
    targets = task.classes[indices].tolist()
    table = confusion(targets, predictions, len(labels))
    recalls = tuple(row[k] / max(1, sum(row)) for k, row in enumerate(table))
    results = list(zip(indices.tolist(), targets, predictions, scores, strict=True))
    counted = [
        (groups[index], target == prediction) for index, target, prediction, _ in results if groups[index] is not None
    ]
    group_count = len({group for group, _ in counted})
    interval = None
    if group_count >= MIN_GROUPS_FOR_INTERVAL:
        interval = wilson_interval(float(np.mean([correct for _, correct in counted])), group_count)
    return SplitMetrics(
        images=len(indices),
        accuracy=sum(row[k] for k, row in enumerate(table)) / len(indices),
        mean_recall=float(np.mean(recalls)),
        recalls=recalls,
        confusion=tuple(map(tuple, table)),
        predictions=tuple(
            (samples[index].path, target, prediction, round(float(row[prediction]), 4))
            for index, target, prediction, row in results
        ),
        scores=_rounded(scores) if scores.numel() <= MAX_SCORES else (),
        interval=interval,
        counted_groups=group_count,
    )


def _rounded(scores: torch.Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(float(score), 4) for score in row) for row in scores)


def _provenance(
    stages: Sequence[TrainingConfig], epochs: Sequence[EpochStats], parts: Mapping[str, Sequence[Sample]],
    metrics: Mapping[str, SplitMetrics],
) -> dict[str, Any]:  # fmt: skip
    test = metrics.get(TEST)
    return {
        **describe_training(stages, epochs, parts),
        **({"test": {"accuracy": round(test.accuracy, 4), "mean_recall": round(test.mean_recall, 4)}} if test else {}),
        "torch": torch.__version__,
    }


def describe_training(
    stages: Sequence[TrainingConfig], epochs: Sequence[EpochStats], parts: Mapping[str, Sequence[Sample]]
) -> dict[str, Any]:
    """Return the schedule, the epochs and the split sizes of a training as JSON values."""
    best = next((epoch for epoch in reversed(epochs) if epoch.best), None)
    return {
        "course": asdict(stages[0]) if len(stages) == 1 else {"stages": [asdict(stage) for stage in stages]},
        "epochs": len(epochs),
        "best_epoch": best.epoch if best else 0,
        "images": {part: len(split) for part, split in parts.items()},
        "groups": {part: len({sample.group for sample in split}) for part, split in parts.items()},
    }
