"""A detector with its layout, labels and input format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from engine.detectors.cuts import find_cut, named_cut, own_level_cut
from engine.detectors.detections import Detections, select
from engine.detectors.graph import Network, normalise
from engine.detectors.input_format import InputFormat
from engine.detectors.outputs import Candidates, Layout
from engine.detectors.split import Cut, DetectorSplit, build_split
from pipeline.errors import ConfigError, LayerError

CutChoice = Literal["complete", "own level"] | Sequence[str]
"""A kind of cut, or the names of the cut's nodes."""


@dataclass(frozen=True, eq=False)
class Detector:
    """A one-stage detector."""

    name: str
    module: nn.Module
    """Computes the tuple of raw maps from images (N, 3, H, W) in the format ``input``."""
    layout: Layout
    labels: tuple[str, ...]
    """One name per class."""
    input: InputFormat
    fixed_size: bool = False
    """True if the network accepts only its own input size."""
    size_step: int = 32
    """Height and width of the input must be multiples of this number of pixels."""
    complete_cut: tuple[str, ...] | None = None
    """Names of the complete cut's nodes; None: it is searched in the graph."""
    score: float = 0.3
    """Minimum score of a detection, 0 to 1."""
    iou: float = 0.45
    """Boxes of one class with a higher IoU count as the same object."""
    networks: dict[tuple[int, int], Network] = field(default_factory=dict, repr=False)
    """Normalised graphs by image size."""
    splits: dict[tuple[object, ...], DetectorSplit] = field(default_factory=dict, repr=False)
    """Verified splits by image size, level and cut."""

    def network(self, image_size: tuple[int, int] | None = None) -> Network:
        """Return the normalised graph for an image size.

        Args:
            image_size: height and width in pixels, multiples of 32; None = the detector's own.

        Raises:
            ConfigError: the size is not accepted.
            EngineError: the network cannot be traced.
        """
        size = image_size or self.input.size
        if size not in self.networks:
            self._check_size(size)
            with torch.inference_mode(mode=False):  # weights fused in inference mode could not have gradients
                self.networks[size] = normalise(self.module, size)
        return self.networks[size]

    def _check_size(self, size: tuple[int, int]) -> None:
        own = "{}x{}".format(*self.input.size)
        if self.fixed_size and size != self.input.size:
            raise ConfigError(f"input size {size[0]}x{size[1]}: {self.name} accepts only {own}")
        step = self.size_step
        if not self.fixed_size and any(side < step or side % step for side in size):
            raise ConfigError(f"input size {size[0]}x{size[1]}: both sides must be multiples of {step}, such as {own}")

    def candidates(self, images: Tensor) -> Candidates:
        """Return all boxes and log-scores of prepared images (N, 3, H, W)."""
        size = (images.shape[2], images.shape[3])
        with torch.inference_mode():
            return self.layout.decode(self.network(size).module(images), size)

    def detect(self, images: Tensor) -> list[Detections]:
        """Return the boxes of each prepared image."""
        candidates = self.candidates(images)
        return [select(candidates, n, score=self.score, iou=self.iou) for n in range(len(images))]

    def cut(self, level: int, choice: CutChoice = "complete", image_size: tuple[int, int] | None = None) -> Cut:
        """Return the cut of a level.

        Args:
            level: index in ``layout.levels``.
            choice: ``complete``, ``own level`` (the fast cut), or the names of its nodes.
            image_size: height and width in pixels; None = the detector's own.

        Raises:
            LayerError: there is no such cut.
        """
        network = self.network(image_size)
        if choice == "complete":
            if self.complete_cut is not None:
                return named_cut(network, self.complete_cut)
            return find_cut(network, self.layout, level)
        if choice == "own level":
            return own_level_cut(network, self.layout, level)
        return named_cut(network, [choice] if isinstance(choice, str) else choice)

    def split(
        self, level: int, choice: CutChoice = "complete", image_size: tuple[int, int] | None = None
    ) -> DetectorSplit:
        """Return the verified split for a level's score maps; arguments and errors are those of ``cut``."""
        size = image_size or self.input.size
        named = self.complete_cut if choice == "complete" else None
        key = (size, level, named or (choice if isinstance(choice, str) else tuple(choice)))
        if key not in self.splits:
            cut = self.cut(level, choice, size)
            try:
                self.splits[key] = build_split(self.network(size), cut, self.layout.levels[level].score_maps)
            except LayerError as reason:
                if cut.kind != "named":
                    raise
                found = find_cut(self.network(size), self.layout, level).nodes
                raise LayerError(f"{reason}; the complete cut of this level is {', '.join(found)}") from None
        return self.splits[key]
