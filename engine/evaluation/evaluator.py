"""Evaluates explanations image by image: faithfulness, localisation and sanity metrics.

The explained class is the image's top-1 class. This module reads no files.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.evaluation import metrics
from engine.evaluation.boxes import boxes_of_class
from engine.evaluation.masks import Mask, box_of, covered, distance_to, energy_on, lies_within
from engine.methods.registry import Method
from engine.models.preprocess import Fit, Preprocessing
from engine.split.network import SplitModel, split_network
from pipeline.frames import Box, Frame, GroundTruth

NO_POINTING_GAME: Mapping[str, Any] = {
    "pointing": None, "pointing_15px": None, "energy_inside": None, "boxes": [],
    "pointing_chance": None, "pointing_15px_chance": None, "energy_chance": None,
}  # fmt: skip
"""Record entries of an image without annotations."""

BLUR_CELLS, BLUR_SIGMA = 11, 5.0
"""Kernel size and sigma of the Gaussian blur at the start of Insertion (RISE), in pixels of a 224-pixel image."""


@dataclass(frozen=True)
class ClassMapping:
    """Mapping of box classes to network classes."""

    labels: Sequence[str]
    """The network's class names."""
    class_map: dict[str, list[int]]
    """Box class -> corresponding network classes, in addition to the class of the same name."""
    any_box: bool = False
    """True: count every box, regardless of its class."""


class Evaluator:
    """Evaluates one method on one network, image by image."""

    def __init__(
        self,
        split: SplitModel,
        preprocessing: Preprocessing,
        method: Method,
        knowledge: ClassMapping,
        *,
        steps: int = 28,
    ) -> None:
        """Create an evaluator.

        Args:
            split: the network; everything runs on its device.
            preprocessing: converts frames to the network's input.
            method: the evaluated explanation method.
            knowledge: maps box classes to network classes.
            steps: number of steps in which Deletion and Insertion change the pixels; 0: not measured.
        """
        self.split = split
        self._preprocessing = preprocessing
        self._method = method
        self._classes = knowledge
        self._steps = steps
        self._randomized: SplitModel | None = None

    @property
    def labels(self) -> Sequence[str]:
        """The network's class names."""
        return self._classes.labels

    @property
    def fit(self) -> Fit:
        """The resize mode of the input."""
        return self._preprocessing.fit

    def enable_randomization_check(self, net: nn.Module) -> None:
        """Enable the check with randomised weights: the same network with shuffled weights."""
        self._randomized = split_network(shuffled(net), self.split.layer, self.split.image_size)

    def evaluate(
        self, frame: Frame, truths: Sequence[GroundTruth] | None = None, mask: Mask | None = None
    ) -> dict[str, Any]:
        """Return the record of an image, as JSON values.

        Args:
            frame: the image.
            truths: the annotated boxes; None: not annotated.
            mask: the object's pixels, used instead of boxes for any explained class; an empty mask is not evaluated.
        """
        with torch.inference_mode():
            return self._evaluate_frame(frame, truths, mask)

    def compare_frames(self, frame: Frame, following: Frame, target: int) -> dict[str, Any]:
        """Return the similarity of two successive frames, and of their heat maps for one class.

        ``stability`` and ``picture_stability`` are Pearson correlations of the maps and of the grey frames, at the size
        of the network's input. ``label_kept`` is True if ``target`` is also the top-1 class of the following frame.
        """
        with torch.inference_mode():
            images = [
                self._preprocessing.normalised(self._preprocessing.pixels([centre])) for centre in (frame, following)
            ]
            answers = [self._method(self.split, image, target) for image in images]
            maps = [upsample(heat[0], self.split.image_size).numpy() for _, heat in answers]
            greys = [image[0].mean(0).numpy() for image in images]
            return {
                "stability": metrics.correlation(maps[0], maps[1]),
                "picture_stability": metrics.correlation(greys[0], greys[1]),
                "label_kept": int(answers[1][0][0].argmax()) == target,
            }

    def _evaluate_frame(self, frame: Frame, truths: Sequence[GroundTruth] | None, mask: Mask | None) -> dict[str, Any]:
        image = self._preprocessing.normalised(self._preprocessing.pixels([frame]))
        started_at = time.perf_counter()
        scores, heat = self._method(self.split, image, None)
        seconds = time.perf_counter() - started_at
        target = int(scores[0].argmax())
        wide = upsample(heat[0], self.split.image_size)
        masked = image * wide
        masked_scores, masked_heat = self._method(self.split, masked, target)
        plain, left = float(scores[0, target]), float(masked_scores[0, target])
        shown = wide.numpy()
        shown_masked = upsample(masked_heat[0], self.split.image_size).numpy()
        record: dict[str, Any] = {
            "class": target,
            "label": self._classes.labels[target],
            "score": plain,
            "score_masked": left,
            "drop": metrics.drop(plain, left),
            "increase": metrics.increase(plain, left),
            "correlation": metrics.correlation(shown, shown_masked),
            "coherency": metrics.coherency(shown, shown_masked),
            "complexity": metrics.complexity(shown),
        }
        record["adcc"] = metrics.adcc(record["drop"], record["coherency"], record["complexity"])
        if self._steps:
            record["deletion"], record["insertion"] = self._areas(image, shown, target)
        if self._randomized is not None:
            _, other = self._method(self._randomized, image, target)
            record["randomised"] = metrics.rank_correlation(heat[0].numpy(), other[0].numpy())
        if mask is not None:
            record |= self._pointing_at(frame, heat[0].numpy(), shown, mask)
        elif truths is not None:
            record |= self._pointing(frame, heat[0].numpy(), shown, truths, target)
        record["region"] = list(self._preprocessing.region(frame))
        return record | {"seconds": seconds, "heat": [[round(float(v), 4) for v in row] for row in heat[0]]}

    def _areas(self, image: Tensor, shown: npt.NDArray[np.float32], target: int) -> tuple[float, float]:
        """Return the areas of Deletion (to the mean colour) and Insertion (from a blurred image)."""
        order = torch.from_numpy(metrics.hottest_first(shown))
        areas = []
        for start, end in ((image, torch.zeros_like(image)), (blurred(image), image)):
            scores = [
                torch.softmax(self.split.tail(self.split.head(torch.cat(steps))).float(), 1)[:, target]
                for steps in batched(interpolate_pixels(start, end, order.tensor_split(self._steps)), 8)
            ]
            areas.append(metrics.area_under(torch.cat(scores).tolist()))
        return areas[0], areas[1]

    def _pointing(
        self,
        frame: Frame,
        heat: npt.NDArray[np.float32],
        shown: npt.NDArray[np.float32],
        truths: Sequence[GroundTruth],
        target: int,
    ) -> dict[str, Any]:
        """Return the pointing games on boxes; all None if no box has the explained class."""
        region = self._preprocessing.region(frame)
        boxes = [box for truth in truths for box in truth.boxes]
        if not self._classes.any_box:
            label = self._classes.labels[target]
            boxes = list(boxes_of_class(truths, label, target, self._classes.class_map))
        if not boxes:
            return dict(NO_POINTING_GAME)
        peak, centres = peak_of(heat, region), centres_of(heat.shape, region)
        object_pixels = inside(boxes, region, self.split.image_size)
        return {
            "pointing": peak is not None and metrics.points_at(peak, boxes),
            "pointing_15px": peak is not None and metrics.points_at(peak, boxes, metrics.TOLERANCE_PIXELS),
            "energy_inside": metrics.energy_inside(shown, object_pixels),
            "pointing_chance": fraction_of(metrics.points_at(centre, boxes) for centre in centres),
            "pointing_15px_chance": fraction_of(
                metrics.points_at(centre, boxes, metrics.TOLERANCE_PIXELS) for centre in centres
            ),
            "energy_chance": float(np.mean(object_pixels)),
            "boxes": [[round(side, 1) for side in box] for box in boxes],
        }

    def _pointing_at(
        self, frame: Frame, heat: npt.NDArray[np.float32], shown: npt.NDArray[np.float32], mask: Mask
    ) -> dict[str, Any]:
        """Return the pointing games on a mask; all None if no pixel of the mask lies in the input."""
        region = self._preprocessing.region(frame)
        cover = covered(mask, region, self.split.image_size)
        if not cover.any():
            return dict(NO_POINTING_GAME)
        peak, centres = peak_of(heat, region), centres_of(heat.shape, region)
        away = math.inf if peak is None else distance_to(mask, peak)
        return {
            "pointing": away == 0.0,
            "pointing_15px": away <= metrics.TOLERANCE_PIXELS,
            "energy_inside": energy_on(shown, cover),
            "pointing_chance": fraction_of(lies_within(mask, centre, 0.0) for centre in centres),
            "pointing_15px_chance": fraction_of(
                lies_within(mask, centre, metrics.TOLERANCE_PIXELS) for centre in centres
            ),
            "energy_chance": float(cover.mean()),
            "boxes": [list(box_of(mask))],
            "mask_share": float(mask.mean()),
        }


def upsample(heat: Tensor, size: tuple[int, int]) -> Tensor:
    """Upsample a map (h, w) to the network's input, bilinear between the centres of cells."""
    return F.interpolate(heat[None, None].float(), size=size, mode="bilinear", align_corners=False)[0, 0]


def interpolate_pixels(start: Tensor, end: Tensor, parts: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield images (1, C, H, W); each replaces more pixels of ``start`` by pixels of ``end``."""
    current = start.clone()
    yield current.clone()
    for part in parts:
        current.flatten(2)[:, :, part] = end.flatten(2)[:, :, part]
        yield current.clone()


def batched(images: Iterator[Tensor], count: int) -> Iterator[list[Tensor]]:
    """Yield batches of at most ``count`` images, to limit memory."""
    while some := list(itertools.islice(images, count)):
        yield some


def blurred(image: Tensor) -> Tensor:
    """Blur images as at the start of RISE's Insertion: Gaussian of 11 pixels, sigma 5, reflected."""
    away = torch.arange(BLUR_CELLS, dtype=image.dtype) - BLUR_CELLS // 2
    line = torch.exp(-(away**2) / (2 * BLUR_SIGMA**2))
    line = (line / line.sum()).expand(3, 1, 1, -1)
    padded = F.pad(image, (BLUR_CELLS // 2,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, line, groups=3), line.transpose(2, 3), groups=3)


def fraction_of(hits: Iterable[bool]) -> float:
    """Return the fraction of True values."""
    return float(np.mean(list(hits)))


def centres_of(grid: tuple[int, ...], region: Box) -> list[tuple[float, float]]:
    """Return the centres of all cells of a grid (rows, columns) in frame pixels."""
    rows, columns = grid
    return [
        (region.left + (column + 0.5) * region.width / columns, region.top + (row + 0.5) * region.height / rows)
        for row in range(rows)
        for column in range(columns)
    ]


def peak_of(heat: npt.NDArray[np.float32], region: Box) -> tuple[float, float] | None:
    """Return the centre of the hottest cell in frame pixels; None if the map is all zero."""
    if not heat.any():
        return None
    row, column = divmod(int(heat.argmax()), heat.shape[1])
    return (
        region.left + (column + 0.5) * region.width / heat.shape[1],
        region.top + (row + 0.5) * region.height / heat.shape[0],
    )


def inside(boxes: Sequence[Box], region: Box, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return a mask of the input pixels whose centres lie in a box.

    Args:
        boxes: boxes in frame pixels.
        region: the part of the frame that the network's input shows, in frame pixels.
        size: rows and columns of the input.
    """
    rows, columns = size
    y = region.top + (np.arange(rows) + 0.5) * region.height / rows
    x = region.left + (np.arange(columns) + 0.5) * region.width / columns
    mask = np.zeros(size, bool)
    for box in boxes:
        mask |= ((y >= box.top) & (y < box.bottom))[:, None] & ((x >= box.left) & (x < box.right))[None, :]
    return mask


def shuffled(net: nn.Module, seed: int = 0) -> nn.Module:
    """Return a copy of the network with the values of each parameter shuffled.

    Model parameter randomisation of Adebayo et al., arXiv:1810.03292, section 4, all layers at once. Shuffling keeps
    the scale of each layer, so that scores do not overflow. Running statistics of normalisation are not changed.
    """
    other = copy.deepcopy(net)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            order = torch.randperm(parameter.numel(), generator=generator)
            parameter.copy_(parameter.flatten()[order.to(parameter.device)].view_as(parameter))
    return other
