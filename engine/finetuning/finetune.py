"""From labelled pictures to a network that knows them: adapted, taught, examined, and packed as one file."""

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
"""From fewer sources nothing is said of other parts."""

MAX_SCORES = 400_000
"""How many scores a report holds at the most."""

FIRST = TrainingConfig(epochs=60, batch_size=64, learning_rate=3e-3, patience=15, stage="last layer alone")
"""Before a pretrained network is tuned its new last layer learns alone: one that begins at random would spoil what it
came with. Kumar et al., *Fine-tuning can distort pretrained features*, arXiv:2202.10054."""


@dataclass(frozen=True, slots=True)
class SplitMetrics:
    """How the network does on pictures of one part."""

    images: int
    accuracy: float
    mean_recall: float
    recalls: tuple[float, ...]
    """By class."""
    confusion: tuple[tuple[int, ...], ...]
    """Counts by true class (row) and given class (column)."""
    predictions: tuple[tuple[str, int, int, float], ...]
    """Path, true class, given class and its score, for every picture."""
    scores: tuple[tuple[float, ...], ...]
    """The scores of all classes, for every picture; empty where these would be more than 400,000 numbers."""
    interval: tuple[float, float] | None
    """Between which shares the accuracy on other parts lies, 95 times of 100; each source counts once, and pictures
    that look nearly like learned ones do not. None: which pictures show one part is not known, or there are too few."""
    counted_groups: int
    """How many sources that rests on."""


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """What came of it."""

    checkpoint: Checkpoint
    epochs: tuple[EpochStats, ...]
    training: TrainingConfig
    metrics: Mapping[str, SplitMetrics]
    """By part: stopping and held_out."""


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Who is told, and who may end it."""

    features: Callable[[int, int], None]
    """With a frozen network: pictures done, pictures in all."""
    epoch: Callable[[EpochStats], None]
    stop: Callable[[], bool]


def finetune(
    model: FinetuneModel, parts: Mapping[str, Sequence[Sample]], read: Callable[[str], Image], callbacks: Callbacks, *,
    grouped: bool = True, look_alikes: Collection[str] = (),
) -> FinetuneResult:  # fmt: skip
    """Teach a network what the pictures show.

    The same pictures, wish, thread count and machine give the same weights on a CPU.

    Args:
        model: who learns; its weights are changed.
        parts: learning, stopping and held_out, each with all of the pupil's classes.
        read: gives a picture by its path.
        callbacks: told on the way.
        grouped: whether the samples' sources say which pictures show one part; otherwise nothing is concluded for other
            parts.
        look_alikes: paths of pictures that look nearly like learned ones; nothing is concluded from them.

    Raises:
        ModelError: the loss left all bounds before anything was learned.
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
        told: list[EpochStats] = []
        if config.linear_probe or model.warm_up_head:
            trainable: LinearProbe | FullFinetuner = _last_layer(task)
            told = _studied(trainable, task, training if config.linear_probe else FIRST, able=model.warm_start)
        if not config.linear_probe:
            trainable = FullFinetuner(
                model.net, model.head_name, pictures, model.augmentation,
                device=task.device, precision=config.precision, untrained=config.weights == RANDOM,
            )  # fmt: skip
            told = _studied(trainable, task, training, able=config.weights != RANDOM) or told
    counted = [one.group if grouped and one.path not in look_alikes else None for one in samples]
    found = {part: _examined(task, trainable, samples, numbers[part], counted) for part in (VALIDATION, TEST)}
    provenance = provenance_of(model) | _provenance(training, told, parts, found)
    return FinetuneResult(_packed(model, parts, provenance), tuple(told), training, found)


def _packed(model: FinetuneModel, parts: Mapping[str, Sequence[Sample]], provenance: Mapping[str, Any]) -> Checkpoint:
    state = {key: value.detach().cpu().contiguous() for key, value in model.net.state_dict().items()}
    shown = model.preprocessing
    seen = {one.digest for part in (TRAIN, VALIDATION) for one in parts[part] if one.digest}
    return Checkpoint(
        state, model.name, model.labels, shown.input_size, shown.mean, shown.std, model.layer, provenance, shown.fit,
        model.truncate_at, model.trained_digests | seen,
    )  # fmt: skip


def _numbered(parts: Mapping[str, Sequence[Sample]]) -> dict[str, Numbers]:
    """Return the numbers of each part's pictures, all parts in a row."""
    ends = np.cumsum([len(several) for several in parts.values()])
    return {part: np.arange(end - len(parts[part]), end) for part, end in zip(parts, ends, strict=True)}


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    """What every stretch of a training shares."""

    model: FinetuneModel
    images: ImageDataset
    classes: Numbers
    numbers: Mapping[str, Numbers]
    device: torch.device
    callbacks: Callbacks


def _last_layer(task: _Task) -> LinearProbe:
    """Return the last layer alone; where no other learns after it, with features of changed views, too."""
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


def _studied(
    trainable: LinearProbe | FullFinetuner, task: _Task, training: TrainingConfig, *, able: bool = False
) -> list[EpochStats]:
    return train(
        trainable, task.classes, task.numbers[TRAIN], task.numbers[VALIDATION], training,
        seed=task.model.config.seed, on_epoch=task.callbacks.epoch, stop=task.callbacks.stop, warm_start=able,
    )  # fmt: skip


def _examined(
    task: _Task, trainable: FullFinetuner | LinearProbe, samples: Sequence[Sample], numbers: Numbers,
    counted: Sequence[str | None],
) -> SplitMetrics:  # fmt: skip
    """Return how the network does on some pictures; ``counted``: each sample's source, None to leave it out."""
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
    training: TrainingConfig, told: Sequence[EpochStats], parts: Mapping[str, Sequence[Sample]],
    found: Mapping[str, SplitMetrics],
) -> dict[str, Any]:  # fmt: skip
    best = next((epoch for epoch in reversed(told) if epoch.best), None)
    return {
        "course": asdict(training),
        "epochs": len(told),
        "best_epoch": best.epoch if best else 0,
        "images": {part: len(several) for part, several in parts.items()},
        "groups": {part: len({one.group for one in several}) for part, several in parts.items()},
        "test": {
            "accuracy": round(found[TEST].accuracy, 4), "mean_recall": round(found[TEST].mean_recall, 4)
        },
        "torch": torch.__version__,
    }  # fmt: skip
