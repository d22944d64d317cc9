"""Computes the cone of an anchor: the cells of earlier maps that its score depends on."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Final, cast

import torch
from torch import fx, nn
from torch.nn import functional as F

from engine.detectors.graph import Network
from engine.detectors.outputs import Read

Span = tuple[int, int, int, int]
"""First and last row, first and last column, all inclusive."""

_EVERYTHING: Final = 1 << 30
_ELEMENTWISE: Final = {
    operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, torch.add, torch.sub, torch.mul,
    torch.div, torch.cat, torch.sigmoid, torch.relu, torch.clamp, torch.chunk, torch.split, torch.tanh, F.relu, F.relu6,
    F.silu, F.hardswish, F.hardsigmoid, F.leaky_relu, F.sigmoid, F.gelu, F.dropout, F.normalize,
}  # fmt: skip
_ELEMENTWISE_METHODS: Final = {"add", "sub", "mul", "div", "sigmoid", "relu", "clamp", "chunk", "split", "contiguous"}
_ELEMENTWISE_MODULES: Final = (
    nn.SiLU, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.Sigmoid, nn.Hardswish, nn.Hardsigmoid, nn.GELU, nn.Tanh,
    nn.Hardtanh, nn.Identity, nn.ChannelShuffle, nn.Dropout, nn.BatchNorm2d, nn.ELU, nn.Mish,
)  # fmt: skip


def needed_spans(network: Network, reads: Iterable[Read], stops: Sequence[fx.Node] = ()) -> dict[str, Span]:
    """Return, for each map between ``stops`` and ``reads``, the span of cells that the reads need.

    Keys are node names. Spans are upper bounds, clipped to their maps. A node that mixes all places, such as a global
    pooling, a group norm or attention, needs its whole input.
    """
    needed: dict[fx.Node, Span] = {}
    for read in reads:
        _join(needed, network.outputs[read.map], (read.row, read.row, read.column, read.column))
    parts = dict(network.module.named_modules())
    stopped = set(stops)
    for node in reversed(list(network.module.graph.nodes)):
        if node not in needed:
            continue
        span = needed[node] = _clip(network, node, needed[node])
        if node in stopped or node.op == "placeholder":
            continue
        for source in node.all_input_nodes:
            _join(needed, source, _source_span(network, parts, node, source, span))
    return {node.name: _clip(network, node, span) for node, span in needed.items() if network.is_map(node)}


def _join(needed: dict[fx.Node, Span], node: fx.Node, span: Span) -> None:
    old = needed.get(node, span)
    needed[node] = (
        min(old[0], span[0]), max(old[1], span[1]), min(old[2], span[2]), max(old[3], span[3]),
    )  # fmt: skip


def _clip(network: Network, node: fx.Node, span: Span) -> Span:
    if not network.is_map(node):
        return span
    rows, columns = network.shapes[node.name][2:]
    return max(span[0], 0), min(span[1], rows - 1), max(span[2], 0), min(span[3], columns - 1)


def _source_span(
    network: Network, parts: dict[str, nn.Module], node: fx.Node, source: fx.Node, span: Span
) -> Span:  # fmt: skip
    everything = (0, _EVERYTHING, 0, _EVERYTHING)
    part = parts.get(str(node.target)) if node.op == "call_module" else None
    if isinstance(part, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        return _windowed(part, span)
    if node.target is F.pad:
        left, _, top, _ = cast("tuple[int, int, int, int]", node.args[1])
        return span[0] - top, span[1] - top, span[2] - left, span[3] - left
    if (upsampling := _upsampling(network, part, node, source)) is not None:
        up, across, spread = upsampling
        rows = (span[0] - spread * up) // up, (span[1] + spread * up) // up
        return (*rows, (span[2] - spread * across) // across, (span[3] + spread * across) // across)
    if is_elementwise(part, node) or _keeps_places(network, node, source):
        return _broadcast(network, source, span)
    return everything


def _windowed(part: nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d, span: Span) -> Span:
    kernel, stride, padding = _pair(part.kernel_size), _pair(part.stride), _pair(part.padding)
    dilation = (1, 1) if isinstance(part, nn.AvgPool2d) else _pair(part.dilation)
    rows, columns = (
        (first * s - p, last * s - p + (k - 1) * d)
        for (first, last), k, s, p, d in zip((span[:2], span[2:]), kernel, stride, padding, dilation, strict=True)
    )
    return (*rows, *columns)


def _pair(value: int | str | tuple[int, ...]) -> tuple[int, int]:
    """Return a convolution's setting as (rows, columns); padding by name does not occur in detectors."""
    return (int(value), int(value)) if isinstance(value, int | str) else (value[0], value[1])


def _upsampling(
    network: Network, part: nn.Module | None, node: fx.Node, source: fx.Node
) -> tuple[int, int, int] | None:  # fmt: skip
    """Return an upsampling's row factor, column factor and extra cells read; None for other nodes."""
    mode = part.mode if isinstance(part, nn.Upsample) else node.kwargs.get("mode", "nearest")
    is_resize = isinstance(part, nn.Upsample) or node.target is F.interpolate
    if not is_resize or not (network.is_map(node) and network.is_map(source)):
        return None
    new, old = network.shapes[node.name][2:], network.shapes[source.name][2:]
    if any(n % o for n, o in zip(new, old, strict=True)) or mode not in {"nearest", "bilinear"}:
        return None
    return new[0] // old[0], new[1] // old[1], 0 if mode == "nearest" else 1


def is_elementwise(part: nn.Module | None, node: fx.Node) -> bool:
    """Return whether a node computes each cell only from the same cell of its inputs."""
    if part is not None:
        return isinstance(part, _ELEMENTWISE_MODULES)
    if node.op == "call_method":
        return node.target in _ELEMENTWISE_METHODS
    if node.target is operator.getitem:
        window = node.args[1]
        return isinstance(window, int) or all(part == slice(None) for part in cast("tuple[object, ...]", window)[2:])
    return node.op == "call_function" and node.target in _ELEMENTWISE


def _keeps_places(network: Network, node: fx.Node, source: fx.Node) -> bool:
    """Return whether a reshape or permutation moves only channels, such as a channel shuffle."""
    if node.target is torch.index_select:
        return bool(node.args[1] == 1)
    if node.target not in {"view", "reshape", "transpose", "permute", torch.reshape, torch.transpose, torch.permute}:
        return False
    new, old = network.shapes.get(node.name, ()), network.shapes.get(source.name, ())
    if len(new) < 3 or len(old) < 3 or new[-2:] != old[-2:]:
        return False
    if node.target in {"transpose", torch.transpose}:
        return all(0 <= axis < len(old) - 2 for axis in node.args[1:] if isinstance(axis, int))
    return node.target in {"view", "reshape", torch.reshape}


def _broadcast(network: Network, source: fx.Node, span: Span) -> Span:
    if network.is_map(source) and network.shapes[source.name][2:] == (1, 1):
        return 0, 0, 0, 0
    return span
