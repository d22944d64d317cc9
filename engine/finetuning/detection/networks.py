"""Adapts the networks of detectors to training: their losses, boxes and class layers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from engine.detectors.detections import Detections, select
from engine.detectors.detector import Detector
from engine.detectors.layouts import YoloxLayout
from engine.detectors.networks.yolox import Yolox
from engine.detectors.torchvision_detectors import (
    as_detector,
    build_network,
    has_background,
    input_format,
    is_fixed_size,
)
from engine.finetuning.detection.assignment import Objects
from engine.finetuning.detection.losses import yolox_loss
from engine.finetuning.detection.metrics import MIN_SCORE
from engine.finetuning.trainables import autocast
from pipeline.errors import ConfigError

MAX_OBJECTS: Final = 500
"""Maximum number of objects per image for torchvision's losses, which compare each with every anchor."""
_MAX_BOXES: Final = 100
_YOLOX_OVERLAP: Final = 0.65
"""Boxes of one class with a higher IoU count as one object, as in YOLOX's evaluation."""


@dataclass(frozen=True, slots=True)
class ClassRows:
    """Describes which rows of a network's class layers belong to which class."""

    pattern: re.Pattern[str]
    """Matches the names of the weights and biases of class layers."""
    background: int = 0
    """Number of rows per anchor before the first class: 1 if the background is a class."""
    box_pattern: re.Pattern[str] | None = None
    """Matches the names of box layers with four rows per class."""

    def matches(self, name: str) -> bool:
        """Return whether a parameter belongs to a class layer."""
        return self.pattern.fullmatch(name) is not None or self._has_boxes(name)

    def _has_boxes(self, name: str) -> bool:
        return self.box_pattern is not None and self.box_pattern.fullmatch(name) is not None

    def carried(
        self, name: str, fresh: Tensor, old: Tensor, labels: Sequence[str], known: Sequence[str]
    ) -> Tensor:  # fmt: skip
        """Return ``fresh`` with the rows of known classes replaced by those in ``old``.

        Args:
            name: name of the tensor.
            fresh: the untrained tensor.
            old: the earlier tensor.
            labels: the classes of ``fresh``.
            known: the classes of ``old``.
        """
        inner = 4 if self._has_boxes(name) else 1
        columns = len(known) + self.background
        rows = fresh.clone().reshape(-1, len(labels) + self.background, inner, *fresh.shape[1:])
        if not known or len(old) % (columns * inner) or len(old) // columns != rows.shape[0] * inner:
            return fresh
        earlier = old.to(fresh.dtype).reshape(-1, columns, inner, *old.shape[1:])
        rows[:, : self.background] = earlier[:, : self.background]
        for row, label in enumerate(labels):
            if label in known:
                rows[:, self.background + row] = earlier[:, self.background + tuple(known).index(label)]
        return rows.reshape(fresh.shape)


class DetectionNetwork(Protocol):
    """The interface of a detector's network for training."""

    @property
    def module(self) -> nn.Module:
        """The module whose weights are saved."""
        ...

    @property
    def body(self) -> str:
        """Prefix of the names of the backbone's stages; the pyramid also has the prefix ``backbone.``."""
        ...

    @property
    def class_rows(self) -> ClassRows:
        """The rows of the class layers."""
        ...

    @property
    def max_objects(self) -> int | None:
        """Maximum number of objects per image; None: no limit."""
        ...

    def loss(self, images: Tensor, objects: Sequence[Objects], *, plain: bool, dtype: torch.dtype) -> Tensor:
        """Return the loss of a batch; the module must be in training mode.

        Args:
            images: (N, 3, H, W) float32, prepared.
            objects: objects of each image, in pixels of the input.
            plain: True in the last epochs, without geometric augmentation.
            dtype: dtype in which the network is computed.
        """
        ...

    def predict(self, images: Tensor, objects: Sequence[Objects]) -> tuple[float, list[Detections]]:
        """Return the mean loss of a batch, and the boxes of each image above ``MIN_SCORE``, best first."""
        ...

    def raw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return all boxes (A, ..., 4) and scores (A, K) of the first image, before selection."""
        ...


class YoloxNetwork:
    """A YOLOX network, whose objects are assigned to anchors by SimOTA."""

    body = "backbone.backbone."
    class_rows = ClassRows(re.compile(r"head\.cls_preds\.\d+\.(weight|bias)"))
    max_objects = None

    def __init__(self, net: Yolox, layout: YoloxLayout, image_size: tuple[int, int]) -> None:
        """Create the adapter from the network, its layout and its (height, width)."""
        self.module, self.layout, self._size = net, layout, image_size

    def loss(self, images: Tensor, objects: Sequence[Objects], *, plain: bool, dtype: torch.dtype) -> Tensor:
        """Return YOLOX's loss; with ``plain``, including the L1 distance; NaN if the maps are not finite."""
        with autocast(torch.device("cpu"), dtype):
            maps = self._maps(images)
        if not all(bool(level_map.isfinite().all()) for level_map in maps):
            return torch.full((), math.nan, requires_grad=True)
        return yolox_loss(self.layout, maps, objects, self._size, with_distance=plain)

    def predict(self, images: Tensor, objects: Sequence[Objects]) -> tuple[float, list[Detections]]:
        """Return the mean loss of a batch and the boxes of each image."""
        self.module.eval()
        with torch.inference_mode():
            maps = self._maps(images)
            loss = float(yolox_loss(self.layout, maps, objects, self._size, with_distance=False))
            candidates = self.layout.decode(maps, self._size)
        return loss, [
            select(candidates, k, score=MIN_SCORE, iou=_YOLOX_OVERLAP, limit=_MAX_BOXES) for k in range(len(images))
        ]

    def raw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return all boxes and scores of the first image."""
        self.module.eval()
        with torch.inference_mode():
            candidates = self.layout.decode(self.module(images), self._size)
        return candidates.boxes[0], candidates.log_scores[0].exp()

    def _maps(self, images: Tensor) -> tuple[Tensor, ...]:
        maps: tuple[Tensor, ...] = self.module(images.contiguous(memory_format=torch.channels_last))
        return maps


class _PreparedImages(nn.Module):
    """Replaces torchvision's transform, because images are already prepared."""

    def forward(self, images: Tensor, targets: list[dict[str, Tensor]]) -> tuple[ImageList, list[dict[str, Tensor]]]:
        """Return the images and the targets unchanged."""
        return ImageList(images, [(images.shape[2], images.shape[3])] * len(images)), targets

    def postprocess(self, result: list[dict[str, Tensor]], *_sizes: object) -> list[dict[str, Tensor]]:
        """Return the boxes unchanged."""
        return result


class TorchvisionNetwork:
    """A torchvision detector, with torchvision's losses."""

    max_objects = MAX_OBJECTS

    def __init__(self, name: str, labels: tuple[str, ...], size: tuple[int, int] | None = None) -> None:
        """Build an untrained network.

        Args:
            name: a name in ``TORCHVISION_NAMES``.
            labels: the classes.
            size: height and width of the input; None: the network's own.

        Raises:
            ConfigError: the network accepts only its own size.
        """
        background = int(has_background(name))
        self.module: Any = build_network(name, len(labels) + background)
        own = input_format(name, self.module)
        self.input = replace(own, size=size or own.size)
        if is_fixed_size(name) and self.input.size != own.size:
            wrong, right = ("{}x{}".format(*sides) for sides in (self.input.size, own.size))
            raise ConfigError(f"--input-size {wrong}: {name} accepts only {right}; omit --input-size")
        self.detector = as_detector(name, name, self.module, labels, self.input)
        self.module.transform = _PreparedImages()
        self.body = "backbone.body." if hasattr(self.module.backbone, "body") else "backbone.features."
        heads = r"(roi_heads\.box_predictor\.cls_score|head\.classification_head\.(cls_logits|module_list\.\d+(\.1)?))"
        self.class_rows = ClassRows(
            re.compile(heads + r"\.(weight|bias)"),
            background,
            re.compile(r"roi_heads\.box_predictor\.bbox_pred\.(weight|bias)"),
        )

    def loss(
        self, images: Tensor, objects: Sequence[Objects], *, plain: bool, dtype: torch.dtype  # noqa: ARG002
    ) -> Tensor:  # fmt: skip
        """Return the sum of torchvision's losses."""
        if len(images) == 1:  # a batch norm on SSD's coarsest map, a single cell, cannot learn from one image
            images, objects = torch.cat((images, images)), [*objects, *objects]
        targets = [
            {"boxes": one.boxes, "labels": one.classes + self.class_rows.background} for one in objects
        ]  # fmt: skip
        losses: dict[str, Tensor] = self.module(images, targets)
        return torch.stack([*losses.values()]).sum()

    def predict(self, images: Tensor, objects: Sequence[Objects]) -> tuple[float, list[Detections]]:
        """Return the loss, with always the same random samples of regions, and the boxes."""
        self.module.train()
        for part in self.module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 - the common base class of all of them
                part.eval()
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            torch.manual_seed(0)
            loss = float(self.loss(images, objects, plain=True, dtype=torch.float32))
        self.module.eval()
        return loss, self._boxes(images)

    def _boxes(self, images: Tensor) -> list[Detections]:
        detector = self.detector
        if not isinstance(detector, Detector):
            weak = replace(detector, score=MIN_SCORE)
            return [weak.select(found, _MAX_BOXES) for found in weak.proposals(images)]
        with torch.inference_mode():
            candidates = detector.layout.decode(detector.module(images), self.input.size)
        return [select(candidates, k, score=MIN_SCORE, iou=detector.iou, limit=_MAX_BOXES) for k in range(len(images))]

    def raw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return all boxes and scores of the first image; for two stages, the boxes and scores of its regions."""
        self.module.eval()
        if not isinstance(self.detector, Detector):
            found = self.detector.proposals(images)[0]
            return found.boxes, found.log_scores.exp()
        with torch.inference_mode():
            candidates = self.detector.layout.decode(self.detector.module(images), self.input.size)
        return candidates.boxes[0], candidates.log_scores[0].exp()
