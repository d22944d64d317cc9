"""Translates ONNX operators to modules and functions of PyTorch.

Only operators between the image and a detector's last convolutions are translated; ``OPERATORS`` has one function for
each. Values that depend only on constants are computed while the file is read.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pipeline.errors import ModelError


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor that depends on the image: its node and its value for a probe."""

    node: fx.Node
    probe: Tensor


Operand = Value | NDArray[Any] | None
"""A tensor in the file: computed from the image, constant, or None for an omitted input."""


@dataclass(eq=False)
class GraphBuilder:
    """Builds a graph module, and computes a probe image through it at the same time."""

    root: nn.Module = field(default_factory=nn.Module)
    graph: fx.Graph = field(default_factory=fx.Graph)

    def call(self, name: str, module: nn.Module, source: Value) -> Value:
        """Add a call of a module."""
        key = f"m{len(list(self.root.children()))}"
        self.root.add_module(key, module.eval().requires_grad_(requires_grad=False))
        node = self.graph.create_node("call_module", key, (source.node,), {}, _identifier(name))
        node.meta["tensor"] = name
        return Value(node, module(source.probe))

    def apply(self, name: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Value:  # noqa: ANN401
        """Add a call of a function on values and Python constants; an array becomes a buffer."""
        nodes, probes = [], []
        for argument in arguments:
            node, probe = self._operand(argument)
            nodes.append(node)
            probes.append(probe)
        node = self.graph.create_node("call_function", function, tuple(nodes), options, _identifier(name))
        node.meta["tensor"] = name
        return Value(node, function(*probes, **options))

    def _operand(self, argument: Any) -> tuple[Any, Any]:  # noqa: ANN401
        if isinstance(argument, Value):
            return argument.node, argument.probe
        if isinstance(argument, np.ndarray):
            if argument.size == 1 and argument.dtype.kind == "f":
                return float(argument.item()), float(argument.item())
            tensor = torch.from_numpy(np.array(argument))
            key = f"c{len(list(self.root.buffers()))}"
            self.root.register_buffer(key, tensor)
            return self.graph.get_attr(key), tensor
        if isinstance(argument, list) and all(isinstance(item, Value) for item in argument):
            return [item.node for item in argument], [item.probe for item in argument]
        return argument, argument


def _identifier(name: str) -> str:
    plain = "".join(c if c.isalnum() else "_" for c in name)
    return plain if plain[:1].isalpha() else f"t{plain}"


Attributes = Mapping[str, Any]
Translate = Callable[[GraphBuilder, str, Sequence[Operand], Attributes], "Value | Sequence[Value]"]


def computed(operand: Operand) -> Value:
    """Return ``operand`` if it depends on the image.

    Raises:
        ModelError: the operand is a constant.
    """
    if not isinstance(operand, Value):
        raise ModelError("an operator has a constant input where a map is expected")
    return operand


def constant(operands: Sequence[Operand], index: int) -> NDArray[Any] | None:
    """Return an optional constant operand; None if it is omitted.

    Raises:
        ModelError: the operand depends on the image.
    """
    operand = operands[index] if index < len(operands) else None
    if isinstance(operand, Value):
        raise ModelError("an operator's parameter depends on the image")
    return operand


def _parameter(operands: Sequence[Operand], index: int) -> Tensor | None:
    values = constant(operands, index)
    return None if values is None else torch.from_numpy(np.array(values, dtype=np.float32))


def _padding(attributes: Attributes, source: Tensor, kernel: Sequence[int]) -> tuple[int, int, int, int]:
    """Return the padding at (top, left, bottom, right)."""
    automatic = attributes.get("auto_pad", b"NOTSET")
    if automatic in {b"SAME_UPPER", b"SAME_LOWER"}:
        strides = attributes.get("strides", [1, 1])
        dilations = attributes.get("dilations", [1, 1])
        sides = []
        for size, k, s, d in zip(source.shape[2:], kernel, strides, dilations, strict=True):
            total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
            small = total // 2
            sides.append((small, total - small) if automatic == b"SAME_UPPER" else (total - small, small))
        return sides[0][0], sides[1][0], sides[0][1], sides[1][1]
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    return int(top), int(left), int(bottom), int(right)


def _padded(
    builder: GraphBuilder, name: str, source: Value, padding: tuple[int, int, int, int], value: float
) -> tuple[Value, tuple[int, int]]:
    """Add unequal padding before the operator; return the source and the remaining symmetric padding."""
    top, left, bottom, right = padding
    if (top, left) == (bottom, right):
        return source, (top, left)
    return builder.apply(f"{name}_pad", F.pad, source, (left, right, top, bottom), value=value), (0, 0)


def _conv(builder: GraphBuilder, name: str, operands: Sequence[Operand], attributes: Attributes) -> Value:
    weight, bias = _parameter(operands, 1), _parameter(operands, 2)
    if weight is None or weight.dim() != 4:
        raise ModelError("a convolution is not two-dimensional")
    source = computed(operands[0])
    kernel = (int(weight.shape[2]), int(weight.shape[3]))
    source, padding = _padded(builder, name, source, _padding(attributes, source.probe, kernel), 0.0)
    groups = int(attributes.get("group", 1))
    module = nn.Conv2d(
        weight.shape[1] * groups, weight.shape[0], kernel, tuple(attributes.get("strides", (1, 1))), padding,
        tuple(attributes.get("dilations", (1, 1))), groups, bias=bias is not None,
    )  # fmt: skip
    module.weight.data = weight
    if module.bias is not None and bias is not None:
        module.bias.data = bias
    return builder.call(name, module, source)


def _batch_norm(builder: GraphBuilder, name: str, operands: Sequence[Operand], attributes: Attributes) -> Value:
    weight, bias, mean, variance = (_parameter(operands, k) for k in range(1, 5))
    if weight is None or bias is None or mean is None or variance is None:
        raise ModelError("a batch norm has no parameters")
    module = nn.BatchNorm2d(len(weight), eps=float(attributes.get("epsilon", 1e-5)))
    state = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": variance}
    module.load_state_dict(state, strict=False)
    return builder.call(name, module, computed(operands[0]))


def _max_pool(builder: GraphBuilder, name: str, operands: Sequence[Operand], attributes: Attributes) -> Value:
    kernel = attributes["kernel_shape"]
    source = computed(operands[0])
    padding = _padding(attributes, source.probe, kernel)
    source, symmetric = _padded(builder, name, source, padding, float("-inf"))
    module = nn.MaxPool2d(
        tuple(kernel), tuple(attributes.get("strides", (1, 1))), symmetric, tuple(attributes.get("dilations", (1, 1))),
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
    )  # fmt: skip
    return builder.call(name, module, source)


def _average_pool(builder: GraphBuilder, name: str, operands: Sequence[Operand], attributes: Attributes) -> Value:
    source, kernel = computed(operands[0]), attributes["kernel_shape"]
    top, left, bottom, right = _padding(attributes, source.probe, kernel)
    if (top, left) != (bottom, right):
        raise ModelError("an average pooling has unequal padding on opposite sides")
    module = nn.AvgPool2d(
        tuple(kernel), tuple(attributes.get("strides", (1, 1))), (top, left), bool(attributes.get("ceil_mode", 0)),
        count_include_pad=bool(attributes.get("count_include_pad", 0)),
    )  # fmt: skip
    return builder.call(name, module, source)


def _global_pool(builder: GraphBuilder, name: str, operands: Sequence[Operand], attributes: Attributes) -> Value:  # noqa: ARG001
    return builder.call(name, nn.AdaptiveAvgPool2d(1), computed(operands[0]))


def _mean(builder: GraphBuilder, name: str, operands: Sequence[Operand], attributes: Attributes) -> Value:
    axes = constant(operands, 1)
    axes = np.array(attributes.get("axes", [])) if axes is None else axes
    source = computed(operands[0])
    if sorted(int(a) % 4 for a in axes) == [2, 3] and source.probe.dim() == 4 and attributes.get("keepdims", 1):
        return builder.call(name, nn.AdaptiveAvgPool2d(1), source)
    raise ModelError("a mean is over other dimensions than rows and columns")


def _clip(builder: GraphBuilder, name: str, operands: Sequence[Operand], attributes: Attributes) -> Value:
    bounds = []
    for index, key, default in ((1, "min", -np.inf), (2, "max", np.inf)):
        values = constant(operands, index)
        bounds.append(float(attributes.get(key, default)) if values is None else float(values.item()))
    low, high = bounds
    module = nn.ReLU6() if (low, high) == (0.0, 6.0) else nn.Hardtanh(low, high)
    return builder.call(name, module, computed(operands[0]))


def _prelu(builder: GraphBuilder, name: str, operands: Sequence[Operand], attributes: Attributes) -> Value:  # noqa: ARG001
    slope = _parameter(operands, 1)
    if slope is None:
        raise ModelError("a PRelu has no slope")
    module = nn.PReLU(slope.numel())
    module.weight.data = slope.flatten()
    return builder.call(name, module, computed(operands[0]))


def _hard_sigmoid(builder: GraphBuilder, name: str, operands: Sequence[Operand], attributes: Attributes) -> Value:
    alpha, beta = float(attributes.get("alpha", 0.2)), float(attributes.get("beta", 0.5))
    source = computed(operands[0])
    if abs(alpha - 1 / 6) < 1e-5 and beta == 0.5:
        return builder.call(name, nn.Hardsigmoid(), source)
    scaled = builder.apply(f"{name}_scaled", operator.mul, source, alpha)
    scaled = builder.apply(f"{name}_shifted", operator.add, scaled, beta)
    return builder.call(name, nn.Hardtanh(0.0, 1.0), scaled)


def _slice(builder: GraphBuilder, name: str, operands: Sequence[Operand], attributes: Attributes) -> Value:
    source = computed(operands[0])
    starts, stops = (
        np.array(attributes[key]) if index >= len(operands) else constant(operands, index)
        for index, key in ((1, "starts"), (2, "ends"))
    )
    if starts is None or stops is None:
        raise ModelError("a slice has no bounds")
    axes, steps = constant(operands, 3), constant(operands, 4)
    axes = np.array(attributes.get("axes", range(len(starts)))) if axes is None else axes
    steps = np.ones(len(starts), int) if steps is None else steps
    if min(steps) < 1:
        raise ModelError("a slice has a negative step")
    window = [slice(None)] * source.probe.dim()
    for start, stop, axis, step in zip(starts, stops, axes, steps, strict=True):
        size = source.probe.shape[int(axis)]
        low = max(int(start) + size, 0) if start < 0 else min(int(start), size)
        high = max(int(stop) + size, 0) if stop < 0 else min(int(stop), size)
        whole = high == size and (axis % source.probe.dim()) >= 2
        window[int(axis)] = slice(low, None if whole else high, int(step))
    return builder.apply(name, operator.getitem, source, tuple(window))


def _split(builder: GraphBuilder, name: str, operands: Sequence[Operand], attributes: Attributes) -> list[Value]:
    source, axis = computed(operands[0]), int(attributes.get("axis", 0))
    sizes = constant(operands, 1)
    sizes = np.array(attributes.get("split", [])) if sizes is None else sizes
    size, count = source.probe.shape[axis], int(attributes.get("num_outputs", 2))
    if not len(sizes):
        each = -(-size // count)
        sizes = np.array([min(each, size - k * each) for k in range(count)])
    ends = np.cumsum(sizes)
    window = [slice(None)] * source.probe.dim()
    parts = []
    for k, (end, length) in enumerate(zip(ends, sizes, strict=True)):
        window[axis] = slice(int(end - length), int(end))
        parts.append(builder.apply(f"{name}_{k}", operator.getitem, source, tuple(window)))
    return parts


def _gather(builder: GraphBuilder, name: str, operands: Sequence[Operand], attributes: Attributes) -> Value:
    source, axis = computed(operands[0]), int(attributes.get("axis", 0))
    indices = constant(operands, 1)
    if indices is None or indices.ndim != 1:
        raise ModelError("a Gather has no list of indices")
    indices = indices.astype(np.int64) % source.probe.shape[axis]
    if axis == 1 and (groups := _shuffled_groups(indices)):
        # OpenVINO 2026.4 computes a 1x1 convolution after a Gather of channels wrongly, and this form correctly.
        return builder.call(name, nn.ChannelShuffle(groups), source)
    return builder.apply(name, torch.index_select, source, axis, indices)


def _shuffled_groups(indices: NDArray[np.int64]) -> int:
    """Return the number of groups of a channel shuffle, as in ShuffleNet; 0 for another order."""
    groups = len(indices) // int(indices[1]) if len(indices) > 1 and indices[1] > 1 else 0
    if groups < 2 or len(indices) % groups:
        return 0
    return groups if np.array_equal(indices, np.arange(len(indices)).reshape(groups, -1).T.ravel()) else 0


def _resize(builder: GraphBuilder, name: str, operands: Sequence[Operand], attributes: Attributes) -> Value:
    source = computed(operands[0])
    mode = attributes.get("mode", b"nearest").decode()
    coordinates = attributes.get("coordinate_transformation_mode", b"half_pixel").decode()
    scales = constant(operands, 1 if len(operands) == 2 else 2)
    sizes = constant(operands, 3)
    if sizes is not None and sizes.size:
        scales = np.array([n / o for n, o in zip(sizes, source.probe.shape, strict=True)])
    if scales is None or scales.size != 4 or tuple(scales[:2]) != (1, 1):
        raise ModelError("a Resize changes other dimensions than rows and columns")
    factor = (float(scales[2]), float(scales[3]))
    whole = all(f == int(f) for f in factor)
    if mode == "nearest" and whole:  # other rounding rules fail the verification against the runtime
        return builder.call(name, nn.Upsample(scale_factor=factor, mode="nearest"), source)
    if mode == "linear" and coordinates in {"half_pixel", "pytorch_half_pixel"}:
        return builder.call(name, nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=False), source)
    raise ModelError(f"a Resize by {factor[0]:g} with mode {mode}, {coordinates}, is not supported")


def _reshape(builder: GraphBuilder, name: str, operands: Sequence[Operand], attributes: Attributes) -> Value:  # noqa: ARG001
    source, shape = computed(operands[0]), constant(operands, 1)
    if shape is None:
        raise ModelError("a Reshape has no shape")
    sizes = [source.probe.shape[k] if size == 0 else int(size) for k, size in enumerate(shape)]
    if -1 not in sizes and sizes[0] == len(source.probe):
        sizes[0] = -1  # the batch size is dynamic
    return builder.apply(name, torch.reshape, source, tuple(sizes))


def _transpose(builder: GraphBuilder, name: str, operands: Sequence[Operand], attributes: Attributes) -> Value:
    source = computed(operands[0])
    order = attributes.get("perm", range(source.probe.dim())[::-1])
    return builder.apply(name, torch.permute, source, tuple(int(k) for k in order))


def _concat(builder: GraphBuilder, name: str, operands: Sequence[Operand], attributes: Attributes) -> Value:
    return builder.apply(name, torch.cat, [computed(operand) for operand in operands], int(attributes["axis"]))


def _softmax(builder: GraphBuilder, name: str, operands: Sequence[Operand], attributes: Attributes) -> Value:
    return builder.call(name, nn.Softmax(dim=int(attributes.get("axis", -1))), computed(operands[0]))


def _leaky_relu(builder: GraphBuilder, name: str, operands: Sequence[Operand], attributes: Attributes) -> Value:
    return builder.call(name, nn.LeakyReLU(float(attributes.get("alpha", 0.01))), computed(operands[0]))


def _module(make: Callable[[], nn.Module]) -> Translate:
    def translate(builder: GraphBuilder, name: str, operands: Sequence[Operand], attributes: Attributes) -> Value:
        del attributes
        return builder.call(name, make(), computed(operands[0]))

    return translate


def _function(function: Callable[..., Any]) -> Translate:
    def translate(builder: GraphBuilder, name: str, operands: Sequence[Operand], attributes: Attributes) -> Value:
        del attributes
        return builder.apply(name, function, *operands)

    return translate


OPERATORS: Final[dict[str, Translate]] = {
    "Add": _function(operator.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _module(nn.Identity),
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "Div": _function(operator.truediv),
    "Dropout": _module(nn.Identity),
    "Elu": _module(nn.ELU),
    "Exp": _function(torch.exp),
    "Gather": _gather,
    "Gelu": _module(nn.GELU),
    "GlobalAveragePool": _global_pool,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _module(nn.Hardswish),
    "Identity": _module(nn.Identity),
    "LeakyRelu": _leaky_relu,
    "MatMul": _function(torch.matmul),
    "MaxPool": _max_pool,
    "Mish": _module(nn.Mish),
    "Mul": _function(operator.mul),
    "PRelu": _prelu,
    "ReduceMean": _mean,
    "Relu": _module(nn.ReLU),
    "Reshape": _reshape,
    "Resize": _resize,
    "Sigmoid": _module(nn.Sigmoid),
    "Slice": _slice,
    "Softmax": _softmax,
    "Softplus": _module(nn.Softplus),
    "Split": _split,
    "Sqrt": _function(torch.sqrt),
    "Sub": _function(operator.sub),
    "Tanh": _module(nn.Tanh),
    "Transpose": _transpose,
    "Upsample": _resize,
}
"""The supported operators by name."""
