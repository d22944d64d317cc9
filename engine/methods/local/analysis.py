"""Reading a tail: which of its maps still have a place for every cell, and how each follows from the ones before.

A layer is *cellwise* when it treats each cell alone and all alike (BN, activations, LayerNorm over channels, channel
shuffles, sums of branches). That is shown, not assumed: the layer is run on a map, and again on the map's cells taken
apart as a batch of single vectors, and both must agree. Layers that look at a known neighbourhood are read by
``local_taps``. What is neither (squeeze-excite, attention, a flattened map) ends the local part.
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
    """What was found out about a tail for one size of feature map."""

    entry: fx.Node
    grids: dict[fx.Node, Grid] = field(default_factory=dict)
    """Maps with a place for every cell, in the order they are computed; the entry is the first."""
    shapes: dict[fx.Node, tuple[int, ...]] = field(default_factory=dict)
    """Shape of one site of each of these maps: (C, 1, 1), or (C,) behind the mean."""
    spatial: dict[fx.Node, SpatialOp] = field(default_factory=dict)
    """Those that look beyond their own cell; the others are cellwise."""
    preserved: list[fx.Node] = field(default_factory=list)
    """Where the local part ends: the output alone, or every map that something else goes on from."""
    complete: bool = False
    """Whether the local part reaches the class scores."""


def as_rows(value: Tensor, grid: Grid) -> Tensor:
    """Take a map (1, C, h, w) apart into its cells (h * w, C, 1, 1); what has lost its grid stays as it is."""
    if value.dim() != 4 or tuple(value.shape[2:]) != grid:
        return value
    return value.permute(2, 3, 0, 1).reshape(grid[0] * grid[1], value.shape[1], 1, 1)


def analyze_tail(tail: fx.GraphModule, features: Tensor) -> TailAnalysis:
    """Run a tail on a random map and on its cells taken apart, side by side, and tell what stays local."""
    generator = torch.Generator().manual_seed(5)
    maps = torch.randn((1, *features.shape[1:]), generator=generator).to(features)
    reading = _Reader(tail).read(maps)
    output = next(node for node in tail.graph.nodes if node.op == "output")
    scores = output.all_input_nodes[0]
    reading.complete = reading.grids.get(scores) == (1, 1)
    reading.preserved = [scores] if reading.complete else frontier(tail, reading)
    return reading


def frontier(tail: fx.GraphModule, reading: TailAnalysis) -> list[fx.Node]:
    """Return the local maps that the scores are computed from without any other local map between."""
    output = next(node for node in tail.graph.nodes if node.op == "output")
    return sorted_by_graph(tail, closure(output, reading.grids)[1])


def closure(end: fx.Node, stops: Iterable[fx.Node]) -> tuple[set[fx.Node], set[fx.Node]]:
    """Return the nodes that ``end`` is computed by, back to the nearest ``stops``, and which stops those are."""
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
    """Return nodes in the order they are computed."""
    chosen = set(nodes)
    return [node for node in tail.graph.nodes if node in chosen]


def part_from(tail: fx.GraphModule, starts: list[fx.Node], end: fx.Node) -> fx.GraphModule:
    """Return the part of a graph that computes ``end`` (the scores, if it is the output) from ``starts``, in order."""
    inner, _ = closure(end, starts)
    graph = fx.Graph()
    copies = {start: graph.placeholder(start.name) for start in starts}
    for node in tail.graph.nodes:
        if node in inner and node.op != "output":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[end.all_input_nodes[0] if end.op == "output" else end])
    return fx.GraphModule(tail, graph, "Part")


class _Reader:
    """Walks the graph once, with each value as a map and as rows of cells."""

    def __init__(self, tail: fx.GraphModule) -> None:
        self.tail = tail
        self.run = fx.Interpreter(tail)
        self.maps: dict[fx.Node, Any] = {}
        self.rows: dict[fx.Node, Any] = {}
        self.grid_of: dict[fx.Node, Grid] = {}

    def read(self, maps: Tensor) -> TailAnalysis:
        nodes = list(self.tail.graph.nodes)
        last = {use: node for node in nodes for use in node.all_input_nodes}
        entry = next(node for node in nodes if node.op == "placeholder")
        reading = TailAnalysis(entry)
        with torch.inference_mode():
            for node in nodes:
                if node.op == "output":
                    break
                if node is entry:
                    self.maps[node] = maps
                    self._note(reading, node, (maps.shape[2], maps.shape[3]))
                else:
                    self._step(reading, node)
                for used in node.all_input_nodes:
                    if last[used] is node:
                        self.maps.pop(used, None)
                        self.rows.pop(used, None)
        return reading

    def _note(self, reading: TailAnalysis, node: fx.Node, grid: Grid) -> None:
        """Keep a map that has a place for every cell."""
        self.rows[node] = as_rows(self.maps[node], grid)
        self.grid_of[node] = grid
        reading.grids[node] = grid
        reading.shapes[node] = tuple(self.rows[node].shape[1:])

    def _call(self, node: fx.Node, values: dict[fx.Node, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        arguments = map_arg(node.args, values.__getitem__)
        keywords = map_arg(node.kwargs, values.__getitem__)
        call: Callable[..., Any] = getattr(self.run, node.op)
        return call(node.target, arguments, keywords), arguments, keywords

    def _step(self, reading: TailAnalysis, node: fx.Node) -> None:
        answer, arguments, keywords = self._call(node, self.maps)
        self.maps[node] = answer
        felt = [used for used in node.all_input_nodes if used in self.grid_of]
        if not felt:
            if all(used in self.rows for used in node.all_input_nodes):
                self.rows[node] = answer  # a constant of the network
            return
        if any(used not in self.rows for used in node.all_input_nodes):
            return
        grid = self.grid_of[felt[0]]
        source = node.all_input_nodes[0]
        if source in reading.grids and isinstance(answer, Tensor) and self.maps[source].dim() == 4:
            before = self.maps[source]
            spatial = read_spatial(self.tail, node, (arguments, keywords), before, answer)
            if spatial is not None:
                reading.spatial[node] = spatial
                self._note(reading, node, (spatial.taps.rows.shape[0], spatial.taps.columns.shape[0]))
                return
        if all(self.grid_of[used] == grid for used in felt):
            self._cellwise(reading, node, grid)

    def _cellwise(self, reading: TailAnalysis, node: fx.Node, grid: Grid) -> None:
        """Run a node on cells taken apart; keep the answer where it agrees with the map's, or cannot be told yet."""
        try:
            apart, _, _ = self._call(node, self.rows)
        except Exception:  # noqa: BLE001 - other people's layers may refuse single cells in any way
            return
        answer = self.maps[node]
        if isinstance(answer, Tensor) and isinstance(apart, Tensor):
            if answer.numel() != apart.numel():
                return
            placed = answer.dim() == 4 and tuple(answer.shape[2:]) == grid
            if placed or (grid == (1, 1) and answer.dim() == 2):
                if _agree(as_rows(answer, grid), apart):
                    self._note(reading, node, grid)
                return
        self.rows[node] = apart
        self.grid_of[node] = grid


def _agree(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or not one.is_floating_point():
        return False
    allowed = torch.finfo(one.dtype).eps ** 0.5 * float(one.abs().max())
    return bool(float((one - other).abs().max()) <= allowed)


def zero_responses(
    tail: fx.GraphModule, reading: TailAnalysis, features: Tensor, wanted: set[fx.Node]
) -> dict[fx.Node, Tensor]:
    """Return the answers of some local maps to the all-zero map, taken apart into cells."""
    with torch.inference_mode():
        return {
            node: as_rows(answer, reading.grids[node]).clone(memory_format=torch.contiguous_format)
            for node, answer in iter_node_outputs(tail, torch.zeros_like(features[:1]))
            if node in wanted
        }


def norm_behind(root: nn.Module, node: fx.Node) -> fx.Node | None:
    """Return the batch norm that is the only one to read ``node``, or None."""
    users = list(node.users)
    if len(users) != 1 or users[0].op != "call_module":
        return None
    module = root.get_submodule(str(users[0].target))
    known = isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and not module.training
    return users[0] if known else None
