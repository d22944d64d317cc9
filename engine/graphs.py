"""Reading traced graphs: the shape of every node, and the part of a graph between two nodes."""

from __future__ import annotations

import torch
from torch import Tensor, fx


class _Shapes(fx.Interpreter):
    """Runs a graph and notes the shape of every tensor on the way."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> object:
        """Run one node and note its shape."""
        result: object = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = tuple(result.shape)
        return result


def shapes_of(module: fx.GraphModule, example: Tensor) -> dict[fx.Node, tuple[int, ...]]:
    """Return the shape of every node that gives a tensor, for one example input."""
    interpreter = _Shapes(module)
    with torch.inference_mode():
        interpreter.run(example)
    return interpreter.shapes


def part_between(module: fx.GraphModule, start: fx.Node, end: fx.Node) -> fx.GraphModule | None:
    """Return the part of a graph that computes ``end`` from ``start`` alone.

    ``start`` becomes its input. None when ``end`` also depends on something that does not come through ``start``
    (constants of the module may be used anywhere), or when ``end`` is not computed from ``start`` at all.
    """
    needed: set[fx.Node] = set()
    waiting = [end]
    while waiting:
        node = waiting.pop()
        if node is start or node in needed:
            continue
        if node.op == "placeholder":
            return None
        needed.add(node)
        waiting.extend(node.all_input_nodes)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {start: graph.placeholder("x")}
    for node in module.graph.nodes:
        if node in needed:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[end])
    return fx.GraphModule(module, graph, "Part")
