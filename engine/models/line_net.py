"""The small network of the inspection line: convolutions to a fine grid, one average, one linear layer.

Made to be explained. The last feature map has stride 8, so a 240x320 picture gives 30x40 cells, each of which sees
about 57 input pixels: enough for a defect and its surroundings, too little for a cell far away to know of it. After
it comes nothing but the mean and a linear layer, for which Recipro-CAM has its cheapest exact form. Nothing here is
functional or in place, so that any tracer can cut it anywhere.
"""

from __future__ import annotations

import torch
from torch import nn

INPUT_SIZE = (240, 320)
"""Height and width of the pictures it is trained on."""
LAYER = "features"
"""Where it is cut for explanation."""


class LineNet(nn.Module):
    """Map normalised pictures (N, 3, H, W) to class scores before softmax (N, ``class_count``)."""

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
        """Return scores before softmax (N, classes)."""
        scores: torch.Tensor = self.classifier(self.flatten(self.pool(self.features(images))))
        return scores


def _block(inputs: int, outputs: int, *, side: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, side, stride=stride, padding=side // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())
