"""Functions for traced graphs (``torch.fx``): outputs and shapes of nodes, subgraphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg


def iter_node_outputs(part: fx.GraphModule, *inputs: Tensor) -> Iterator[tuple[fx.Node, Any]]:
    """Run a graph node by node; yield each node with its output. Outputs are freed after their last use.

    ``fx.Interpreter.run`` would also start a thread for a progress bar.
    """
    run, values, remaining = fx.Interpreter(part), {}, list(inputs)
    last = {used: node for node in part.graph.nodes for used in node.all_input_nodes}
    for node in part.graph.nodes:
        if node.op == "output":
            return
        if node.op == "placeholder":
            values[node] = remaining.pop(0)
        else:
            call: Callable[..., Any] = getattr(run, node.op)
            arguments = map_arg(node.args, values.__getitem__), map_arg(node.kwargs, values.__getitem__)
            values[node] = call(node.target, *arguments)
        yield node, values[node]
        for used in node.all_input_nodes:
            if last[used] is node:
                values.pop(used, None)


def shapes_of(module: fx.GraphModule, example: Tensor) -> dict[fx.Node, tuple[int, ...]]:
    """Return the output shapes of all nodes that return a tensor, for one example input."""
    with torch.inference_mode():
        return {
            node: tuple(output.shape)
            for node, output in iter_node_outputs(module, example)
            if isinstance(output, Tensor)
        }


def subgraph(module: fx.GraphModule, start: fx.Node, end: fx.Node) -> fx.GraphModule | None:
    """Return the part of a graph that computes ``end`` from ``start`` only; ``start`` becomes its input.

    Returns None if ``end`` also depends on an input of the graph by a path around ``start``. Constants of the module
    can be used anywhere.
    """
    needed: set[fx.Node] = set()
    pending = [end]
    while pending:
        node = pending.pop()
        if node is start or node in needed:
            continue
        if node.op == "placeholder":
            return None
        needed.add(node)
        pending.extend(node.all_input_nodes)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {start: graph.placeholder("x")}
    for node in module.graph.nodes:
        if node in needed:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[end])
    return fx.GraphModule(module, graph, "Part")
