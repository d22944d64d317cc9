"""The YOLOX networks: CSPDarknet, a path-aggregating pyramid and decoupled heads, in six sizes.

Source: Ge, Liu, Wang, Li and Sun, *YOLOX: Exceeding YOLO Series in 2021*, arXiv:2107.08430. Modules are named as in the
official checkpoints, so that their state dicts load. The output is a flat tuple of raw maps: for each of the strides
8, 16 and 32, class logits, objectness logits and box values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

STRIDES: Final = (8, 16, 32)
_EPS: Final = 1e-3
"""Epsilon of the batch norms, with which YOLOX's checkpoints are trained."""


@dataclass(frozen=True, slots=True)
class YoloxSize:
    """Factors for the depth and width of a YOLOX network."""

    depth: float
    """Multiplies the number of bottlenecks."""
    width: float
    """Multiplies the number of channels."""
    depthwise: bool = False
    input_size: tuple[int, int] = (640, 640)
    """Height and width in pixels, as in the paper."""


YOLOX_SIZES: Final = {
    "yolox_nano": YoloxSize(0.33, 0.25, depthwise=True, input_size=(416, 416)),
    "yolox_tiny": YoloxSize(0.33, 0.375, input_size=(416, 416)),
    "yolox_s": YoloxSize(0.33, 0.50),
    "yolox_m": YoloxSize(0.67, 0.75),
    "yolox_l": YoloxSize(1.0, 1.0),
    "yolox_x": YoloxSize(1.33, 1.25),
}


class ConvBlock(nn.Module):
    """Convolution without bias, batch norm and SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=_EPS)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, outputs, h, w)."""
        activated: Tensor = self.act(self.bn(self.conv(x)))
        return activated


class DepthwiseBlock(nn.Module):
    """A depthwise block followed by a 1x1 block."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.dconv = ConvBlock(inputs, inputs, kernel, stride, groups=inputs)
        self.pconv = ConvBlock(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, outputs, h, w)."""
        mixed: Tensor = self.pconv(self.dconv(x))
        return mixed


def _spatial(inputs: int, outputs: int, size: YoloxSize, stride: int = 1) -> nn.Module:
    if size.depthwise:
        return DepthwiseBlock(inputs, outputs, 3, stride)
    return ConvBlock(inputs, outputs, 3, stride)


class Bottleneck(nn.Module):
    """A 1x1 and a 3x3 block, with or without a shortcut."""

    def __init__(self, channels: int, size: YoloxSize, *, shortcut: bool) -> None:
        super().__init__()
        self.conv1 = ConvBlock(channels, channels, 1)
        self.conv2 = _spatial(channels, channels, size)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the input's shape."""
        y: Tensor = self.conv2(self.conv1(x))
        return y + x if self.shortcut else y


class CspLayer(nn.Module):
    """Cross-stage partial layer: bottlenecks on one half of the channels."""

    def __init__(self, inputs: int, outputs: int, repeats: int, size: YoloxSize, *, shortcut: bool = True) -> None:
        super().__init__()
        half = outputs // 2
        self.conv1 = ConvBlock(inputs, half, 1)
        self.conv2 = ConvBlock(inputs, half, 1)
        self.conv3 = ConvBlock(2 * half, outputs, 1)
        self.m = nn.Sequential(*(Bottleneck(half, size, shortcut=shortcut) for _ in range(repeats)))

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, outputs, h, w)."""
        first, second = self.conv1(x), self.conv2(x)
        joined: Tensor = self.conv3(torch.cat((self.m(first), second), 1))
        return joined


class Focus(nn.Module):
    """Moves each 2x2 block of pixels into channels, then convolves."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv = ConvBlock(12, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, outputs, H / 2, W / 2)."""
        upper, lower = x[..., ::2, :], x[..., 1::2, :]
        parts = (upper[..., ::2], lower[..., ::2], upper[..., 1::2], lower[..., 1::2])
        convolved: Tensor = self.conv(torch.cat(parts, 1))
        return convolved


class SppLayer(nn.Module):
    """Spatial pyramid pooling with windows of 5, 9 and 13 cells."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = ConvBlock(channels, half, 1)
        self.m = nn.ModuleList(nn.MaxPool2d(k, 1, k // 2) for k in (5, 9, 13))
        self.conv2 = ConvBlock(4 * half, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the input's shape."""
        x = self.conv1(x)
        pooled: Tensor = self.conv2(torch.cat([x, *(pool(x) for pool in self.m)], 1))
        return pooled


class CspDarknet(nn.Module):
    """The backbone: maps of strides 8, 16 and 32."""

    def __init__(self, size: YoloxSize) -> None:
        super().__init__()
        base, repeats = int(64 * size.width), max(round(3 * size.depth), 1)
        self.stem = Focus(base)
        self.dark2 = self._stage(base, repeats, size)
        self.dark3 = self._stage(2 * base, 3 * repeats, size)
        self.dark4 = self._stage(4 * base, 3 * repeats, size)
        self.dark5 = nn.Sequential(
            _spatial(8 * base, 16 * base, size, 2),
            SppLayer(16 * base),
            CspLayer(16 * base, 16 * base, repeats, size, shortcut=False),
        )

    @staticmethod
    def _stage(inputs: int, repeats: int, size: YoloxSize) -> nn.Sequential:
        return nn.Sequential(_spatial(inputs, 2 * inputs, size, 2), CspLayer(2 * inputs, 2 * inputs, repeats, size))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return C3, C4 and C5."""
        c3: Tensor = self.dark3(self.dark2(self.stem(x)))
        c4: Tensor = self.dark4(c3)
        return c3, c4, self.dark5(c4)


class Pyramid(nn.Module):
    """The backbone and the pyramid: a top-down and a bottom-up path."""

    def __init__(self, size: YoloxSize, backbone: nn.Module | None = None) -> None:
        super().__init__()
        low, middle, high = (int(c * size.width) for c in (256, 512, 1024))
        repeats = round(3 * size.depth)
        self.backbone = backbone or CspDarknet(size)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.lateral_conv0 = ConvBlock(high, middle, 1)
        self.C3_p4 = CspLayer(2 * middle, middle, repeats, size, shortcut=False)
        self.reduce_conv1 = ConvBlock(middle, low, 1)
        self.C3_p3 = CspLayer(2 * low, low, repeats, size, shortcut=False)
        self.bu_conv2 = _spatial(low, low, size, 2)
        self.C3_n3 = CspLayer(2 * low, middle, repeats, size, shortcut=False)
        self.bu_conv1 = _spatial(middle, middle, size, 2)
        self.C3_n4 = CspLayer(2 * middle, high, repeats, size, shortcut=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return P3, P4 and P5."""
        c3, c4, c5 = self.backbone(x)
        top = self.lateral_conv0(c5)
        middle = self.reduce_conv1(self.C3_p4(torch.cat((self.upsample(top), c4), 1)))
        p3 = self.C3_p3(torch.cat((self.upsample(middle), c3), 1))
        p4 = self.C3_n3(torch.cat((self.bu_conv2(p3), middle), 1))
        p5 = self.C3_n4(torch.cat((self.bu_conv1(p4), top), 1))
        return p3, p4, p5


class DecoupledHead(nn.Module):
    """The head: for each level, one branch for the classes and one branch for box and objectness."""

    def __init__(self, size: YoloxSize, classes: int) -> None:
        super().__init__()
        self.classes = classes
        width = int(256 * size.width)
        inputs = [int(c * size.width) for c in (256, 512, 1024)]

        def branches() -> nn.ModuleList:
            return nn.ModuleList(
                nn.Sequential(_spatial(width, width, size), _spatial(width, width, size)) for _ in inputs
            )

        def predictions(channels: int) -> nn.ModuleList:
            return nn.ModuleList(nn.Conv2d(width, channels, 1) for _ in inputs)

        self.stems = nn.ModuleList(ConvBlock(c, width, 1) for c in inputs)
        self.cls_convs, self.reg_convs = branches(), branches()
        self.cls_preds, self.reg_preds, self.obj_preds = predictions(classes), predictions(4), predictions(1)

    def forward(self, levels: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Return class logits, objectness logits and box values of each level."""
        maps: list[Tensor] = []
        for k, level in enumerate(levels):
            stem = self.stems[k](level)
            logits = self.cls_preds[k](self.cls_convs[k](stem))
            branch = self.reg_convs[k](stem)
            box = self.reg_preds[k](branch)
            maps += [logits, self.obj_preds[k](branch), box]
        return tuple(maps)


class Yolox(nn.Module):
    """The whole detector: computes nine raw maps from images (N, 3, H, W), BGR, 0 to 255."""

    def __init__(self, size: YoloxSize, classes: int = 80, backbone: nn.Module | None = None) -> None:
        """Build the network; a ``backbone`` must return maps with the strides and channels of CSPDarknet."""
        super().__init__()
        self.backbone = Pyramid(size, backbone)
        self.head = DecoupledHead(size, classes)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return class, objectness and box map of stride 8, then of 16 and 32."""
        maps: tuple[Tensor, ...] = self.head(self.backbone(images))
        return maps
