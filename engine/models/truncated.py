"""A network that ends earlier: its first layers, a mean over the grid, and one linear layer.

What comes late in a network sees the whole picture from every cell, in large cells: good for what a photo shows, too
much for a defect of ten pixels. Ended earlier it has a finer grid, each cell of which answers for its own
surroundings, costs less, and keeps the cheapest exact plan of explanation.
"""

from __future__ import annotations

import torch
from torch import nn

from engine.split.layers import trace_layer_outputs
from engine.split.network import split_network
from pipeline.errors import LayerError, did_you_mean


class TruncatedNetwork(nn.Module):
    """Map normalised pictures (N, 3, H, W) to class scores before softmax (N, ``class_count``)."""

    def __init__(self, features: nn.Module, channels: int, class_count: int) -> None:
        super().__init__()
        self.features = features
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)
        self.classifier = nn.Linear(channels, class_count)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return scores before softmax (N, classes)."""
        scores: torch.Tensor = self.classifier(self.flatten(self.pool(self.features(images))))
        return scores


def truncate(net: nn.Module, until: str, image_size: tuple[int, int], class_count: int) -> TruncatedNetwork:
    """Return the network up to and with a layer, and a new last layer on the mean of that one's output.

    The weights are copies; the last layer begins at random, from torch's random state.

    Raises:
        LayerError: there is no such layer, it has no grid, or the network cannot be traced.
    """
    outputs, _ = trace_layer_outputs(net.eval(), torch.zeros(1, 3, *image_size))
    grids = [name for name, output in outputs.items() if output.is_grid]
    if until not in grids:
        raise LayerError(
            f"--truncate-at {until!r}: the network has no such layer with a grid of "
            f"cells to end with.{did_you_mean(until, grids)}"
        )
    split = split_network(net, until, image_size)
    if not split.traced:
        raise LayerError(
            f"--truncate-at {until!r}: this network cannot be traced, and so not be ended earlier; leave it out"
        )
    features = split.head
    for parameter in features.parameters():
        parameter.requires_grad = True
    return TruncatedNetwork(features, split.channels, class_count).eval()
