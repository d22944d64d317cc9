"""The network of the simulated inspection line: convolutions, global average pooling, a linear layer.

The last feature map has stride 8: an image of 240x320 results in 30x40 cells. The receptive field of a cell is about 57
pixels, enough for a defect and its surroundings but not for distant defects, so heat maps are sharp. After it come
global average pooling and a linear layer, for which Recipro-CAM has its cheapest exact plan. All operations are modules
and none works in place, so the network can be split after any layer.
"""

from __future__ import annotations

import torch
from torch import nn

INPUT_SIZE = (240, 320)
"""Height and width in pixels of the training images."""
LAYER = "features"
"""Qualified name of the explained layer."""


class LineNet(nn.Module):
    """Computes class logits (N, ``class_count``) from normalised images (N, 3, H, W)."""

    def __init__(self, class_count: int, *, width: int = 20) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _block(3, width, side=5, stride=2),
            _block(width, 2 * width, side=3, stride=2),
            _block(2 * width, 2 * width, side=3, stride=1),
            _block(2 * width, 4 * width, side=3, stride=2),
            _block(4 * width, 4 * width, side=3, stride=1),
            _block(4 * width, 6 * width, side=3, stride=1),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)
        self.classifier = nn.Linear(6 * width, class_count)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return class logits (N, ``class_count``)."""
        scores: torch.Tensor = self.classifier(self.flatten(self.pool(self.features(images))))
        return scores


def _block(inputs: int, outputs: int, *, side: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, side, stride=stride, padding=side // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())
