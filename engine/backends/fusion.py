"""Fuses layers of traced networks: batch norms into convolutions; on a CPU also activations and sums.

In inference mode a batch norm multiplies and shifts each channel by constants, so it can be merged into the weights of
the convolution before it. On a CPU, oneDNN applies the activation and adds the residual branch while the output of the
convolution is in the cache, and stores the weights in its own layout.
"""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from engine.split.fx_utils import shapes_of

_ACTIVATIONS: Final = (
    ("relu", (), (nn.ReLU, torch.relu, F.relu, "relu", "relu_")),
    ("hardtanh", (0.0, 6.0), (nn.ReLU6, F.relu6)),
    ("hardswish", (), (nn.Hardswish, F.hardswish)),
    ("swish", (), (nn.SiLU, F.silu)),
)
"""oneDNN's name of each activation, its parameters, and the modules and functions that compute it in a graph."""
Kind = TypeVar("Kind", bound=nn.Module)
_SUMS: Final = (operator.add, operator.iadd, torch.add)


class Activation(NamedTuple):
    """An activation in oneDNN's terms."""

    name: str = "none"
    parameters: tuple[float, ...] = ()


class FusedConvolution(nn.Module):
    """A convolution in oneDNN's layout, with an optional sum with another tensor and an activation."""

    def __init__(self, layer: nn.Conv2d, shape: tuple[int, ...], activation: Activation) -> None:
        """Pack the weights of a float32 layer, optimised for inputs of ``shape``; others also work."""
        super().__init__()
        self._settings = (list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups)
        weight = layer.weight.detach()
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *self._settings, list(shape))  # noqa: SLF001
        self._bias = None if layer.bias is None else layer.bias.detach()
        self._activation = (activation.name, list(activation.parameters), "")

    def forward(self, images: Tensor, other: Tensor | None = None) -> Tensor:
        """Return the activation of the convolution, or of its sum with ``other``."""
        operation = torch.ops.mkldnn._convolution_pointwise  # noqa: SLF001
        if other is None:
            output: Tensor = operation(images, self._weight, self._bias, *self._settings, *self._activation)
            return output
        total: Tensor = operation.binary(
            images, other, self._weight, self._bias, *self._settings, "add", 1.0, *self._activation
        )
        return total


def can_fuse_on_cpu() -> bool:
    """Return whether this torch has oneDNN's fused convolutions."""
    names = ("_reorder_convolution_weight", "_convolution_pointwise")
    return torch._C._has_mkldnn and all(hasattr(torch.ops.mkldnn, name) for name in names)  # noqa: SLF001


def trace_blocks(module: nn.Module) -> None:
    """Trace, in place, the blocks that traced parts call as a whole, such as the explained layer.

    A block that cannot be traced, or has hooks, is not changed.
    """
    for part in [part for part in module.modules() if isinstance(part, fx.GraphModule)]:
        for name in {str(node.target) for node in part.graph.nodes if node.op == "call_module"}:
            block = part.get_submodule(name)
            layers = list(block.modules())[1:]
            if not any(isinstance(layer, nn.Conv2d) for layer in layers) or isinstance(block, fx.GraphModule):
                continue
            if any(layer._forward_hooks or layer._forward_pre_hooks for layer in (block, *layers)):  # noqa: SLF001
                continue
            with suppress(Exception):  # tracing runs the network's own code, which may raise anything
                _replace(part, name, fx.symbolic_trace(block))


def fold_batch_norms(module: nn.Module) -> int:
    """Fold batch norms into the convolutions before them, in all traced parts of a module, in place.

    The module's parameters are not changed: new convolutions replace the old ones.

    Returns:
        The number of folded batch norms.
    """
    return sum(_fold(part) for part in module.modules() if isinstance(part, fx.GraphModule))


def fuse_convolutions(module: nn.Module, example: Tensor) -> int:
    """Replace the float32 convolutions of all traced parts by ``FusedConvolution``, in place.

    Args:
        module: the module, on a CPU.
        example: an example input of ``module``.

    Returns:
        The number of replaced convolutions.
    """
    return sum(_fuse(part, features) for part, features in _inputs_of(module, example))


def _fold(part: fx.GraphModule) -> int:
    calls, folded = Counter(node.target for node in part.graph.nodes if node.op == "call_module"), 0
    for node in list(part.graph.nodes):
        norm = _module(part, node, nn.BatchNorm2d)
        source = node.args[0] if norm is not None else None
        if not isinstance(source, fx.Node) or len(source.users) > 1 or calls[source.target] > 1:
            continue
        layer = _module(part, source, nn.Conv2d)
        if layer is None or norm is None or norm.running_mean is None or norm.training:
            continue
        _replace(part, str(source.target), _folded(layer, norm))
        node.replace_all_uses_with(source)
        part.graph.erase_node(node)
        folded += 1
    if folded:
        part.recompile()
    return folded


def _folded(layer: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Merge a batch norm into the convolution before it; the weights are computed in float64."""
    assert norm.running_mean is not None  # noqa: S101 - checked by the caller
    assert norm.running_var is not None  # noqa: S101 - torch sets both or neither
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() if layer.bias is None else layer.bias.detach().double() - norm.running_mean
    bias = shift * scale + (0.0 if norm.bias is None else norm.bias.detach().double())
    weight = layer.weight.detach().double() * scale[:, None, None, None]
    folded = copy.copy(layer)
    folded._parameters = {}  # noqa: SLF001 - otherwise the copy would share the layer's dictionary
    weight = weight.to(layer.weight.dtype).contiguous(memory_format=torch.channels_last)
    folded.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
    folded.register_parameter("bias", nn.Parameter(bias.to(weight.dtype), requires_grad=False))
    return folded


def _inputs_of(module: nn.Module, example: Tensor) -> Iterator[tuple[fx.GraphModule, Tensor]]:
    """Yield the traced parts that are called with one tensor, each with its first input."""
    inputs: dict[fx.GraphModule, Tensor] = {}

    def note(part: nn.Module, arguments: tuple[object, ...]) -> None:
        if isinstance(part, fx.GraphModule) and len(arguments) == 1 and isinstance(arguments[0], Tensor):
            inputs.setdefault(part, arguments[0])

    parts = [part for part in module.modules() if isinstance(part, fx.GraphModule)]
    hooks = [part.register_forward_pre_hook(note) for part in parts]
    try:
        with torch.inference_mode():
            module(example)
    finally:
        for hook in hooks:
            hook.remove()
    yield from inputs.items()


def _fuse(part: fx.GraphModule, example: Tensor) -> int:
    shapes = shapes_of(part, example)
    calls, fused = Counter(node.target for node in part.graph.nodes if node.op == "call_module"), 0
    for node in list(part.graph.nodes):
        layer = _module(part, node, nn.Conv2d)
        if layer is None or calls[node.target] > 1 or not _is_fusible(layer):
            continue
        chain, other = _followers(part, node, shapes)
        activation = _activation(part, chain[-1]) or Activation()
        _replace(part, str(node.target), FusedConvolution(layer, shapes[node.args[0]], activation))
        fused += 1
        if len(chain) == 1:
            continue
        with part.graph.inserting_before(chain[-1]):
            arguments = (node.args[0],) if other is None else (node.args[0], other)
            replacement = part.graph.call_module(str(node.target), arguments)
        shapes[replacement] = shapes[node]
        chain[-1].replace_all_uses_with(replacement)
        for done in reversed(chain):
            part.graph.erase_node(done)
    part.recompile()
    return fused


def _followers(
    part: fx.GraphModule, node: fx.Node, shapes: dict[fx.Node, tuple[int, ...]]
) -> tuple[list[fx.Node], fx.Node | None]:
    """Return the nodes that one fused operation replaces, and the other summand of their sum (None: no sum).

    The nodes are the convolution; the convolution and an activation; or the convolution, a sum and an activation.
    """
    follower = _only_user(node)
    if follower is None:
        return [node], None
    if _activation(part, follower) is not None:
        return [node, follower], None
    other, last = _other_summand(follower, node, shapes), _only_user(follower)
    if other is None or last is None or _activation(part, last) is None:
        return [node], None
    return [node, follower, last], other


def _is_fusible(layer: nn.Conv2d) -> bool:
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str) and layer.weight.dtype == torch.float32


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _other_summand(total: fx.Node, node: fx.Node, shapes: dict[fx.Node, tuple[int, ...]]) -> fx.Node | None:
    """Return the summand of ``total`` that is not ``node``; None if the shapes differ or it is no sum."""
    if total.op != "call_function" or total.target not in _SUMS or total.kwargs or len(total.args) != 2:
        return None
    others = [part for part in total.args if part is not node]
    other = others[0] if len(others) == 1 else None
    if not isinstance(other, fx.Node) or shapes.get(other) != shapes.get(node):
        return None
    return other


def _activation(part: fx.GraphModule, node: fx.Node) -> Activation | None:
    """Return the activation that a node computes; None if oneDNN does not support it."""
    if node.op == "call_module":
        form: object = type(part.get_submodule(str(node.target)))
    elif len(node.args) == 1 and not set(node.kwargs) - {"inplace"}:
        form = node.target
    else:
        return None
    return next((Activation(name, parameters) for name, parameters, forms in _ACTIVATIONS if form in forms), None)


def _module(part: fx.GraphModule, node: fx.Node, kind: type[Kind]) -> Kind | None:
    """Return the module that a node calls with one argument; None if its type is not ``kind``."""
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return None
    module = part.get_submodule(str(node.target))
    return module if type(module) is kind else None


def _replace(part: fx.GraphModule, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(part.get_submodule(parent), child, module)
