"""A detector split at a cut: head (images to features), tail (features to raw maps)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, fx


@dataclass(frozen=True, slots=True)
class Cut:
    """The nodes of a network's graph that are masked together, fine to coarse."""

    nodes: tuple[str, ...]
    """Names of ``torch.fx`` nodes; each output is a map (N, C, h, w)."""
    strides: tuple[int, ...]
    """Pixels of the input per cell, one for each node: powers of two."""
    kind: str = "complete"
    """``complete`` = found in the graph; ``own level`` = the input of the level's head (the fast cut); ``named``."""


@dataclass(frozen=True, eq=False)
class DetectorSplit:
    """A detector in two parts: ``tail(*head(images))`` equals the network's maps ``maps``."""

    head: fx.GraphModule
    """Images (N, 3, H, W) to the tuple of features (N, C, h, w) at ``cut.nodes``."""
    tail: fx.GraphModule
    """The features, as positional arguments, to the tuple of raw maps listed in ``maps``."""
    cut: Cut
    maps: tuple[int, ...]
    """For each output of the tail, its index in the network's output (``Read.map``)."""
    image_size: tuple[int, int]
    """Height and width in pixels for which the split is proven; shapes in the graphs are for this size."""

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the features of a batch at the cut."""
        features: tuple[Tensor, ...] = self.head(images)
        return features
