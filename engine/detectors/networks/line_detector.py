"""The detector of the simulated line: YOLOX's pyramid and heads on the classifier's features."""

from __future__ import annotations

from typing import Final

from torch import Tensor, nn

from engine.detectors.networks.yolox import CspLayer, DepthwiseBlock, SppLayer, Yolox, YoloxSize
from engine.models.line_net import LineNet

SIZE: Final = YoloxSize(depth=0.33, width=0.1875, depthwise=True, input_size=(256, 320))
STRIDES: Final = (16, 32, 64)
"""Twice the strides of YOLOX, because a part is about 100 pixels wide in the network's input."""
_FEATURES: Final = 120
"""Number of channels of the features of ``LineNet``."""


class LineBackbone(nn.Module):
    """The features of ``LineNet`` at stride 8, then three stages as in CSPDarknet."""

    def __init__(self) -> None:
        super().__init__()
        low, middle, high = (int(c * SIZE.width) for c in (256, 512, 1024))
        self.features = LineNet(1).features
        self.dark3 = DepthwiseBlock(_FEATURES, low, 3, 2)
        self.dark4 = nn.Sequential(DepthwiseBlock(low, middle, 3, 2), CspLayer(middle, middle, 2, SIZE))
        self.dark5 = nn.Sequential(
            DepthwiseBlock(middle, high, 3, 2), SppLayer(high), CspLayer(high, high, 1, SIZE, shortcut=False)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return maps of strides 16, 32 and 64."""
        c3: Tensor = self.dark3(self.features(x))
        c4: Tensor = self.dark4(c3)
        return c3, c4, self.dark5(c4)


def line_detector(classes: int) -> Yolox:
    """Create the untrained detector."""
    return Yolox(SIZE, classes, LineBackbone())
