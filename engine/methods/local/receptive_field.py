"""Receptive fields of layers: the input rows and columns that each output row and column reads.

Convolution, pooling and padding read rectangles, so rows and columns are independent: one table for rows and one for
columns describe a layer, including stride, dilation, padding mode and ceil mode.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

Kind = Literal["convolution", "average", "largest", "copy"]


@dataclass(frozen=True, eq=False)
class KernelTaps:
    """The input positions that each output position reads; -1: outside the map."""

    rows: Tensor
    """Input rows of each output row, int64 (h', kh)."""
    columns: Tensor
    """Input columns of each output column, int64 (w', kw)."""

    @property
    def count(self) -> int:
        """Number of taps: input positions per output position."""
        return self.rows.shape[1] * self.columns.shape[1]


@dataclass(frozen=True, eq=False)
class SpatialOp:
    """A layer that reads a neighbourhood of each position."""

    kind: Kind
    """``convolution``; ``average`` or ``largest`` (maximum) of the taps; ``copy`` of a single tap (padding)."""
    taps: KernelTaps
    weight: Tensor | None = None
    """Weight of a convolution, (C', C / groups, kh, kw)."""
    bias: Tensor | None = None
    groups: int = 1
    scale: Tensor | None = None
    """Factor by which an average multiplies the sum of its taps inside the map: (h' * w',)."""


_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_LARGEST = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_AVERAGE = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
_ADAPTIVE = ("input", "output_size")
_MEAN = ("input", "dim", "keepdim")
_PAD = ("input", "pad", "mode", "value")

_FUNCTIONS: dict[object, tuple[str, tuple[str, ...]]] = {
    F.conv2d: ("convolution", _CONVOLUTION),
    F.max_pool2d: ("largest", _LARGEST),
    torch.max_pool2d: ("largest", _LARGEST),
    F.avg_pool2d: ("average", _AVERAGE),
    F.adaptive_avg_pool2d: ("adaptive average", _ADAPTIVE),
    F.adaptive_max_pool2d: ("adaptive largest", _ADAPTIVE),
    torch.mean: ("mean", _MEAN),
    "mean": ("mean", _MEAN),
    F.pad: ("pad", _PAD),
}

_MODULES: dict[type[nn.Module], tuple[str, tuple[str, ...]]] = {
    nn.Conv2d: ("convolution", _CONVOLUTION[1:]),
    nn.MaxPool2d: ("largest", _LARGEST[1:]),
    nn.AvgPool2d: ("average", _AVERAGE[1:]),
    nn.AdaptiveAvgPool2d: ("adaptive average", _ADAPTIVE[1:]),
    nn.AdaptiveMaxPool2d: ("adaptive largest", _ADAPTIVE[1:]),
    nn.ZeroPad2d: ("constant pad", ("padding",)),
    nn.ConstantPad2d: ("constant pad", ("padding",)),
    nn.ReflectionPad2d: ("reflect pad", ("padding",)),
    nn.ReplicationPad2d: ("replicate pad", ("padding",)),
    nn.CircularPad2d: ("circular pad", ("padding",)),
}


def read_spatial(
    root: nn.Module, node: fx.Node, arguments: tuple[tuple[Any, ...], dict[str, Any]], before: Tensor, after: Tensor
) -> SpatialOp | None:
    """Return the spatial operation of a node; None if the node is no supported layer.

    Args:
        root: the module that contains the node's module.
        node: the layer in the graph.
        arguments: the layer's positional and keyword arguments as values; the first is ``before``.
        before: the layer's input, (1, C, h, w).
        after: the layer's output.
    """
    values, keywords = arguments
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        kind, names = _MODULES.get(type(module), ("", ()))
        options = {name: getattr(module, name, None) for name in names}
        options["padding_mode"] = getattr(module, "padding_mode", "zeros")
        layer: Callable[[Tensor], Tensor] = module
    else:
        kind, names = _FUNCTIONS.get(node.target, ("", ()))
        options = dict(zip(names, values, strict=False)) | keywords
        call: Any = getattr(torch.Tensor, node.target) if isinstance(node.target, str) else node.target

        def layer(maps: Tensor) -> Tensor:
            output: Tensor = call(maps, *values[1:], **{k: v for k, v in keywords.items() if k != "input"})
            return output

    return _read(kind, options, before, after, layer) if kind else None


def _read(  # noqa: PLR0911 - one return for each kind of layer
    kind: str, options: dict[str, Any], before: Tensor, after: Tensor, layer: Callable[[Tensor], Tensor]
) -> SpatialOp | None:
    if options.get("return_indices"):
        return None
    grid_in = (before.shape[2], before.shape[3])
    if kind == "mean":
        dims = options.get("dim")
        if not isinstance(dims, list | tuple) or sorted(int(d) % 4 for d in dims) != [2, 3] or "dtype" in options:
            return None
        return _averaging(_adaptive(grid_in, (1, 1)), before, layer)
    if after.dim() != 4:
        return None
    grid_out = (after.shape[2], after.shape[3])
    grids = (grid_in, grid_out)
    if kind == "convolution":
        return _convolution(options, grid_in, grid_out)
    if kind.startswith("adaptive"):
        taps = _adaptive(grid_in, grid_out)
        return _averaging(taps, before, layer) if kind.endswith("average") else SpatialOp("largest", taps)
    if kind.endswith("pad"):
        pads: Any = options.get("pad", options.get("padding"))
        return _padding(pads, kind.partition(" ")[0] if " " in kind else options.get("mode", "constant"), grids)
    kernel = _pair(options["kernel_size"])
    strides = _pair(options.get("stride") or kernel)
    slides = map(_Slide, kernel, strides, _pair(options.get("padding") or 0), _pair(options.get("dilation") or 1))
    taps = KernelTaps(*map(_sliding, grid_in, grid_out, slides))
    return SpatialOp("largest", taps) if kind == "largest" else _averaging(taps, before, layer)


def _convolution(options: dict[str, Any], grid_in: tuple[int, int], grid_out: tuple[int, int]) -> SpatialOp:
    weight: Tensor = options["weight"]
    kernel = (weight.shape[2], weight.shape[3])
    strides, dilations = _pair(options.get("stride") or 1), _pair(options.get("dilation") or 1)
    padding = options.get("padding") or 0
    if padding == "valid":
        padding = 0
    if padding == "same":
        padding = tuple(d * (k - 1) // 2 for d, k in zip(dilations, kernel, strict=True))
    mode = options.get("padding_mode", "zeros")
    slides = map(_Slide, kernel, strides, _pair(padding), dilations, (mode, mode))
    taps = KernelTaps(*map(_sliding, grid_in, grid_out, slides))
    return SpatialOp("convolution", taps, weight, options.get("bias"), int(options.get("groups") or 1))


def _padding(pads: tuple[int, ...], mode: str, grids: tuple[tuple[int, int], tuple[int, int]]) -> SpatialOp | None:
    """Return padding as ``copy``; the padding constant does not depend on masks and is ignored."""
    if len(pads) not in {2, 4}:
        return None
    left, top = int(pads[0]), int(pads[2]) if len(pads) == 4 else 0
    mode = "zeros" if mode == "constant" else mode
    slides = (_Slide(1, 1, top, mode=mode), _Slide(1, 1, left, mode=mode))
    return SpatialOp("copy", KernelTaps(*map(_sliding, *grids, slides)))


def _averaging(taps: KernelTaps, before: Tensor, layer: Callable[[Tensor], Tensor]) -> SpatialOp:
    """Return an average; its factors are measured by running the layer on a map of ones."""
    inside = (taps.rows >= 0).sum(1)[:, None] * (taps.columns >= 0).sum(1)[None]
    ones = layer(torch.ones_like(before[:, :1])).flatten()
    return SpatialOp("average", taps, scale=ones / inside.flatten().clamp_min(1).to(ones))


class _Slide(NamedTuple):
    """A sliding window along one axis."""

    kernel: int
    stride: int
    pad: int
    dilation: int = 1
    mode: str = "zeros"


def _sliding(size: int, count: int, slide: _Slide) -> Tensor:
    """Return the taps of a sliding window: (count, kernel)."""
    first = np.arange(count)[:, None] * slide.stride - slide.pad
    positions = first + np.arange(slide.kernel)[None] * slide.dilation
    if slide.mode == "replicate":
        positions = positions.clip(0, size - 1)
    elif slide.mode == "reflect":
        positions = np.abs(positions)
        positions = np.where(positions >= size, 2 * (size - 1) - positions, positions)
    elif slide.mode == "circular":
        positions %= size
    return torch.from_numpy(np.where((positions >= 0) & (positions < size), positions, -1))


def _adaptive(grid_in: tuple[int, int], grid_out: tuple[int, int]) -> KernelTaps:
    """Return the taps of adaptive pooling: output i of n reads floor(i size / n) to ceil((i + 1) size / n)."""
    tables = []
    for size, count in zip(grid_in, grid_out, strict=True):
        first = np.arange(count) * size // count
        last = -(-(np.arange(count) + 1) * size // count)
        positions = first[:, None] + np.arange(int((last - first).max()))[None]
        tables.append(torch.from_numpy(np.where(positions < last[:, None], positions, -1)))
    return KernelTaps(*tables)


def _pair(value: Any) -> tuple[int, int]:  # noqa: ANN401 - torch takes an int, a tuple or a list of one or two
    values = list(value) if isinstance(value, list | tuple) else [value]
    return int(values[0]), int(values[-1])
