"""Truncates networks: their first layers, global average pooling, and a new linear layer.

Cells of late layers are large, with receptive fields that cover the whole image: suitable for photographs, too coarse
for a defect of ten pixels. A truncated network has a finer grid with smaller receptive fields, is faster, and has the
cheapest exact plan of Recipro-CAM (``pooled``).
"""

from __future__ import annotations

import torch
from torch import nn

from engine.split.layers import trace_layer_outputs
from engine.split.network import split_network
from pipeline.errors import LayerError, did_you_mean


class TruncatedNetwork(nn.Module):
    """Computes class logits (N, ``class_count``) from normalised images (N, 3, H, W)."""

    def __init__(self, features: nn.Module, channels: int, class_count: int) -> None:
        super().__init__()
        self.features = features
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)
        self.classifier = nn.Linear(channels, class_count)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return class logits (N, ``class_count``)."""
        scores: torch.Tensor = self.classifier(self.flatten(self.pool(self.features(images))))
        return scores


def truncate(net: nn.Module, layer: str, image_size: tuple[int, int], class_count: int) -> TruncatedNetwork:
    """Return a copy of the network up to a layer (inclusive), with global average pooling and a new linear layer.

    The linear layer is initialised from torch's global random state.

    Args:
        net: the network to truncate.
        layer: qualified name of the last layer.
        image_size: height and width in pixels.
        class_count: number of outputs of the linear layer.

    Raises:
        LayerError: there is no such layer, its output is not a grid, or the network cannot be traced.
    """
    outputs, _ = trace_layer_outputs(net.eval(), torch.zeros(1, 3, *image_size))
    grids = [name for name, output in outputs.items() if output.is_grid]
    if layer not in grids:
        raise LayerError(
            f"--truncate-at {layer!r}: the network has no such layer with a grid of cells."
            f"{did_you_mean(layer, grids)} run.py models --layers NAME lists them"
        )
    split = split_network(net, layer, image_size)
    if not split.traced:
        raise LayerError(
            f"--truncate-at {layer!r}: this network cannot be traced and therefore not truncated; omit the option"
        )
    features = split.head
    for parameter in features.parameters():
        parameter.requires_grad = True
    return TruncatedNetwork(features, split.channels, class_count).eval()
