"""Two halves of a traced network (``torch.fx``), each a module of its own; they share the network's weights."""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from torch import Tensor, fx, nn

_PURE_TWIN: dict[Callable[..., Any], Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


CHANNELS_FIRST: Final = (0, 3, 1, 2)
"""From (N, h, w, C) to (N, C, h, w)."""
CHANNELS_LAST: Final = (0, 2, 3, 1)
"""The way back."""


class Permuted(nn.Module):
    """Permutes the dimensions of a map."""

    def __init__(self, order: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.order = order

    def forward(self, maps: Tensor) -> Tensor:
        """Return a view with the dimensions in the given order."""
        return maps.permute(self.order)


def behind_permute(head: nn.Module, order: tuple[int, int, int, int]) -> nn.Module:
    """Return a head whose output is permuted."""
    if not isinstance(head, fx.GraphModule):
        return nn.Sequential(head, Permuted(order))
    output = next(node for node in head.graph.nodes if node.op == "output")
    with head.graph.inserting_before(output):
        output.args = (head.graph.call_method("permute", (output.args[0], order)),)
    head.recompile()
    return head


def before_permute(tail: nn.Module, order: tuple[int, int, int, int]) -> nn.Module:
    """Return a tail that permutes its input first."""
    if not isinstance(tail, fx.GraphModule):
        return nn.Sequential(Permuted(order), tail)
    entry = next(node for node in tail.graph.nodes if node.op == "placeholder")
    with tail.graph.inserting_after(entry):
        permuted = tail.graph.call_method("permute", (entry, order))
    entry.replace_all_uses_with(permuted, delete_user_cb=lambda user: user is not permuted)
    tail.recompile()
    return tail


class LayerTracer(fx.Tracer):
    """A tracer that keeps some modules whole, so that the output of each is one node."""

    def __init__(self, *layers: str, whole: Collection[str] = ()) -> None:
        """Take the layers that are asked for, and others (``whole``) whose inside need not be known."""
        super().__init__()
        self.layers = {*layers, *whole}

    def is_leaf_module(self, module: nn.Module, module_qualified_name: str) -> bool:
        """Say whether a module is one node."""
        return module_qualified_name in self.layers or super().is_leaf_module(module, module_qualified_name)


def trace_images(net: nn.Module, *layers: str) -> fx.Graph:
    """Return the network's graph with the images as its only input; other arguments keep their defaults."""
    _, *others = inspect.signature(net.forward).parameters.values()
    fixed = {one.name: one.default for one in others if one.default is not one.empty}
    graph: fx.Graph = LayerTracer(*layers).trace(net, concrete_args=fixed or None)
    _, *needless = [node for node in graph.nodes if node.op == "placeholder"]
    for node in needless:
        _erase(graph, node)  # what is left of them checks that they were not given
    return graph


def _erase(graph: fx.Graph, node: fx.Node) -> None:
    for user in list(node.users):
        _erase(graph, user)
    graph.erase_node(node)


def nodes_before(node: fx.Node) -> set[fx.Node]:
    """Return every node that ``node`` is computed from."""
    seen: set[fx.Node] = set()
    waiting = list(node.all_input_nodes)
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting.extend(current.all_input_nodes)
    return seen


def head_of(net: nn.Module, graph: fx.Graph, cut: fx.Node) -> fx.GraphModule:
    """Return what computes ``cut`` from the image."""
    head = fx.Graph()
    needed = nodes_before(cut) | {cut}
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node in needed or node.op == "placeholder":
            copies[node] = head.node_copy(node, copies.__getitem__)
    head.output(copies[cut])
    return fx.GraphModule(net, head, "Head")


def nodes_behind(graph: fx.Graph, starts: Sequence[fx.Node]) -> set[fx.Node]:
    """Return every node the output is computed from, the output among them, without looking beyond ``starts``."""
    seen: set[fx.Node] = set()
    waiting = [node for node in graph.nodes if node.op == "output"]
    while waiting:
        current = waiting.pop()
        if current not in seen and current not in starts:
            seen.add(current)
            waiting.extend(current.all_input_nodes)
    return seen


def tail_of(net: nn.Module, graph: fx.Graph, starts: Sequence[fx.Node]) -> fx.GraphModule:
    """Return what computes the output from ``starts``, with in-place operations replaced.

    A tail must not change its inputs. Nothing but ``starts`` may come from the image; the caller has seen to it.
    """
    needed = nodes_behind(graph, starts)
    tail = fx.Graph()
    names = ["features"] if len(starts) == 1 else [f"features_{k}" for k in range(len(starts))]
    copies: dict[fx.Node, fx.Node] = {start: tail.placeholder(name) for start, name in zip(starts, names, strict=True)}
    for node in graph.nodes:
        if node in needed:
            twin = tail.node_copy(node, copies.__getitem__)
            copies[node] = twin
            if twin.op == "call_function" and twin.target in _PURE_TWIN:
                twin.target = _PURE_TWIN[twin.target]
            if twin.kwargs.get("inplace"):
                twin.kwargs = {**twin.kwargs, "inplace": False}
    module = fx.GraphModule(_without_inplace(net, tail), tail, "Tail")
    module.graph.lint()
    return module


def _without_inplace(net: nn.Module, graph: fx.Graph) -> nn.Module:
    """Return a shallow twin of ``net`` whose modules named in ``graph`` do not work in place."""
    root = nn.Module()
    for node in graph.nodes:
        if node.op == "call_module":
            module = net.get_submodule(str(node.target))
            _attach(root, str(node.target), _pure_module(module))
        elif node.op == "get_attr":
            owner, _, attribute = str(node.target).rpartition(".")
            value = getattr(net.get_submodule(owner), attribute)
            _attach(root, str(node.target), value)
    return root


def _pure_module(module: nn.Module) -> nn.Module:
    if not any(getattr(child, "inplace", False) for child in module.modules()):
        return module
    pure = copy.copy(module)
    pure._modules = {  # noqa: SLF001
        name: child and _pure_module(child)
        for name, child in module._modules.items()  # noqa: SLF001
    }
    if getattr(pure, "inplace", False):
        setattr(pure, "inplace", False)  # noqa: B010 - only some modules have it, and mypy knows none
    return pure


def _attach(root: nn.Module, name: str, value: object) -> None:
    *path, last = name.split(".")
    owner = root
    for part in path:
        if part not in owner._modules:  # noqa: SLF001
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    if isinstance(value, nn.Parameter | nn.Module) or not isinstance(value, Tensor):
        setattr(owner, last, value)
    else:
        owner.register_buffer(last, value)
