"""Splits a detector at a cut into head (images to features) and tail (features to raw maps).

A split is verified when it is built: head and tail together must equal the network, and with all features of the cut
masked the maps must not depend on the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, fx

from engine.detectors.graph import Network, ancestors
from pipeline.errors import EngineError, LayerError

CELL_PX: Final = 32
"""Default side of a region in pixels, unless all maps of the cut are coarser."""

TOLERANCE: Final = 1e-4
"""Maximum difference between ``tail(*head(x))`` and the network, as a fraction of the largest output."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The nodes of a network's graph that are masked together, fine to coarse."""

    nodes: tuple[str, ...]
    """Names of ``torch.fx`` nodes; each output is a map (N, C, h, w)."""
    strides: tuple[int, ...]
    """Pixels of the input per cell, one for each node: powers of two."""
    kind: str = "complete"
    """``complete``: found in the graph; ``own level``: the head's input (the fast cut); ``named``: set by names."""

    @property
    def cell_px(self) -> int:
        """Default side of a region in pixels: at least one cell of the cut's finest map."""
        return max(CELL_PX, min(self.strides))


@dataclass(frozen=True, eq=False)
class DetectorSplit:
    """A detector in two parts: ``tail(*head(images))`` equals the network's maps ``maps``."""

    head: fx.GraphModule
    """Computes the tuple of features (N, C, h, w) at ``cut.nodes`` from images (N, 3, H, W)."""
    tail: fx.GraphModule
    """Computes the raw maps listed in ``maps`` from the features, its positional arguments."""
    cut: Cut
    maps: tuple[int, ...]
    """For each output of the tail, its index in the network's output (``Read.map``)."""
    image_size: tuple[int, int]
    """Height and width in pixels for which the graphs were built and verified."""

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the features of a batch at the cut."""
        features: tuple[Tensor, ...] = self.head(images)
        return features


def build_split(network: Network, cut: Cut, maps: Sequence[int]) -> DetectorSplit:
    """Split a detector at a complete cut, and verify the split.

    Args:
        network: the detector for one image size.
        cut: the cut.
        maps: indices of the raw maps that the tail computes.

    Raises:
        LayerError: the cut is not complete for these maps.
        EngineError: head and tail together differ from the network.
    """
    prove_complete(network, cut, maps)
    nodes = [network.nodes[name] for name in cut.nodes]
    split = DetectorSplit(
        _build_head(network, nodes), _build_tail(network, nodes, maps), cut, tuple(maps), network.image_size
    )
    _prove_equal(network, split)
    return split


def prove_complete(network: Network, cut: Cut, maps: Sequence[int]) -> None:
    """Verify that with all features of the cut masked, two images produce equal maps.

    Raises:
        LayerError: a map still depends on the image; the message names a node that bypasses the cut.
    """
    masked = _masked(network, cut, maps)
    with torch.inference_mode():
        first, second = (masked(_probe(network, seed)) for seed in (0, 1))
    for index, a, b in zip(maps, first, second, strict=True):
        difference = float((a - b).abs().max())
        if not difference <= 0:  # also refuses NaN
            around = _around(network, cut, index)
            raise LayerError(
                f"cut {', '.join(cut.nodes)} is not complete: when all of its features are masked, the map "
                f"{network.outputs[index].name} still depends on the image through node {around} (two images change it "
                f"by {difference:.2g}); use the default complete cut, or add node {around} to the cut"
            )


def _probe(network: Network, seed: int) -> Tensor:
    return torch.rand(1, 3, *network.image_size, generator=torch.Generator().manual_seed(seed)) * 255


def _masked(network: Network, cut: Cut, maps: Sequence[int]) -> fx.GraphModule:
    """Return the network with the features of the cut set to zero."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in network.module.graph.nodes:
        if node.op == "output":
            continue
        copies[node] = graph.node_copy(node, copies.__getitem__)
        if node.name in cut.nodes:
            copies[node] = graph.call_function(torch.zeros_like, (copies[node],))
    graph.output(tuple(copies[network.outputs[m]] for m in maps))
    module = fx.GraphModule(network.module, graph, "Masked")
    graph.eliminate_dead_code()
    module.recompile()
    return module


def _around(network: Network, cut: Cut, index: int) -> str:
    """Return the name of the last map that bypasses the cut on the way to a raw map."""
    stops = {network.nodes[name] for name in cut.nodes}
    needed = ancestors([network.outputs[index]], stops)
    masked, last = set(stops), network.image
    for node in network.module.graph.nodes:
        if any(source in masked for source in node.all_input_nodes):
            masked.add(node)
        elif node in needed and node not in stops and network.is_map(node):
            last = node
    return str(last.name)


def _build_head(network: Network, nodes: Sequence[fx.Node]) -> fx.GraphModule:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    needed = ancestors(nodes)
    for node in network.module.graph.nodes:
        if node in needed or node.op == "placeholder":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in nodes))
    return fx.GraphModule(network.module, graph, "DetectorHead")


def _build_tail(network: Network, nodes: Sequence[fx.Node], maps: Sequence[int]) -> fx.GraphModule:
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in nodes}
    needed = ancestors([network.outputs[m] for m in maps], nodes)
    for node in network.module.graph.nodes:
        if node in needed and node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[network.outputs[m]] for m in maps))
    return fx.GraphModule(network.module, graph, "DetectorTail")


def _prove_equal(network: Network, split: DetectorSplit) -> None:
    probe = _probe(network, 0)
    with torch.inference_mode():
        expected, found = network.module(probe), split.tail(*split.head(probe))
    for index, output in zip(split.maps, found, strict=True):
        difference, scale = (expected[index] - output).abs().max(), expected[index].abs().max()
        if not bool(difference <= TOLERANCE * scale + 1e-12):
            raise EngineError(
                f"cut {', '.join(split.cut.nodes)}: head and tail differ from the network by {float(difference):.2g} "
                f"in map {network.outputs[index].name}; choose another cut"
            )


def with_features(network: Network, nodes: Sequence[str]) -> fx.GraphModule:
    """Return a graph from images to (all raw maps, features at ``nodes``)."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in network.module.graph.nodes:
        if node.op != "output":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    maps = tuple(copies[node] for node in network.outputs)
    graph.output((maps, tuple(copies[network.nodes[name]] for name in nodes)))
    return fx.GraphModule(network.module, graph, "PlainPass")
