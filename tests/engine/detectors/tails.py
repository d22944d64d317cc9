"""Small random tails of detectors: one for each kind of layer that cones support or do not support."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from engine.detectors.split import Cut, DetectorSplit
from tests.support.tiny_detector import SIZE, with_lively_weights

STRIDES = (8, 16, 32)
WIDTHS = (8, 12, 8)


class PyramidTail(nn.Module):
    """Upsampling and downsampling paths with depthwise convolutions, as in a small YOLO."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.SiLU())
        self.middle = nn.Sequential(nn.Conv2d(20, 8, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU())
        self.side = nn.Sequential(nn.Conv2d(20, 8, 1), nn.ReLU6())
        self.spread = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Hardswish(), nn.Conv2d(8, 8, 1), nn.SiLU()
        )
        self.join = nn.Conv2d(16, 8, 1)
        self.fine = nn.Sequential(nn.Conv2d(16, 8, 1), nn.LeakyReLU(0.1), nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.SiLU())
        self.down = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.SiLU(), nn.Conv2d(8, 8, 1), nn.SiLU())
        self.heads = nn.ModuleList(nn.Conv2d(n, 3, 1) for n in (8, 16, 16))

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        top = self.reduce(c)
        joined = torch.cat((F.interpolate(top, scale_factor=2, mode="nearest"), b), 1)
        middle = self.middle(joined)
        middle = self.join(torch.cat((self.spread(middle) + middle, self.side(joined)), 1))
        fine = self.fine(torch.cat((F.interpolate(middle, scale_factor=2, mode="nearest"), a), 1))
        back = torch.cat((self.down(fine), middle), 1)
        last = torch.cat((self.down(back[:, :8]), top), 1)
        return tuple(head(x) for head, x in zip(self.heads, (fine, back, last), strict=True))


class DenseTail(nn.Module):
    """Convolutions over all channels, in groups, dilated, of even sizes, and with reflected borders."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 12, 3, 1, 1, groups=4))
        self.wide = nn.Sequential(nn.Conv2d(12, 12, 5, 1, 4, dilation=2, groups=12), nn.SiLU())
        self.even = nn.Conv2d(12, 8, 2, 2)
        self.reflect = nn.Conv2d(8, 8, 3, 1, 1, padding_mode="reflect")
        self.strided = nn.Conv2d(12, 3, 1, 2)
        self.heads = nn.ModuleList(nn.Conv2d(n, 3, 3, 1, 1) for n in (12, 8))

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        x = self.wide(self.first(a) + b)
        y = self.reflect(self.even(x)) * torch.sigmoid(c)
        return self.heads[0](x), self.heads[1](y), self.strided(x)


class PoolingTail(nn.Module):
    """Maxima of several sizes side by side, and averages."""

    def __init__(self) -> None:
        super().__init__()
        self.pools = nn.ModuleList(nn.MaxPool2d(k, 1, k // 2) for k in (3, 5))
        self.average = nn.AvgPool2d(3, 2, 1)
        self.mix = nn.Conv2d(24, 12, 1)
        self.heads = nn.ModuleList(nn.Conv2d(n, 3, 1) for n in (12, 20, 8))

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        spread = self.mix(torch.cat((a, *(pool(a) for pool in self.pools)), 1))
        x = F.silu(self.average(spread) + F.max_pool2d(spread, 2))
        y = torch.cat((F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), c), 1)
        return self.heads[0](x + b), self.heads[1](y), self.heads[2](F.max_pool2d(c, 3, 1, 1))


class BilinearTail(nn.Module):
    """Bilinear upsampling, padding and cropping, as in Ghost-PAN."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(8, 12, 1)
        self.ghost = nn.Sequential(nn.Conv2d(12, 12, 5, padding=2, groups=12), nn.BatchNorm2d(12), nn.LeakyReLU(0.1))
        self.fine = nn.Conv2d(20, 8, 3, bias=False)
        self.heads = nn.ModuleList(nn.Conv2d(n, 3, 1) for n in (8, 24, 12))

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        top = self.reduce(c)
        x = F.interpolate(top, scale_factor=2, mode="bilinear") + b
        x = torch.cat((x, self.ghost(x)), 1)
        up = F.interpolate(x[:, :12], scale_factor=2.0, mode="bilinear", align_corners=True)
        y = self.fine(F.pad(torch.cat((a, up), 1), (1, 1, 1, 1)))
        return self.heads[0](torch.relu(y)), self.heads[1](x), self.heads[2](top)


class PiecesTail(nn.Module):
    """Parts of the channels: splits, slices, channel shuffles, products, constants, and norms that stand alone."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)
        self.spread = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.prelu = nn.PReLU(8)
        self.scale = nn.Parameter(torch.rand(1, 12, 1, 1) + 0.5)
        self.heads = nn.ModuleList(nn.Conv2d(n, 3, 1) for n in (8, 12, 8))

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        first, second = self.norm(a).chunk(2, 1)
        x = torch.cat((self.spread(first), second * 1.5 - 0.2), 1)
        n, channels, height, width = x.size()
        x = x.view(n, 2, channels // 2, height, width).transpose(1, 2).reshape(n, channels, height, width)
        y = F.gelu(b) * self.scale + F.avg_pool2d(x, 2).repeat(1, 2, 1, 1)[:, 2:14]
        return self.heads[0](F.mish(self.prelu(x))), self.heads[1](y), self.heads[2](c / (1 + c.abs()))


class GroupNormTail(nn.Module):
    """A head with a norm over the whole map."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 3, 1))

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        del b, c
        return (self.head(a),)


class SqueezeTail(nn.Module):
    """A head that weighs channels by their mean over the whole map."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        del b, c
        return (self.head(a * self.gate(a)),)


SUPPORTED = (PyramidTail, DenseTail, PoolingTail, BilinearTail, PiecesTail)


def split_of(kind: type[nn.Module], seed: int = 0) -> DetectorSplit:
    """Return a random tail of this kind; the head is not used."""
    torch.manual_seed(seed)
    tail = fx.symbolic_trace(with_lively_weights(kind(), seed))
    count = len(tail(*random_features(1)))
    cut = Cut(("a", "b", "c"), STRIDES)
    return DetectorSplit(fx.symbolic_trace(nn.Identity()), tail, cut, tuple(range(count)), SIZE)


def random_features(images: int, seed: int = 1, size: tuple[int, int] = SIZE) -> tuple[Tensor, ...]:
    """Return random features of a batch."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    return tuple(
        torch.randn(images, channels, height // stride, width // stride, generator=generator)
        for channels, stride in zip(WIDTHS, STRIDES, strict=True)
    )
