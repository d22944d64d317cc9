"""Adapts a detector to ``trainer.train_learner``."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from engine.detectors.detections import Detections
from engine.finetuning.detection.assignment import Objects
from engine.finetuning.detection.augmentation import BoxAugmentation, Labelled
from engine.finetuning.detection.dataset import BoxDataset
from engine.finetuning.detection.metrics import DetectionMetrics, average_precision
from engine.finetuning.detection.networks import DetectionNetwork
from engine.finetuning.trainer import Indices, TrainingConfig
from engine.models.weights import put_into

PLAIN_FRACTION: Final = 0.2
"""Fraction of epochs, at the end, without geometric augmentation and with the distance loss."""
_BATCH: Final = 16
_MAX_REPEATS: Final = 4.0


class DetectionLearner:
    """A detector with its images and its losses, on the CPU."""

    measure = "mAP50:95"
    rng = None

    def __init__(
        self, network: DetectionNetwork, images: BoxDataset, augmentation: BoxAugmentation, config: TrainingConfig, *,
        train_indices: Indices, validation_indices: Indices, trained_norms: Collection[str], labels: Sequence[str],
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        """Create the learner.

        Args:
            network: the network; its weights change.
            images: the data set.
            augmentation: changes training images.
            config: the configuration, of which ``balance``, ``head_rate`` and ``epochs`` are used.
            train_indices: the training images.
            validation_indices: the validation images.
            trained_norms: names of the batch norms whose statistics are not changed, because a few hundred images are
                too few to estimate them.
            labels: one name per class.
            dtype: dtype in which the network is computed during training.
        """
        self._network, self._net = network, network.module.to(memory_format=torch.channels_last)
        self._images, self._augmentation, self._config = images, augmentation, config
        self._train_indices, self._validation_indices = train_indices, validation_indices
        self._trained_norms, self._labels, self._dtype = trained_norms, labels, dtype
        self.train_count = len(train_indices)

    def param_groups(self, learning_rate: float) -> list[dict[str, object]]:
        """Return the class layers and the other layers that are not frozen, with their learning rates."""
        matches = self._network.class_rows.matches
        named = [(name, parameter) for name, parameter in self._net.named_parameters() if parameter.requires_grad]
        last, others = ([p for name, p in named if matches(name) == wanted] for wanted in (True, False))
        return [
            {"params": last, "lr": self._config.head_rate * learning_rate},
            {"params": others, "lr": learning_rate},
        ]

    def epoch_order(self, rng: np.random.Generator) -> Indices:
        """Return the images of an epoch; with ``sampler``, images of rare classes are repeated.

        Repeat factors as in Gupta et al., *LVIS*, arXiv:1908.03195, with the mean frequency as the threshold.
        """
        indices = self._train_indices
        if self._config.balance != "sampler":
            return rng.permutation(indices)
        factors = self._repeat_factors()
        repeats = np.floor(factors + rng.random(len(factors))).astype(int)
        drawn = rng.permutation(np.repeat(indices, repeats))
        return drawn[: len(indices)] if len(drawn) >= len(indices) else np.resize(drawn, len(indices))

    def _repeat_factors(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        present = [set(self._images.objects(int(index)).classes.tolist()) for index in self._train_indices]
        counts = np.array([sum(k in classes for classes in present) for k in range(len(self._labels))], float)
        mean = counts[counts > 0].mean() if counts.any() else 1.0
        factors = np.sqrt(mean / np.maximum(counts, 1.0)).clip(1.0, _MAX_REPEATS)
        return np.array([max((factors[k] for k in classes), default=1.0) for classes in present])

    def loss(self, indices: Indices, epoch: int) -> Tensor:
        """Return the loss of a batch of augmented images."""
        plain = epoch > self._config.epochs - math.ceil(PLAIN_FRACTION * self._config.epochs)
        labelled = [
            self._augmentation(int(index), self._train_indices, self._load, geometric=not plain) for index in indices
        ]
        self._net.train()
        for name in self._trained_norms:
            self._net.get_submodule(name).eval()
        images = self._images.input.normalised(torch.stack([pixels for pixels, _ in labelled]))
        objects = [objects for _, objects in labelled]
        return self._network.loss(images, objects, plain=plain, dtype=self._dtype)

    def _load(self, index: int) -> Labelled:
        return self._images.pixels(index), self._images.objects(index)

    def evaluate(self) -> tuple[float, float]:
        """Return the loss and the mAP50:95 of the validation images."""
        predictions = self.predict(self._validation_indices)
        return predictions.loss, predictions.precision(self._labels).map50_95

    def predict(self, indices: Indices) -> Predictions:
        """Return the boxes for images without augmentation; see the function ``predict``."""
        return predict(self._network, self._images, indices)

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the weights."""
        return {key: value.detach().clone() for key, value in self._net.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore weights, and set the network to inference mode."""
        put_into(self._net, state)
        self._net.eval()


@dataclass(frozen=True, eq=False)
class Predictions:
    """The boxes of a network for some images, in pixels of its input."""

    loss: float
    """Mean loss over the images."""
    detections: list[Detections]
    """Detections of each image, best first, with a score of at least ``MIN_SCORE``."""
    objects: list[Objects]
    """Ground truth of each image."""

    def precision(self, labels: Sequence[str], groups: Sequence[str | None] = ()) -> DetectionMetrics:
        """Return the mean average precision; see ``average_precision``."""
        return average_precision(self.detections, self.objects, labels, groups)


def predict(network: DetectionNetwork, images: BoxDataset, indices: Indices) -> Predictions:
    """Return the loss and the boxes for images.

    Args:
        network: the network; it is set to inference mode.
        images: the data set.
        indices: the images.
    """
    losses: list[float] = []
    detections: list[Detections] = []
    truths: list[Objects] = []
    for first in range(0, len(indices), _BATCH):
        batch = [int(index) for index in indices[first : first + _BATCH]]
        objects = [images.objects(index) for index in batch]
        pixels = torch.stack([images.pixels(index) for index in batch])
        loss, found = network.predict(images.input.normalised(pixels), objects)
        losses.append(loss * len(batch))
        detections += found
        truths += objects
    return Predictions(sum(losses) / len(indices), detections, truths)
