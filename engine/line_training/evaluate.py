"""Examine a trained network on pictures it has never seen: is it right, and does its explanation point at the cause?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from engine.line_training.preprocessing import Preprocessing
from pipeline.frames import GroundTruth, Image


@dataclass(frozen=True, slots=True)
class ClassifierReport:
    """How a network did."""

    images: int
    accuracy: float
    """Share named right."""
    pointing: float
    """The pointing game: of the pictures with a box that were named right, the share whose hottest cell's centre lies
    inside a true box. NaN where there was none."""
    pointed_images: int
    """How many pictures the pointing game was played on."""
    confusion: tuple[tuple[int, ...], ...]
    """Counts by true class (row) and given class (column)."""


def evaluate_classifier(
    net: nn.Module, samples: Iterable[tuple[Image, GroundTruth]], *, recipe: Preprocessing
) -> ClassifierReport:
    """Examine a net that has ``features``, a mean over cells and ``classifier`` (one linear layer), in evaluation mode.

    Leaves the net in evaluation mode. Raises ``ModelError`` for a label that the recipe does not know.
    """
    confusion = np.zeros((len(recipe.labels), len(recipe.labels)), int)
    hits: list[bool] = []
    net.eval()
    head, tail = net.get_submodule("features"), net.get_submodule("classifier")
    with torch.inference_mode():
        for image, truth in samples:
            features = head(recipe.normalise(recipe.stretch(image)[None]))[0]
            given, true = int(tail(features.mean((1, 2))).argmax()), recipe.class_of(truth.label)
            confusion[true, given] += 1
            if truth.boxes and given == true:
                x, y = _hottest(features, tail, given)
                height, width = image.shape[:2]
                hits.append(any(box.holds(x * width, y * height) for box in truth.boxes))
    total = int(confusion.sum())
    return ClassifierReport(
        images=total,
        accuracy=float(np.trace(confusion)) / max(1, total),
        pointing=sum(hits) / len(hits) if hits else float("nan"),
        pointed_images=len(hits),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
    )


def _hottest(features: torch.Tensor, tail: nn.Module, target: int) -> tuple[float, float]:
    """Return the centre (x, y) of Recipro-CAM's hottest cell, in shares of the picture's width and height.

    With one cell kept and the rest zero, the mean over H*W cells is that cell's vector / (H*W): no map need be made.
    """
    _, rows, columns = features.shape
    heat = tail(features.flatten(1).T / (rows * columns)).double().softmax(1)[:, target]
    row, column = divmod(int(heat.argmax()), columns)
    return (column + 0.5) / columns, (row + 0.5) / rows
