"""Train a small classifier on labelled pictures, and examine it: is it right, and does it look at the right place?

Supervision is the class alone: boxes are used only to examine the explanations afterwards. Knows nothing about where
pictures come from, and decides by ``seed`` alone: the same pictures, seed, thread count and machine give the same
weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.errors import ModelError
from pipeline.frames import Image, Truth

Draw = Callable[[int], Sequence[tuple[Image, Truth]]]
"""Gives that many pictures (uint8 RGB, sizes may differ) with their truths; new ones at each call."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a picture becomes the network's input: stretched to ``input_size``, scaled to [0, 1], normalised."""

    labels: tuple[str, ...]
    """Class names, in the order of the network's outputs."""
    input_size: tuple[int, int]
    """Height and width in pixels."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def normalise(self, stretched: torch.Tensor) -> torch.Tensor:
        """Map pictures (N, 3, H, W) with values 0 to 255 to the network's input."""
        mean = torch.tensor(self.mean).view(3, 1, 1)
        std = torch.tensor(self.std).view(3, 1, 1)
        return (stretched / 255.0 - mean) / std

    def stretch(self, image: Image) -> torch.Tensor:
        """Stretch one picture to the input size: float32 (3, H, W), values 0 to 255."""
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0).float()
        size = list(self.input_size)
        return F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)[0]

    def class_of(self, label: str) -> int:
        """Return a label's class index. Raises ``ModelError`` for a label the recipe does not know."""
        try:
            return self.labels.index(label)
        except ValueError:
            raise ModelError(
                f"label {label!r} is none of {', '.join(self.labels)}: name every class in labels"
            ) from None


@dataclass(frozen=True, slots=True)
class Step:
    """Where a training stands, for whoever shows progress."""

    step: int
    steps: int
    loss: float
    """Mean cross-entropy of late steps."""
    accuracy: float
    """Share of late training pictures that were named right, before the network had learned from them."""
    seconds: float
    """Since the start."""


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What a training did."""

    steps: int
    pictures: int
    seed: int
    loss: float
    accuracy: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Examination:
    """How a network does on pictures it has never seen."""

    pictures: int
    accuracy: float
    """Share named right."""
    pointing: float
    """The pointing game: of the pictures with a box that were named right, the share whose hottest cell's centre lies
    inside a true box. NaN where there was none."""
    pointed_pictures: int
    """How many pictures the pointing game was played on."""
    confusion: tuple[tuple[int, ...], ...]
    """Counts by true class (row) and given class (column)."""


def train(
    net: nn.Module,
    draw: Draw,
    *,
    recipe: Recipe,
    steps: int = 700,
    batch: int = 32,
    seed: int = 0,
    learning_rate: float = 3e-3,
    on_progress: Callable[[Step], None] | None = None,
) -> TrainingReport:
    """Train ``net`` in place, on the CPU, and leave it in evaluation mode.

    Pictures are mirrored at random, both ways: use it for things that may lie any way round. AdamW with one rise and
    fall of the learning rate; the last linear layer learns faster, since a defect is a small part of the mean it sees.
    """
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    optimiser, schedule = _optimiser(net, steps=steps, learning_rate=learning_rate)
    net.train()
    loss_mean, right_mean = float(np.log(len(recipe.labels))), 0.0
    for step in range(steps):
        samples = draw(batch)
        stretched = torch.stack([recipe.stretch(image) for image, _ in samples])
        classes = torch.tensor([recipe.class_of(truth.label) for _, truth in samples])
        scores = net(recipe.normalise(_mirrored(stretched, generator)))
        loss = F.cross_entropy(scores, classes)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        weight = max(0.05, 1.0 / (step + 1))
        loss_mean += weight * (float(loss.detach()) - loss_mean)
        right_mean += weight * (float((scores.argmax(1) == classes).float().mean()) - right_mean)
        if on_progress is not None:
            on_progress(Step(step + 1, steps, loss_mean, right_mean, time.perf_counter() - start))
    net.eval()
    return TrainingReport(steps, steps * batch, seed, loss_mean, right_mean, time.perf_counter() - start)


def examine(net: nn.Module, samples: Iterable[tuple[Image, Truth]], *, recipe: Recipe) -> Examination:
    """Examine a network with ``features`` and ``classifier`` (mean and one linear layer between) on labelled pictures."""
    classes = len(recipe.labels)
    confusion = np.zeros((classes, classes), int)
    hits: list[bool] = []
    net.eval()
    with torch.inference_mode():
        for image, truth in samples:
            features = net.get_submodule("features")(recipe.normalise(recipe.stretch(image)[None]))[0]
            tail = net.get_submodule("classifier")
            given = int(tail(features.mean((1, 2))).argmax())
            true = recipe.class_of(truth.label)
            confusion[true, given] += 1
            if truth.boxes and given == true:
                x, y = _hottest(features, tail, given)
                height, width = image.shape[:2]
                hits.append(any(box.holds(x * width, y * height) for box in truth.boxes))
    total = int(confusion.sum())
    return Examination(
        pictures=total,
        accuracy=float(np.trace(confusion)) / max(1, total),
        pointing=sum(hits) / len(hits) if hits else float("nan"),
        pointed_pictures=len(hits),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
    )


def _hottest(features: torch.Tensor, tail: nn.Module, target: int) -> tuple[float, float]:
    """Return the centre (x, y) of Recipro-CAM's hottest cell, in shares of the picture's width and height.

    One cell kept and the rest zero, the mean over H*W cells is that cell's vector / (H*W): no map need be made.
    """
    _, rows, columns = features.shape
    kept = features.flatten(1).T / (rows * columns)
    heat = tail(kept).double().softmax(1)[:, target]
    row, column = divmod(int(heat.argmax()), columns)
    return (column + 0.5) / columns, (row + 0.5) / rows


def _mirrored(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    flips = torch.rand((2, len(pictures), 1, 1, 1), generator=generator) < 0.5
    pictures = torch.where(flips[0], pictures.flip(3), pictures)
    return torch.where(flips[1], pictures.flip(2), pictures)


def _optimiser(
    net: nn.Module, *, steps: int, learning_rate: float
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    last = [module for module in net.modules() if isinstance(module, nn.Linear)][-1:]
    quick = {id(parameter) for module in last for parameter in module.parameters()}
    groups = [
        {"params": [p for p in net.parameters() if id(p) not in quick], "lr": learning_rate},
        {"params": [p for p in net.parameters() if id(p) in quick], "lr": 10 * learning_rate, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, weight_decay=1e-2)
    rates = [learning_rate, 10 * learning_rate][: len(groups)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=rates, total_steps=max(2, steps), pct_start=0.25)
    return optimiser, schedule
