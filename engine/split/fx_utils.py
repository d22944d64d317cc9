"""Reading traced graphs: the shape of every node, and the part of a graph between two nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg


def iter_node_outputs(part: fx.GraphModule, *inputs: Tensor) -> Iterator[tuple[fx.Node, Any]]:
    """Run a graph node by node and give each answer, dropping what nobody reads any more.

    (``fx.Interpreter.run`` does the same, but starts a thread for a progress bar that is never shown.)
    """
    run, values, waiting = fx.Interpreter(part), {}, list(inputs)
    last = {used: node for node in part.graph.nodes for used in node.all_input_nodes}
    for node in part.graph.nodes:
        if node.op == "output":
            return
        if node.op == "placeholder":
            values[node] = waiting.pop(0)
        else:
            call: Callable[..., Any] = getattr(run, node.op)
            arguments = map_arg(node.args, values.__getitem__), map_arg(node.kwargs, values.__getitem__)
            values[node] = call(node.target, *arguments)
        yield node, values[node]
        for used in node.all_input_nodes:
            if last[used] is node:
                values.pop(used, None)


def shapes_of(module: fx.GraphModule, example: Tensor) -> dict[fx.Node, tuple[int, ...]]:
    """Return the shape of every node that gives a tensor, for one example input."""
    with torch.inference_mode():
        return {
            node: tuple(answer.shape)
            for node, answer in iter_node_outputs(module, example)
            if isinstance(answer, Tensor)
        }


def subgraph(module: fx.GraphModule, start: fx.Node, end: fx.Node) -> fx.GraphModule | None:
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
