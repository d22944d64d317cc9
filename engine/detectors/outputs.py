"""Types of a detector's raw outputs (levels, anchors, reads) and the base class of layouts.

Every detector is a ``torch.fx`` graph from images (N, 3, H, W) to a flat tuple of raw *maps* (N, C, h, w): the outputs
of the last convolutions of each pyramid level, before any activation. A ``Layout`` decodes the maps to boxes and
log-scores, and states which vectors of which maps the log-score of an anchor is computed from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

Grids = tuple[tuple[int, int], ...]
"""Rows and columns of each level's maps."""


@dataclass(frozen=True, slots=True)
class Level:
    """One pyramid level: the indices of its maps in the network's output."""

    stride: int
    """Pixels of the input per cell."""
    class_map: int
    objectness_map: int | None
    """None: there is no objectness, or it is part of another map."""
    box_map: int
    """May equal ``class_map``; the box channels of an anchor then follow its class channels (NanoDet)."""
    anchors_per_cell: int = 1

    @property
    def score_maps(self) -> tuple[int, ...]:
        """The maps that a log-score is computed from."""
        return (self.class_map,) if self.objectness_map is None else (self.class_map, self.objectness_map)


@dataclass(frozen=True, slots=True)
class Read:
    """The position of one vector (C,) in the network's maps."""

    map: int
    """Index of the map in the network's output."""
    row: int
    column: int


@dataclass(frozen=True, slots=True)
class Anchor:
    """The position of an anchor: the cell of its level, and its number among the anchors of the cell."""

    level: int
    """Index in ``Layout.levels``."""
    row: int
    column: int
    index: int = 0
    """Number among the anchors of its cell."""


@dataclass(frozen=True, slots=True)
class Target:
    """The explained scalar: the score of one class at one anchor."""

    anchor: Anchor
    class_index: int


@dataclass(frozen=True, eq=False)
class Candidates:
    """All boxes of a batch, before non-maximum suppression."""

    boxes: Tensor
    """Boxes, (N, A, 4) float32: left, top, right, bottom in pixels of the network's input, not clipped."""
    log_scores: Tensor
    """Logarithm of the scores by which detections are ranked, (N, A, K) float32."""
    grids: Grids
    """The grid of each level, from which ``Layout.locate`` finds an anchor's cell."""


class Layout(ABC):
    """Decodes a network's raw maps; one subclass per family of detectors.

    Anchors are numbered level by level, row by row, cell by cell; the anchors of one cell are consecutive. The channels
    of a map contain first those of the cell's first anchor, then those of its second anchor, and so on.
    """

    name: ClassVar[str]

    def __init__(self, levels: Sequence[Level], classes: int) -> None:
        """Create the layout from levels, fine to coarse, and the number of classes without background."""
        self.levels = tuple(levels)
        self.classes = classes

    @property
    def class_channels(self) -> int:
        """Number of channels of a class map per anchor: the classes, and the background class if any."""
        return self.classes

    @abstractmethod
    def activate(self, class_logits: Tensor, objectness: Tensor | None) -> Tensor:
        """Return log-scores from raw logits.

        Args:
            class_logits: (..., ``class_channels``) float32.
            objectness: (...) float32, or None for levels without it.

        Returns:
            (..., K) float32.
        """

    @abstractmethod
    def level_boxes(self, level: int, values: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Return the boxes of one level.

        Args:
            level: index in ``levels``.
            values: (N, h, w, anchors per cell, channels per anchor) float32, raw values of the box map.
            image_size: height and width in pixels of the input.

        Returns:
            (N, h, w, anchors per cell, 4) float32: left, top, right, bottom in pixels.
        """

    def extent(self, level: int, image_size: tuple[int, int]) -> float:
        """Return the side in pixels of the largest box that a level usually detects.

        Eight strides: the upper limit of FCOS (arXiv:1904.01355), 64 pixels at stride 8. Layouts with base anchors
        return their largest side.
        """
        return float(min(8 * self.levels[level].stride, max(image_size)))

    def grids(self, maps: Sequence[Tensor]) -> Grids:
        """Return the grid of each level."""
        return tuple((int(maps[v.class_map].shape[2]), int(maps[v.class_map].shape[3])) for v in self.levels)

    def locate(self, grids: Grids, anchor: int) -> Anchor:
        """Return the position of the anchor with this number.

        Raises:
            IndexError: there is no such anchor.
        """
        remaining = anchor
        for number, (level, (rows, columns)) in enumerate(zip(self.levels, grids, strict=True)):
            count = rows * columns * level.anchors_per_cell
            if 0 <= remaining < count:
                cell, index = divmod(remaining, level.anchors_per_cell)
                return Anchor(number, *divmod(cell, columns), index)
            remaining -= count
        raise IndexError(f"anchor {anchor}: is out of range; use 0 to {anchor - remaining - 1}")

    def number(self, grids: Grids, anchor: Anchor) -> int:
        """Return the number of an anchor; inverse of ``locate``."""
        before = sum(
            rows * columns * level.anchors_per_cell
            for level, (rows, columns) in zip(self.levels[: anchor.level], grids, strict=False)
        )
        cell = anchor.row * grids[anchor.level][1] + anchor.column
        return before + cell * self.levels[anchor.level].anchors_per_cell + anchor.index

    def reads(self, anchor: Anchor) -> tuple[Read, ...]:
        """Return the positions of the vectors from which an anchor's log-score is computed."""
        level = self.levels[anchor.level]
        return tuple(Read(m, anchor.row, anchor.column) for m in level.score_maps)

    @property
    def classes_compete(self) -> bool:
        """True if the score of a class depends on the logits of all classes, as with a softmax."""
        return False

    def score_channels(self, target: Target, class_map_channels: int) -> tuple[tuple[int, ...], ...]:
        """Return, for each of ``reads(target.anchor)``, the channels that the log-score depends on.

        Args:
            target: the anchor and the class.
            class_map_channels: number of channels of the level's class map.
        """
        anchor = target.anchor
        width = class_map_channels // self.levels[anchor.level].anchors_per_cell
        start, background = anchor.index * width, self.class_channels - self.classes
        logits = tuple(range(start, start + self.class_channels))
        if not self.classes_compete:
            logits = (*logits[:background], logits[background + target.class_index])
        return logits, *((anchor.index,) for _ in self.reads(anchor)[1:])

    def log_score_of_channels(self, vectors: Sequence[Tensor], target: Target) -> Tensor:
        """Return the log-score of a target from the channels that it depends on.

        Args:
            vectors: for each of ``reads(target.anchor)``, (cells, channels), with the channels of ``score_channels``.
            target: the anchor and the class.

        Returns:
            (cells,) float32.
        """
        objectness = vectors[1].float()[:, 0] if len(vectors) > 1 else None
        scores = self.activate(vectors[0].float(), objectness)
        return scores[:, target.class_index if self.classes_compete else 0]

    def log_score(self, vectors: Sequence[Tensor], class_index: int, anchor: Anchor) -> Tensor:
        """Return the log-score of one anchor and class.

        Args:
            vectors: for each of ``reads(anchor)``, (cells, C) with all channels of the map.
            class_index: 0 to K - 1.
            anchor: the anchor.

        Returns:
            (cells,) float32.
        """
        target = Target(anchor, class_index)
        channels = self.score_channels(target, vectors[0].shape[1])
        chosen = [vector[:, list(part)] for vector, part in zip(vectors, channels, strict=True)]
        return self.log_score_of_channels(chosen, target)

    def decode(self, maps: Sequence[Tensor], image_size: tuple[int, int]) -> Candidates:
        """Return all boxes and log-scores of a batch.

        Args:
            maps: the network's output, (N, C, h, w) each.
            image_size: height and width in pixels of the input.
        """
        boxes, scores = [], []
        for number, level in enumerate(self.levels):
            logits = _by_anchor(maps[level.class_map], level.anchors_per_cell)[..., : self.class_channels]
            objectness = None
            if level.objectness_map is not None:
                objectness = _by_anchor(maps[level.objectness_map], level.anchors_per_cell)[..., 0]
            scores.append(self.activate(logits, objectness).flatten(1, 3))
            values = _by_anchor(maps[level.box_map], level.anchors_per_cell)
            values = values[..., self.class_channels :] if level.box_map == level.class_map else values
            boxes.append(self.level_boxes(number, values, image_size).flatten(1, 3))
        return Candidates(torch.cat(boxes, 1), torch.cat(scores, 1), self.grids(maps))


def _by_anchor(values: Tensor, anchors: int) -> Tensor:
    """Return a map (N, A * C, h, w) as (N, h, w, A, C) float32."""
    n, channels, rows, columns = values.shape
    return values.float().view(n, anchors, channels // anchors, rows, columns).permute(0, 3, 4, 1, 2)


def cell_centres(rows: int, columns: int, stride: float, offset: float, like: Tensor) -> Tensor:
    """Return ``(column + offset, row + offset) * stride`` of each cell: (h, w, 1, 2), x before y."""
    y = (torch.arange(rows, device=like.device, dtype=torch.float32) + offset) * stride
    x = (torch.arange(columns, device=like.device, dtype=torch.float32) + offset) * stride
    return torch.stack((x.expand(rows, -1), y[:, None].expand(-1, columns)), dim=-1)[:, :, None]
