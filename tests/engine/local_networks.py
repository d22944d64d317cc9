"""Small networks drawn at random, and the comparison of a local plan with the definition."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from engine.methods.kernels import Kernel
from engine.methods.local.builder import find_local
from engine.methods.local.plan import LocalPlan
from engine.methods.plan import reference_scores
from engine.split.network import SplitModel

BUDGET = 1 << 28
KERNELS: tuple[Kernel, ...] = ("point", "gaussian")


def settle(net: nn.Module, size: tuple[int, int]) -> nn.Module:
    """Set batch norms to the statistics of random images: as initialised, a deep network has the same output for all
    images.
    """
    net.train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        net(torch.randn(4, 3, *size))
    return net.eval()


def everywhere(features: Tensor) -> Tensor:
    return torch.arange(features.shape[2] * features.shape[3])


def assert_exact(
    plan: LocalPlan, split: SplitModel, features: Tensor, kernel: Kernel, cells: Tensor | None = None
) -> None:
    """Compare class scores before the softmax, measured against what masking changes at all."""
    cells = everywhere(features) if cells is None else cells
    with torch.inference_mode():
        true = reference_scores(split.tail, features, kernel, cells)
        result = plan.cell_logits(features, cells)
        blank = split.tail(torch.zeros_like(features))[:, None]
    signal = float((true - blank).abs().max())
    assert signal > 0
    assert result.shape == true.shape
    assert float((result - true).abs().max()) <= 1e-4 * signal + 2e-6 * float(true.abs().max())


def local_of(split: SplitModel, features: Tensor, kernel: Kernel, budget: int = BUDGET) -> LocalPlan:
    plan = find_local(split.tail, features, kernel, budget)
    assert plan is not None
    return plan


def head_of(split: SplitModel, count: int = 1) -> Tensor:
    with torch.inference_mode():
        features = split.head(torch.randn(count, 3, *split.image_size))
    return features.clone()


class Residual(nn.Module):
    def __init__(self, width: int, dilation: int, groups: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, groups=groups)
        self.norm = nn.BatchNorm2d(width)
        self.two = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.two(F.hardswish(self.norm(self.one(x)))) + x)


class Dense(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.one = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.one(self.norm(x).relu())], 1)


class Halves(nn.Module):
    """A channel split whose halves share memory, one kept as it is, and a shuffle."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(width // 2, width // 2, 3, padding=1, groups=width // 2)

    def forward(self, x: Tensor) -> Tensor:
        features, changed = x.chunk(2, dim=1)
        out = torch.cat((features, F.relu(self.one(changed))), dim=1)
        count, width, rows, columns = out.size()
        return out.view(count, 2, width // 2, rows, columns).transpose(1, 2).reshape(count, width, rows, columns)


class CellNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.full((width, 1, 1), 0.7))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * F.gelu(self.linear(self.norm(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)


class SqueezeExcite(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


@st.composite
def layers(draw: st.DrawFn) -> list[nn.Module]:
    width, layers_made = 8, []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(
            st.sampled_from(["conv", "conv", "depthwise", "max", "mean", "res", "dense", "half", "cell", "pad"])
        )
        k, s = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        if kind == "conv":
            dilation, groups = draw(st.integers(1, 2)), draw(st.sampled_from([1, 1, 2, 4]))
            mode = draw(st.sampled_from(["zeros", "zeros", "replicate", "reflect", "circular"]))
            out = draw(st.sampled_from([4, 8, 12]))
            layers_made += [
                nn.Conv2d(width, out, k, s, draw(st.integers(0, 2)), dilation, groups, padding_mode=mode),
                nn.BatchNorm2d(out) if draw(st.booleans()) else nn.Identity(),
                draw(st.sampled_from([nn.ReLU(inplace=True), nn.Hardswish(), nn.Identity(), nn.Dropout()])),
            ]
            width = out
        elif kind == "depthwise":
            layers_made += [nn.Conv2d(width, width, 5, s, padding=2, groups=width), nn.SiLU(inplace=True)]
        elif kind == "max":
            layers_made.append(nn.MaxPool2d(k, s, draw(st.integers(0, k // 2)), ceil_mode=draw(st.booleans())))
        elif kind == "mean":
            include, ceil = draw(st.booleans()), draw(st.booleans())
            layers_made.append(nn.AvgPool2d(k, s, draw(st.integers(0, k // 2)), ceil, include))
        elif kind == "pad":
            added = draw(st.sampled_from([nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d]))
            layers_made.append(nn.Sequential(added((0, 1, 2, 0)), nn.Conv2d(width, width, 2)))
        elif kind == "dense":
            layers_made.append(Dense(width))
            width += 4
        else:
            layers_made.append({"res": Residual(width, k, 2), "half": Halves(width), "cell": CellNorm(width)}[kind])
    return layers_made


def small_net(layers: list[nn.Module], size: tuple[int, int], end: nn.Module | None = None) -> nn.Module:
    """Put layers between a stem and a classifier, without those that this size is too small for."""
    net = nn.Sequential()
    net.add_module("stem", nn.Conv2d(3, 8, 3, padding=1))
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        x = net(x)
        for number, layer in enumerate(layers):
            try:
                y = layer.eval()(x)
            except RuntimeError:
                continue
            if y.shape[2] * y.shape[3] > 0:
                net.add_module(f"layer{number}", layer)
                x = y
    net.add_module("pool", end or nn.AdaptiveAvgPool2d(1))
    net.add_module("flat", nn.Flatten())
    with torch.no_grad():
        net.add_module("fc", nn.Linear(net(torch.randn(1, 3, *size)).shape[1], 5))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return net.eval()
