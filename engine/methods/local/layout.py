"""What a local plan computes: which maps, at which positions, and what is known of them beforehand."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, fx

from engine.methods.kernels import STENCILS, Kernel
from engine.methods.local.analysis import TailAnalysis, closure, norm_behind, sorted_by_graph, zero_responses
from engine.methods.local.footprint import Footprint, first_footprint
from engine.methods.local.receptive_field import KernelTaps
from engine.methods.local.steps import FeatureMapInfo


class Layout:
    """The maps a plan computes, in order, with their footprints and blanks."""

    def __init__(self, tail: fx.GraphModule, features: Tensor, kernel: Kernel, reading: TailAnalysis) -> None:
        self.tail, self.features, self.kernel, self.reading = tail, features[:1], kernel, reading
        self._prints: list[Footprint] = []
        self._taps: list[KernelTaps] = []
        self.needed = self._needed()
        self.folded = {node: norm for node in self.needed if (norm := self._norm(node)) is not None}
        self.footprints: dict[fx.Node, Footprint] = {}
        self._spread()
        self.blanks = zero_responses(tail, reading, features, self._asked())

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """Return the local maps a local map is computed from."""
        if node in self.reading.spatial:
            return [node.all_input_nodes[0]]
        return sorted_by_graph(self.tail, closure(node, self.reading.grids)[1])

    def _needed(self) -> list[fx.Node]:
        found: set[fx.Node] = set()
        waiting = list(self.reading.preserved)
        while waiting:
            node = waiting.pop()
            if node not in found and node is not self.reading.entry:
                found.add(node)
                waiting.extend(self.sources(node))
        return sorted_by_graph(self.tail, found)

    def _norm(self, node: fx.Node) -> fx.Node | None:
        """Return the batch norm that goes into this convolution's weights, or None."""
        spatial = self.reading.spatial.get(node)
        norm = norm_behind(self.tail, node)
        wanted = norm in self.reading.grids and norm in self.needed and node not in self.reading.preserved
        return norm if spatial is not None and spatial.kind == "convolution" and wanted else None

    def _spread(self) -> None:
        """Work out every footprint, each kept once: equal ones are the same thing afterwards."""
        reach = len(STENCILS[self.kernel]) // 2
        entry = first_footprint((self.features.shape[2], self.features.shape[3]), reach)
        self.footprints[self.reading.entry] = self._one(
            Footprint(entry.rows.to(self.features.device), entry.columns.to(self.features.device))
        )
        for node in self.needed:
            spatial = self.reading.spatial.get(node)
            before = [self.footprints[source] for source in self.sources(node)]
            if spatial is not None:
                taps = self._one_taps(spatial.taps)
                self.reading.spatial[node] = replace(spatial, taps=taps)
                after = before[0].through(taps)
            else:
                after = before[0]
                for other in before[1:]:
                    after = after.joined(other)
            self.footprints[node] = self._one(after)

    def _one(self, footprint: Footprint) -> Footprint:
        for known in self._prints:
            if known.same(footprint):
                return known
        self._prints.append(footprint)
        return footprint

    def _one_taps(self, taps: KernelTaps) -> KernelTaps:
        for known in self._taps:
            if torch.equal(known.rows.cpu(), taps.rows) and torch.equal(known.columns.cpu(), taps.columns):
                return known
        self._taps.append(KernelTaps(taps.rows.to(self.features.device), taps.columns.to(self.features.device)))
        return self._taps[-1]

    def is_point(self, node: fx.Node) -> bool:
        """Say whether a layer is a convolution that looks at one cell."""
        spatial = self.reading.spatial[node]
        return spatial.kind == "convolution" and spatial.taps.count == 1 and spatial.groups == 1

    def _asked(self) -> set[fx.Node]:
        """Return the maps whose blank answer some step asks for."""
        wanted = set(self.reading.preserved)
        for node in self.needed:
            spatial = self.reading.spatial.get(node)
            if spatial is None:
                wanted.update(s for s in self.sources(node) if self.footprints[s] is not self.footprints[node])
            elif spatial.kind != "copy" and not self.is_point(node):
                wanted.update((node.all_input_nodes[0], self.folded.get(node, node)))
        return wanted

    def width(self, node: fx.Node) -> int:
        """Return how many numbers one site of a map has."""
        return math.prod(self.reading.shapes[node])

    def one_cell(self, node: fx.Node) -> Tensor:
        """Return one site of a map, all zero."""
        return self.features.new_zeros((1, *self.reading.shapes[node]))

    def map_of(self, node: fx.Node) -> FeatureMapInfo:
        """Return a map as steps take it."""
        blank = self.blanks.get(node, self.features.new_empty(0))
        return FeatureMapInfo(node.name, self.footprints[node], self.width(node), blank)
