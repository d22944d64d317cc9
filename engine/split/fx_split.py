"""Builds head and tail of a traced network (``torch.fx``) as modules that share its weights."""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from torch import Tensor, fx, nn

_OUT_OF_PLACE: dict[Callable[..., Any], Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


CHANNELS_FIRST: Final = (0, 3, 1, 2)
"""Order of dimensions from (N, h, w, C) to (N, C, h, w)."""
CHANNELS_LAST: Final = (0, 2, 3, 1)
"""Order of dimensions from (N, C, h, w) to (N, h, w, C)."""


class Permuted(nn.Module):
    """Permutes the dimensions of a map."""

    def __init__(self, order: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.order = order

    def forward(self, maps: Tensor) -> Tensor:
        """Return a view with the dimensions in the given order."""
        return maps.permute(self.order)


def permute_output(head: nn.Module, order: tuple[int, int, int, int]) -> nn.Module:
    """Return a head whose output is permuted."""
    if not isinstance(head, fx.GraphModule):
        return nn.Sequential(head, Permuted(order))
    output = next(node for node in head.graph.nodes if node.op == "output")
    with head.graph.inserting_before(output):
        output.args = (head.graph.call_method("permute", (output.args[0], order)),)
    head.recompile()
    return head


def permute_input(tail: nn.Module, order: tuple[int, int, int, int]) -> nn.Module:
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
    """A tracer that treats some modules as leaves: each becomes one node."""

    def __init__(self, *layers: str, whole: Collection[str] = ()) -> None:
        """Create a tracer whose leaves are the layers at which to split, and the modules ``whole``."""
        super().__init__()
        self.layers = {*layers, *whole}

    def is_leaf_module(self, module: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module becomes one node."""
        return module_qualified_name in self.layers or super().is_leaf_module(module, module_qualified_name)


def trace_images(net: nn.Module, *layers: str) -> fx.Graph:
    """Trace a network with images as its only input; other arguments have their defaults."""
    _, *optional = inspect.signature(net.forward).parameters.values()
    fixed = {parameter.name: parameter.default for parameter in optional if parameter.default is not parameter.empty}
    graph: fx.Graph = LayerTracer(*layers).trace(net, concrete_args=fixed or None)
    _, *unused = [node for node in graph.nodes if node.op == "placeholder"]
    for node in unused:
        _erase(graph, node)  # its remaining users only check that the argument has its default
    return graph


def _erase(graph: fx.Graph, node: fx.Node) -> None:
    for user in list(node.users):
        _erase(graph, user)
    graph.erase_node(node)


def nodes_before(node: fx.Node) -> set[fx.Node]:
    """Return all nodes from which ``node`` is computed."""
    reached: set[fx.Node] = set()
    pending = list(node.all_input_nodes)
    while pending:
        current = pending.pop()
        if current not in reached:
            reached.add(current)
            pending.extend(current.all_input_nodes)
    return reached


def build_head(net: nn.Module, graph: fx.Graph, cut: fx.Node) -> fx.GraphModule:
    """Return the module that computes ``cut`` from the images."""
    head = fx.Graph()
    needed = nodes_before(cut) | {cut}
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node in needed or node.op == "placeholder":
            copies[node] = head.node_copy(node, copies.__getitem__)
    head.output(copies[cut])
    return fx.GraphModule(net, head, "Head")


def nodes_after(graph: fx.Graph, starts: Sequence[fx.Node]) -> set[fx.Node]:
    """Return the output and all nodes from which it is computed; the search stops at ``starts``."""
    reached: set[fx.Node] = set()
    pending = [node for node in graph.nodes if node.op == "output"]
    while pending:
        current = pending.pop()
        if current not in reached and current not in starts:
            reached.add(current)
            pending.extend(current.all_input_nodes)
    return reached


def build_tail(net: nn.Module, graph: fx.Graph, starts: Sequence[fx.Node]) -> fx.GraphModule:
    """Return the module that computes the output from ``starts``.

    In-place operations are replaced, because a tail must not change its inputs. The caller must check that the output
    depends on the images only through ``starts``.
    """
    needed = nodes_after(graph, starts)
    tail = fx.Graph()
    names = ["features"] if len(starts) == 1 else [f"features_{k}" for k in range(len(starts))]
    copies: dict[fx.Node, fx.Node] = {start: tail.placeholder(name) for start, name in zip(starts, names, strict=True)}
    for node in graph.nodes:
        if node in needed:
            copied = tail.node_copy(node, copies.__getitem__)
            copies[node] = copied
            if copied.op == "call_function" and copied.target in _OUT_OF_PLACE:
                copied.target = _OUT_OF_PLACE[copied.target]
            if copied.kwargs.get("inplace"):
                copied.kwargs = {**copied.kwargs, "inplace": False}
    module = fx.GraphModule(_without_inplace(net, tail), tail, "Tail")
    module.graph.lint()
    return module


def _without_inplace(net: nn.Module, graph: fx.Graph) -> nn.Module:
    """Return a shallow copy of ``net`` in which the modules of ``graph`` do not work in place."""
    root = nn.Module()
    for node in graph.nodes:
        if node.op == "call_module":
            module = net.get_submodule(str(node.target))
            _attach(root, str(node.target), _out_of_place_module(module))
        elif node.op == "get_attr":
            owner, _, attribute = str(node.target).rpartition(".")
            value = getattr(net.get_submodule(owner), attribute)
            _attach(root, str(node.target), value)
    return root


def _out_of_place_module(module: nn.Module) -> nn.Module:
    if not any(getattr(child, "inplace", False) for child in module.modules()):
        return module
    copied = copy.copy(module)
    copied._modules = {  # noqa: SLF001
        name: child and _out_of_place_module(child)
        for name, child in module._modules.items()  # noqa: SLF001
    }
    if getattr(copied, "inplace", False):
        setattr(copied, "inplace", False)  # noqa: B010 - only some modules have it, and mypy knows none
    return copied


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
