"""Trains a detector on labelled images, evaluates it, and returns the content of its file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch

from engine.detectors.checkpoint import DetectorCheckpoint
from engine.finetuning.detection.confusion import ComparedImage, best_f1_score, compare
from engine.finetuning.detection.dataset import BoxDataset, TruthsOf
from engine.finetuning.detection.learner import DetectionLearner, Predictions
from engine.finetuning.detection.metrics import DetectionMetrics
from engine.finetuning.detection.networks import YoloxNetwork
from engine.finetuning.detection.norms import folded_norms, restore_norms
from engine.finetuning.detection.setup import DetectorModel, provenance_of
from engine.finetuning.finetune import Callbacks, describe_training
from engine.finetuning.progress import TrainingProgress
from engine.finetuning.splits import TEST, TRAIN, VALIDATION, Sample
from engine.finetuning.trainer import EpochStats, TrainingConfig, train_learner
from engine.runtime.devices import DTYPES
from pipeline.errors import ConfigError
from pipeline.frames import Image

_NORM_IMAGES: Final = 128
"""Number of training images from which the statistics of restored batch norms are measured."""
_BATCH: Final = 16


@dataclass(frozen=True, slots=True)
class DetectorResult:
    """Content of the file and results of a training."""

    checkpoint: DetectorCheckpoint
    epochs: tuple[EpochStats, ...]
    metrics: Mapping[str, DetectionMetrics]
    """By split: validation and, if there is one, test."""
    score: float
    """Minimum score of a box, with the best F1 on the validation images."""
    compared: Mapping[str, ComparedImage]
    """Boxes above ``score`` and objects by the path of a test image; empty without a test split."""


def finetune_detector(
    model: DetectorModel, parts: Mapping[str, Sequence[Sample]], read: Callable[[str], Image], truths_of: TruthsOf,
    callbacks: Callbacks, *, grouped: bool = True, look_alikes: Collection[str] = (),
    progress: TrainingProgress | None = None,
) -> DetectorResult:  # fmt: skip
    """Train a detector and evaluate it.

    The same images, configuration, thread count and machine give the same weights.

    Args:
        model: the detector; its weights change.
        parts: the train and validation splits and, if there is one, the test split.
        read: reads an image by its path.
        truths_of: returns the objects of an image by its path and (height, width).
        callbacks: functions that report progress and can stop the training.
        grouped: True: the groups of the samples are known; False: no confidence interval is computed.
        look_alikes: paths of near duplicates of training images; the interval excludes them.
        progress: stores the state after each epoch.

    Raises:
        ModelError: the loss diverged before the first improvement.
        ConfigError: a box is outside its image.
    """
    paths = [sample.path for split in parts.values() for sample in split]
    ends = np.cumsum([len(split) for split in parts.values()])
    indices = {part: np.arange(end - len(parts[part]), end) for part, end in zip(parts, ends, strict=True)}
    images = BoxDataset(paths, read, truths_of, model.labels, model.input)
    images.preload(callbacks.stop)
    _check_objects(model, images, paths)
    model = _with_restored_norms(model, images, indices[TRAIN])
    epochs: list[EpochStats] = []
    warm_start = model.warm_start
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(model.config.seed)
        for stage in model.stages():
            learner = _learner(model, images, stage, indices)
            epochs += train_learner(
                learner, stage, seed=model.config.seed, on_epoch=callbacks.epoch, stop=callbacks.stop,
                warm_start=warm_start, progress=progress,
            )  # fmt: skip
            warm_start = True
    groups = {
        part: [sample.group if grouped and sample.path not in look_alikes else None for sample in samples]
        for part, samples in parts.items()
    }
    predictions = {part: learner.predict(indices[part]) for part in parts if part != TRAIN}
    metrics = {part: found.precision(model.labels, groups[part]) for part, found in predictions.items()}
    validation = predictions[VALIDATION]
    score = best_f1_score(validation.detections, validation.objects)
    compared = _compared(predictions[TEST], score, parts[TEST]) if TEST in parts else {}
    provenance = provenance_of(model) | _provenance(model.stages(), epochs, parts, metrics)
    return DetectorResult(_checkpoint(model, parts, provenance), tuple(epochs), metrics, score, compared)


def _check_objects(model: DetectorModel, images: BoxDataset, paths: Sequence[str]) -> None:
    """Raise ConfigError for an image with too many objects for the memory of the losses."""
    limit = model.network.max_objects
    if limit is None:
        return
    for index, path in enumerate(paths):
        count = len(images.objects(index).classes)
        if count > limit:
            raise ConfigError(
                f"{path}: has {count} boxes; {model.name} compares each with every anchor, and supports at most "
                f"{limit}; cut the image into tiles, or train a YOLOX"
            )


def _compared(predictions: Predictions, score: float, samples: Sequence[Sample]) -> dict[str, ComparedImage]:
    return {
        sample.path: compare(detections, objects, score)
        for sample, detections, objects in zip(samples, predictions.detections, predictions.objects, strict=True)
    }


def _with_restored_norms(model: DetectorModel, images: BoxDataset, indices: np.ndarray[Any, Any]) -> DetectorModel:
    """Restore the model's folded batch norms, except frozen ones, with measured statistics."""
    # Only YOLOX weights can come from ONNX files, whose batch norms are folded
    if not isinstance(model.network, YoloxNetwork):
        return model
    folded = folded_norms(model.net, model.trained_norms)
    learned = [name for name in folded if model.net.get_submodule(name).get_parameter("weight").requires_grad]
    if not learned:
        return model
    model.net.eval()
    chosen = indices[:: max(1, len(indices) // _NORM_IMAGES)][:_NORM_IMAGES]
    pixels = (
        torch.stack([images.pixels(int(k)) for k in chosen[i : i + _BATCH]]) for i in range(0, len(chosen), _BATCH)
    )
    restore_norms(model.net, learned, (images.input.normalised(batch) for batch in pixels))
    return replace(model, trained_norms=model.trained_norms - set(learned))


def _learner(
    model: DetectorModel, images: BoxDataset, stage: TrainingConfig, indices: Mapping[str, np.ndarray[Any, Any]]
) -> DetectionLearner:
    return DetectionLearner(
        model.network,
        images,
        model.augmentation,
        stage,
        train_indices=indices[TRAIN],
        validation_indices=indices[VALIDATION],
        trained_norms=model.trained_norms,
        labels=model.labels,
        dtype=DTYPES[model.config.precision],
    )


def _checkpoint(
    model: DetectorModel, parts: Mapping[str, Sequence[Sample]], provenance: Mapping[str, Any]
) -> DetectorCheckpoint:
    state = {key: value.detach().cpu().contiguous() for key, value in model.net.state_dict().items()}
    digests = {sample.digest for part in (TRAIN, VALIDATION) for sample in parts[part] if sample.digest}
    return DetectorCheckpoint(state, model.name, model.labels, model.input, provenance, model.trained_digests | digests)


def _provenance(
    stages: Sequence[TrainingConfig], epochs: Sequence[EpochStats], parts: Mapping[str, Sequence[Sample]],
    metrics: Mapping[str, DetectionMetrics],
) -> dict[str, Any]:  # fmt: skip
    test = metrics.get(TEST)
    precision = {} if test is None else {
        "test": {"map50": round(test.map50, 4), "map50_95": round(test.map50_95, 4), "images": test.images}
    }  # fmt: skip
    return {
        **describe_training(stages, epochs, parts),
        **precision,
        "torch": torch.__version__,
    }
