"""A detector that ``trainer.train_learner`` trains."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from engine.detectors.detections import Detections, select
from engine.detectors.layouts import YoloxLayout
from engine.detectors.networks.yolox import Yolox
from engine.finetuning.detection.assignment import Objects
from engine.finetuning.detection.augmentation import BoxAugmentation, Labelled
from engine.finetuning.detection.dataset import BoxDataset
from engine.finetuning.detection.losses import yolox_loss
from engine.finetuning.detection.metrics import MIN_SCORE, DetectionMetrics, average_precision
from engine.finetuning.trainables import autocast
from engine.finetuning.trainer import Indices, TrainingConfig
from engine.models.weights import put_into

PLAIN_FRACTION: Final = 0.2
"""Fraction of the epochs, the last ones, without geometric augmentation and with the distance loss."""
_BATCH: Final = 16
_OVERLAP: Final = 0.65
"""Boxes of one class that overlap more than this are one object, as in YOLOX's evaluation."""
_MAX_REPEATS: Final = 4.0


class DetectionLearner:
    """A YOLOX network with its images and its losses, on the CPU."""

    measure = "mAP50:95"
    rng = None

    def __init__(
        self, net: Yolox, layout: YoloxLayout, images: BoxDataset, augmentation: BoxAugmentation,
        config: TrainingConfig, *, train_indices: Indices, validation_indices: Indices, trained_norms: Collection[str],
        labels: Sequence[str], dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        """Create the learner.

        Args:
            net: the network; its weights change.
            layout: of its maps.
            images: the data set.
            augmentation: changes training images.
            config: its ``balance``, ``head_rate`` and ``epochs`` are used here.
            train_indices: the training images.
            validation_indices: the validation images.
            trained_norms: names of the batch norms whose statistics stay as they are: a few hundred images are too few
                to estimate them.
            labels: one name per class.
            dtype: arithmetic of the network during training.
        """
        self._net = net.to(memory_format=torch.channels_last)
        self._layout, self._images, self._augmentation, self._config = layout, images, augmentation, config
        self._train_indices, self._validation_indices = train_indices, validation_indices
        self._trained_norms, self._labels, self._dtype = trained_norms, labels, dtype
        self.train_count = len(train_indices)

    def param_groups(self, learning_rate: float) -> list[dict[str, object]]:
        """Return the class layers and the other layers that are not frozen, with their learning rates."""
        last = {id(parameter) for parameter in self._net.head.cls_preds.parameters()}
        parameters = [parameter for parameter in self._net.parameters() if parameter.requires_grad]
        others = [parameter for parameter in parameters if id(parameter) not in last]
        groups: list[dict[str, object]] = [
            {"params": [p for p in parameters if id(p) in last], "lr": self._config.head_rate * learning_rate}
        ]
        return [*groups, {"params": others, "lr": learning_rate}]

    def epoch_order(self, rng: np.random.Generator) -> Indices:
        """Return the images of an epoch; with a sampler, images of rare classes come more often.

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
        """Return the loss of a batch."""
        plain = epoch > self._config.epochs - math.ceil(PLAIN_FRACTION * self._config.epochs)
        labelled = [
            self._augmentation(int(index), self._train_indices, self._load, geometric=not plain) for index in indices
        ]
        self._net.train()
        for name in self._trained_norms:
            self._net.get_submodule(name).eval()
        images = self._images.input.normalised(torch.stack([pixels for pixels, _ in labelled]))
        with autocast(torch.device("cpu"), self._dtype):
            maps = self._net(images.contiguous(memory_format=torch.channels_last))
        if not all(bool(level_map.isfinite().all()) for level_map in maps):
            return torch.full((), math.nan, requires_grad=True)
        objects = [objects for _, objects in labelled]
        return yolox_loss(self._layout, maps, objects, self._images.input.size, with_distance=plain)

    def _load(self, index: int) -> Labelled:
        return self._images.pixels(index), self._images.objects(index)

    def evaluate(self) -> tuple[float, float]:
        """Return the loss and the mAP50:95 of the validation images."""
        predictions = self.predict(self._validation_indices)
        return predictions.loss, predictions.precision(self._labels).map50_95

    def predict(self, indices: Indices) -> Predictions:
        """Return the boxes of images without augmentation; see ``predict``."""
        return predict(self._net, self._layout, self._images, indices)

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the weights."""
        return {key: value.detach().clone() for key, value in self._net.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore weights, and set the network to inference mode."""
        put_into(self._net, state)
        self._net.eval()


@dataclass(frozen=True, eq=False)
class Predictions:
    """The boxes of a network on some images, in pixels of its input."""

    loss: float
    """Mean over the images."""
    detections: list[Detections]
    """Of each image, best first, from a score of ``MIN_SCORE``."""
    objects: list[Objects]
    """The truth of each image."""

    def precision(self, labels: Sequence[str], groups: Sequence[str | None] = ()) -> DetectionMetrics:
        """Return the mean average precision; see ``average_precision``."""
        return average_precision(self.detections, self.objects, labels, groups)


def predict(net: Yolox, layout: YoloxLayout, images: BoxDataset, indices: Indices) -> Predictions:
    """Return the loss and the boxes of images.

    Args:
        net: the network, which is set to inference mode.
        layout: of its maps.
        images: the data set.
        indices: the images.
    """
    net.eval()
    losses: list[float] = []
    detections: list[Detections] = []
    truths: list[Objects] = []
    size = images.input.size
    for first in range(0, len(indices), _BATCH):
        batch = [int(index) for index in indices[first : first + _BATCH]]
        objects = [images.objects(index) for index in batch]
        pixels = torch.stack([images.pixels(index) for index in batch])
        with torch.inference_mode():
            maps = net(images.input.normalised(pixels).contiguous(memory_format=torch.channels_last))
            losses.append(float(yolox_loss(layout, maps, objects, size, with_distance=False)) * len(batch))
            candidates = layout.decode(maps, size)
        detections += [select(candidates, k, score=MIN_SCORE, iou=_OVERLAP, limit=100) for k in range(len(batch))]
        truths += objects
    return Predictions(sum(losses) / len(indices), detections, truths)
