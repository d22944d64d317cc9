"""Normalises a detector to a ``torch.fx`` graph from images to a flat tuple of raw maps.

The graph is for one image size: Python values that depend on shapes become constants. Batch norms are merged into the
convolutions before them, and nothing is computed in place, so the output of each node stays valid.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn.utils.fusion import fuse_conv_bn_eval

from engine.split.fx_utils import iter_node_outputs
from pipeline.errors import EngineError

_OUT_OF_PLACE: dict[Callable[..., Any], Callable[..., Any]] = {
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Network:
    """A normalised detector for one image size."""

    module: fx.GraphModule
    """Computes a tuple of raw maps (N, C, h, w) from images (N, 3, H, W)."""
    image_size: tuple[int, int]
    """Height and width in pixels."""
    shapes: dict[str, tuple[int, ...]] = field(repr=False)
    """Output shapes for one image, by node name, of all nodes that return a tensor."""

    @cached_property
    def nodes(self) -> dict[str, fx.Node]:
        """The graph's nodes by name, in order of execution."""
        return {node.name: node for node in self.module.graph.nodes}

    @cached_property
    def outputs(self) -> tuple[fx.Node, ...]:
        """The node of each raw map."""
        last = next(node for node in self.module.graph.nodes if node.op == "output")
        return tuple(last.args[0])

    @property
    def image(self) -> fx.Node:
        """The input node."""
        found: fx.Node = next(node for node in self.module.graph.nodes if node.op == "placeholder")
        return found

    def is_map(self, node: fx.Node) -> bool:
        """Return whether a node's output is (N, C, h, w)."""
        return len(self.shapes.get(node.name, ())) == 4


def normalise(net: nn.Module, image_size: tuple[int, int]) -> Network:
    """Return the normalised graph of a network for one image size; ``net`` is not changed.

    Args:
        net: computes a tuple of maps (N, C, h, w) from images (N, 3, H, W).
        image_size: height and width in pixels.

    Raises:
        EngineError: the network cannot be traced, does not accept this size, or does not return maps.
    """
    module = copy.deepcopy(net).eval().requires_grad_(requires_grad=False)
    try:
        module = module if isinstance(module, fx.GraphModule) else fx.symbolic_trace(module)
        _work_out_of_place(module)
        _fuse_batch_norms(module)
        shapes = _fold_constants(module, image_size)
    except Exception as reason:  # the network's own code may raise anything
        first = (str(reason).strip().splitlines() or [type(reason).__name__])[0][:160]
        height, width = image_size
        raise EngineError(
            f"the detector cannot be traced for {height}x{width} pixels ({first}); choose another input size (a "
            "multiple of 32), or another network"
        ) from reason
    network = Network(module, image_size, shapes)
    for node in network.outputs:
        if not network.is_map(node):
            shape = shapes.get(node.name)
            found = "is not a tensor computed from the image" if shape is None else f"has the shape {shape}"
            raise EngineError(
                f"output {node.name} of the detector {found}, but raw maps have the shape (N, C, h, w); use another "
                "network"
            )
    return network


def _work_out_of_place(module: fx.GraphModule) -> None:
    for part in module.modules():
        if getattr(part, "inplace", False):
            setattr(part, "inplace", False)  # noqa: B010 - for mypy, modules have no such attribute
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in _OUT_OF_PLACE:
            node.target = _OUT_OF_PLACE[node.target]
        if node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}
    module.recompile()


def _fuse_batch_norms(module: fx.GraphModule) -> None:
    parts = dict(module.named_modules())
    for node in list(module.graph.nodes):
        norm = parts.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        before = node.args[0]
        conv = parts.get(str(before.target)) if before.op == "call_module" else None
        if not isinstance(conv, nn.Conv2d) or len(before.users) > 1 or _calls(module, str(before.target)) > 1:
            continue
        module.set_submodule(str(before.target), fuse_conv_bn_eval(conv, norm))
        node.replace_all_uses_with(before)
        module.graph.erase_node(node)
    module.delete_all_unused_submodules()
    module.recompile()


def _calls(module: fx.GraphModule, target: str) -> int:
    return sum(node.op == "call_module" and node.target == target for node in module.graph.nodes)


def _fold_constants(module: fx.GraphModule, image_size: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """Replace nodes that do not depend on image content by constants; return the shapes of the others.

    Sizes become numbers, and tensors computed from weights become buffers.
    """
    shapes, numbers = {}, {}
    constants: dict[fx.Node, Tensor] = {}
    dependent: set[fx.Node] = set()
    with torch.no_grad():
        for node, value in iter_node_outputs(module, torch.zeros(1, 3, *image_size)):
            if node.op == "placeholder" or any(source in dependent for source in node.all_input_nodes):
                dependent.add(node)
            if isinstance(value, Tensor):
                shapes[node.name] = tuple(value.shape)
                if node not in dependent and node.op != "get_attr":
                    constants[node] = value.detach().clone()
            elif _is_plain(value):
                numbers[node.name] = value
                dependent.discard(node)
    for node, tensor in constants.items():
        _replace_by_buffer(module, node, tensor, shapes)
    for node in module.graph.nodes:
        node.args = map_arg(node.args, lambda used: numbers.get(used.name, used))
        node.kwargs = map_arg(node.kwargs, lambda used: numbers.get(used.name, used))
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return {node.name: shapes[node.name] for node in module.graph.nodes if node.name in shapes}


def _replace_by_buffer(
    module: fx.GraphModule, node: fx.Node, value: Tensor, shapes: dict[str, tuple[int, ...]]
) -> None:  # fmt: skip
    name = f"constant_{node.name}"
    module.register_buffer(name, value)
    with module.graph.inserting_before(node):
        replacement = module.graph.get_attr(name)
    shapes[replacement.name] = tuple(value.shape)
    node.replace_all_uses_with(replacement)


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(item) for item in value)
    return isinstance(value, int | float | bool | str)


def ancestors(nodes: Iterable[fx.Node], stops: Iterable[fx.Node] = ()) -> set[fx.Node]:
    """Return ``nodes`` and all nodes that they depend on; the search stops at ``stops``."""
    reached: set[fx.Node] = set()
    stopped, pending = set(stops), list(nodes)
    while pending:
        node = pending.pop()
        if node not in reached:
            reached.add(node)
            pending.extend(() if node in stopped else node.all_input_nodes)
    return reached
