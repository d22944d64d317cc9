"""Analyses a tail: which of its maps are local, and how they are computed from earlier maps.

A layer is *cellwise* if it applies the same function to each cell separately (batch norm, activations, LayerNorm over
channels, channel shuffles, sums of branches). This is tested: the layer is computed on a map, and on the map's cells as
a batch of single vectors, and both results must agree. ``receptive_field`` describes layers with a known neighbourhood
(convolution, pooling, padding). All other layers (squeeze-excite, attention, flatten) end the local part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from engine.methods.local.receptive_field import SpatialOp, read_spatial
from engine.split.fx_utils import iter_node_outputs

Grid = tuple[int, int]


@dataclass
class TailAnalysis:
    """The local maps of a tail for one size of feature map."""

    entry: fx.Node
    """The tail's input."""
    grids: dict[fx.Node, Grid] = field(default_factory=dict)
    """Rows and columns of each local map, in order of computation; the entry is the first."""
    shapes: dict[fx.Node, tuple[int, ...]] = field(default_factory=dict)
    """Shape of one cell of each local map: (C, 1, 1), or (C,) after a mean."""
    spatial: dict[fx.Node, SpatialOp] = field(default_factory=dict)
    """The operations that read a neighbourhood; all other nodes are cellwise."""
    outputs: list[fx.Node] = field(default_factory=list)
    """End of the local part: the logits, or all local maps that non-local layers read."""
    complete: bool = False
    """True if the local part reaches the logits."""


def as_rows(value: Tensor, grid: Grid) -> Tensor:
    """Return the cells of a map (1, C, h, w) as (h * w, C, 1, 1); a value without the grid is returned unchanged."""
    if value.dim() != 4 or tuple(value.shape[2:]) != grid:
        return value
    return value.permute(2, 3, 0, 1).reshape(grid[0] * grid[1], value.shape[1], 1, 1)


def analyze_tail(tail: fx.GraphModule, features: Tensor) -> TailAnalysis:
    """Determine which maps are local, by running the tail on a random map and on its separate cells."""
    generator = torch.Generator().manual_seed(5)
    maps = torch.randn((1, *features.shape[1:]), generator=generator).to(features)
    analysis = _Analyzer(tail).run_graph(maps)
    output = next(node for node in tail.graph.nodes if node.op == "output")
    scores = output.all_input_nodes[0]
    analysis.complete = analysis.grids.get(scores) == (1, 1)
    analysis.outputs = [scores] if analysis.complete else frontier(tail, analysis)
    return analysis


def frontier(tail: fx.GraphModule, analysis: TailAnalysis) -> list[fx.Node]:
    """Return the last local maps, from which the logits are computed without further local maps."""
    output = next(node for node in tail.graph.nodes if node.op == "output")
    return sorted_by_graph(tail, closure(output, analysis.grids)[1])


def closure(end: fx.Node, stops: Iterable[fx.Node]) -> tuple[set[fx.Node], set[fx.Node]]:
    """Return the nodes that compute ``end`` from the nearest ``stops``, and these stops."""
    known, inner, reached = set(stops), {end}, set()
    waiting = list(end.all_input_nodes)
    while waiting:
        node = waiting.pop()
        if node in known:
            reached.add(node)
        elif node not in inner:
            inner.add(node)
            waiting.extend(node.all_input_nodes)
    return inner, reached


def sorted_by_graph(tail: fx.GraphModule, nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """Return nodes in order of computation."""
    chosen = set(nodes)
    return [node for node in tail.graph.nodes if node in chosen]


def part_from(tail: fx.GraphModule, starts: list[fx.Node], end: fx.Node) -> fx.GraphModule:
    """Return the part of a graph that computes ``end`` (the logits, if it is the output) from ``starts``."""
    inner, _ = closure(end, starts)
    graph = fx.Graph()
    copies = {start: graph.placeholder(start.name) for start in starts}
    for node in tail.graph.nodes:
        if node in inner and node.op != "output":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[end.all_input_nodes[0] if end.op == "output" else end])
    return fx.GraphModule(tail, graph, "Part")


class _Analyzer:
    """Runs the graph once, with each value as a map and as separate cells (rows)."""

    def __init__(self, tail: fx.GraphModule) -> None:
        self.tail = tail
        self.interpreter = fx.Interpreter(tail)
        self.maps: dict[fx.Node, Any] = {}
        self.rows: dict[fx.Node, Any] = {}
        self.grid_of: dict[fx.Node, Grid] = {}

    def run_graph(self, maps: Tensor) -> TailAnalysis:
        nodes = list(self.tail.graph.nodes)
        last = {use: node for node in nodes for use in node.all_input_nodes}
        entry = next(node for node in nodes if node.op == "placeholder")
        analysis = TailAnalysis(entry)
        with torch.inference_mode():
            for node in nodes:
                if node.op == "output":
                    break
                if node is entry:
                    self.maps[node] = maps
                    self._add_local_map(analysis, node, (maps.shape[2], maps.shape[3]))
                else:
                    self._step(analysis, node)
                for used in node.all_input_nodes:
                    if last[used] is node:
                        self.maps.pop(used, None)
                        self.rows.pop(used, None)
        return analysis

    def _add_local_map(self, analysis: TailAnalysis, node: fx.Node, grid: Grid) -> None:
        """Record a local map."""
        self.rows[node] = as_rows(self.maps[node], grid)
        self.grid_of[node] = grid
        analysis.grids[node] = grid
        analysis.shapes[node] = tuple(self.rows[node].shape[1:])

    def _call(self, node: fx.Node, values: dict[fx.Node, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        arguments = map_arg(node.args, values.__getitem__)
        keywords = map_arg(node.kwargs, values.__getitem__)
        call: Callable[..., Any] = getattr(self.interpreter, node.op)
        return call(node.target, arguments, keywords), arguments, keywords

    def _step(self, analysis: TailAnalysis, node: fx.Node) -> None:
        output, arguments, keywords = self._call(node, self.maps)
        self.maps[node] = output
        gridded = [used for used in node.all_input_nodes if used in self.grid_of]
        if not gridded:
            if all(used in self.rows for used in node.all_input_nodes):
                self.rows[node] = output  # a constant of the network
            return
        if any(used not in self.rows for used in node.all_input_nodes):
            return
        grid = self.grid_of[gridded[0]]
        source = node.all_input_nodes[0]
        if source in analysis.grids and isinstance(output, Tensor) and self.maps[source].dim() == 4:
            before = self.maps[source]
            spatial = read_spatial(self.tail, node, (arguments, keywords), before, output)
            if spatial is not None:
                analysis.spatial[node] = spatial
                grid = (spatial.taps.rows.shape[0], spatial.taps.columns.shape[0])
                self._add_local_map(analysis, node, grid)
                return
        if all(self.grid_of[used] == grid for used in gridded):
            self._test_cellwise(analysis, node, grid)

    def _test_cellwise(self, analysis: TailAnalysis, node: fx.Node, grid: Grid) -> None:
        """Run a node on separate cells; record a local map if the result agrees with the map's.

        A result of another form (a split, a reshaped tensor) is stored for the nodes that read it.
        """
        try:
            separate, _, _ = self._call(node, self.rows)
        except Exception:  # noqa: BLE001 - the network's own layers may fail for single cells in any way
            return
        output = self.maps[node]
        if isinstance(output, Tensor) and isinstance(separate, Tensor):
            if output.numel() != separate.numel():
                return
            is_map = output.dim() == 4 and tuple(output.shape[2:]) == grid
            if is_map or (grid == (1, 1) and output.dim() == 2):
                if _agree(as_rows(output, grid), separate):
                    self._add_local_map(analysis, node, grid)
                return
        self.rows[node] = separate
        self.grid_of[node] = grid


def _agree(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape or not first.is_floating_point():
        return False
    allowed = torch.finfo(first.dtype).eps ** 0.5 * float(first.abs().max())
    return bool(float((first - second).abs().max()) <= allowed)


def zero_responses(
    tail: fx.GraphModule, analysis: TailAnalysis, features: Tensor, nodes: set[fx.Node]
) -> dict[fx.Node, Tensor]:
    """Return the values of some local maps for the all-zero input map, as cells (h * w, C, 1, 1)."""
    with torch.inference_mode():
        return {
            node: as_rows(output, analysis.grids[node]).clone(memory_format=torch.contiguous_format)
            for node, output in iter_node_outputs(tail, torch.zeros_like(features[:1]))
            if node in nodes
        }


def norm_after(root: nn.Module, node: fx.Node) -> fx.Node | None:
    """Return the batch norm that is the only reader of ``node``, or None."""
    users = list(node.users)
    if len(users) != 1 or users[0].op != "call_module":
        return None
    module = root.get_submodule(str(users[0].target))
    known = isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and not module.training
    return users[0] if known else None
