"""Train a small classifier on labelled pictures, and examine it: is it right, and does it look at the right place?

A defect fills a hundredth of a picture, and the mean over all cells drowns it: trained on whole pictures alone the
network learns nothing for a long time. So it learns from close-ups first, cut around the known boxes, then from
larger pieces, then from whole pictures. What a cell says has the same weight at every stage, since scores are sums of
cells over a fixed count; the last layer is rescaled to the mean at the end. Boxes choose the close-ups, and no loss
tells the network which cell to light up. Pictures without boxes train, too: on the stages that show them whole.

Knows nothing about where pictures come from. The same pictures, seed, thread count and machine give the same weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from engine.recipe import Recipe
from pipeline.frames import Image, Truth

Draw = Callable[[int], Sequence[tuple[Image, Truth]]]
"""Gives that many pictures (uint8 RGB, sizes may differ) with their truths; new ones at each call."""

_SPOT_CELLS = 12.0
"""How many cells a defect is taken to fill: scores are sums over cells divided by this."""
_OK_SHARE = 0.45
"""Share of close-ups without a defect."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of training on pieces of one size."""

    side: int | None
    """Side in input pixels of the square pieces; None for whole pictures."""
    steps: int
    batch: int
    learning_rate: float
    """Its highest; it rises at first and falls to nothing."""


PLAN = (Stage(96, 1200, 96, 5e-3), Stage(160, 200, 40, 2e-3), Stage(None, 450, 32, 2e-3))
"""From close-ups to whole pictures."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training stands, for whoever shows it."""

    step: int
    steps: int
    """In all stages together."""
    stage: str
    loss: float
    """Cross-entropy, a running mean."""
    accuracy: float
    """Share named right before the network learned from them, a running mean."""
    seconds: float
    """Since the start."""


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What a training did."""

    steps: int
    pictures: int
    """How many pictures were drawn; each is seen in many pieces."""
    seed: int
    loss: float
    accuracy: float
    seconds: float


class Album:
    """The pictures at hand, stretched to the input size, where a part is replaced by new ones again and again."""

    def __init__(self, draw: Draw, recipe: Recipe, *, count: int, rng: np.random.Generator) -> None:
        self._draw, self._recipe, self._rng = draw, recipe, rng
        height, width = recipe.input_size
        self.pictures = torch.empty((count, 3, height, width), dtype=torch.uint8)
        self.classes = np.zeros(count, int)
        self.boxes = np.zeros((count, 4))
        self.drawn = 0
        for first in range(0, count, 60):
            self.renew(np.arange(first, min(first + 60, count)))

    def renew(self, places: npt.NDArray[np.int_]) -> None:
        """Replace the pictures at these places by new ones."""
        if not len(places):
            return
        height, width = self._recipe.input_size
        for place, (image, truth) in zip(places, self._draw(len(places)), strict=True):
            self.pictures[place] = self._recipe.stretch(image)
            self.classes[place] = self._recipe.class_of(truth.label)
            box = np.array(truth.boxes[0] if truth.boxes else (0.0, 0.0, 0.0, 0.0))
            self.boxes[place] = box * ((width / image.shape[1], height / image.shape[0]) * 2)
        self.drawn += len(places)

    def wholes(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return whole pictures (N, 3, H, W) uint8, mirrored at random, and their classes."""
        places = self._rng.integers(0, len(self.classes), count)
        pictures = torch.stack([self._mirrored(self.pictures[int(place)]) for place in places])
        return pictures, torch.from_numpy(self.classes[places])

    def close_ups(self, count: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return square pieces (N, 3, side, side) and their classes, mirrored at random.

        Each has a box wholly inside, or is from a picture without any; classes with boxes come equally often.
        """
        boxed = self.boxes[:, 2] > self.boxes[:, 0]
        kinds = [np.nonzero((self.classes == kind) & boxed)[0] for kind in np.unique(self.classes[boxed])]
        plain = np.nonzero(~boxed)[0]
        pieces, places = [], []
        for _ in range(count):
            take_plain = not kinds or (len(plain) > 0 and self._rng.random() < _OK_SHARE)
            choice = plain if take_plain else kinds[int(self._rng.integers(len(kinds)))]
            place = int(choice[int(self._rng.integers(len(choice)))])
            top, left = self._corner(place, side)
            pieces.append(self._mirrored(self.pictures[place, :, top : top + side, left : left + side]))
            places.append(place)
        return torch.stack(pieces), torch.from_numpy(self.classes[places])

    def _corner(self, place: int, side: int) -> tuple[int, int]:
        """Choose where a piece begins (top, left): around the picture's box, or anywhere where there is none."""
        corner = []
        for axis, length in ((1, self.pictures.shape[2]), (0, self.pictures.shape[3])):
            low, high = 0, length - side
            first, last = self.boxes[place, axis], self.boxes[place, axis + 2]
            if last > first:
                low = min(max(low, int(np.ceil(last)) - side), high)
                high = max(min(high, int(first)), low)
            corner.append(int(self._rng.integers(low, high + 1)))
        return corner[0], corner[1]

    def _mirrored(self, picture: torch.Tensor) -> torch.Tensor:
        axes = [axis for axis in (1, 2) if self._rng.random() < 0.5]
        return picture.flip(axes) if axes else picture


def train(
    net: nn.Module,
    draw: Draw,
    *,
    recipe: Recipe,
    plan: Sequence[Stage] = PLAN,
    album: int = 3000,
    renewed: int = 4,
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
) -> TrainingReport:
    """Train ``net`` in place on the CPU and leave it in evaluation mode.

    The net has ``features`` (convolutions), a mean over cells, and ``classifier`` (one linear layer). ``album``
    pictures are kept at a time, ``renewed`` of them replaced before each step. Pictures are mirrored both ways: use it
    for things that may lie any way round. Raises ``ModelError`` for a label that the recipe does not know.
    """
    start = time.perf_counter()
    rng = np.random.default_rng((seed, 21))
    pictures = Album(draw, recipe, count=album, rng=rng)
    head, tail = net.get_submodule("features"), net.get_submodule("classifier")
    assert isinstance(tail, nn.Linear)  # noqa: S101 - the signature's promise
    cells = _cells(head, recipe)
    weight = nn.Parameter(tail.weight.detach() * (_SPOT_CELLS / cells if cells else 1.0))
    bias = nn.Parameter(tail.bias.detach().clone())
    steps = sum(stage.steps for stage in plan)
    done, loss_mean, right_mean = 0, float(np.log(len(recipe.labels))), 1.0 / len(recipe.labels)
    net.train()
    for stage in plan:
        optimiser = torch.optim.AdamW([*head.parameters(), weight, bias], lr=stage.learning_rate, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, max_lr=stage.learning_rate, total_steps=max(2, stage.steps), pct_start=0.2
        )
        for _ in range(stage.steps):
            pictures.renew(rng.integers(0, album, renewed))
            pieces, classes = (
                pictures.wholes(stage.batch) if stage.side is None else pictures.close_ups(stage.batch, stage.side)
            )
            inputs = recipe.normalise(pieces).contiguous(memory_format=torch.channels_last)
            scores = F.linear(head(inputs).sum((2, 3)) / _SPOT_CELLS, weight, bias)
            loss = F.cross_entropy(scores, classes)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_([*head.parameters(), weight, bias], 5.0)
            optimiser.step()
            schedule.step()
            done += 1
            loss_mean += 0.05 * (float(loss.detach()) - loss_mean)
            right_mean += 0.05 * (float((scores.argmax(1) == classes).float().mean()) - right_mean)
            if on_progress is not None:
                name = "whole pictures" if stage.side is None else f"{stage.side} px pieces"
                on_progress(Progress(done, steps, name, loss_mean, right_mean, time.perf_counter() - start))
    with torch.no_grad():
        tail.weight.copy_(weight * (cells / _SPOT_CELLS))
        tail.bias.copy_(bias)
    net.eval()
    return TrainingReport(steps, pictures.drawn, seed, loss_mean, right_mean, time.perf_counter() - start)


def _cells(head: nn.Module, recipe: Recipe) -> int:
    """Return how many cells the feature map of a whole picture has."""
    head.eval()
    with torch.inference_mode():
        rows, columns = head(torch.zeros(1, 3, *recipe.input_size)).shape[2:]
    return int(rows * columns)
