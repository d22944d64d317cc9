"""Computes the layout of a local plan: its maps, their footprints and their zero responses."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, fx

from engine.methods.kernels import STENCILS, Kernel
from engine.methods.local.analysis import TailAnalysis, closure, norm_after, sorted_by_graph, zero_responses
from engine.methods.local.footprint import Footprint, first_footprint
from engine.methods.local.receptive_field import KernelTaps
from engine.methods.local.steps import FeatureMapInfo


class Layout:
    """The maps that a plan computes, in order, with their footprints and zero responses."""

    def __init__(self, tail: fx.GraphModule, features: Tensor, kernel: Kernel, analysis: TailAnalysis) -> None:
        self.tail, self.features, self.kernel, self.analysis = tail, features[:1], kernel, analysis
        self._footprints: list[Footprint] = []
        self._taps: list[KernelTaps] = []
        self.needed = self._needed()
        self.folded = {node: norm for node in self.needed if (norm := self._norm(node)) is not None}
        self.footprints: dict[fx.Node, Footprint] = {}
        self._compute_footprints()
        self.zero_responses = zero_responses(tail, analysis, features, self._nodes_with_zero_response())

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """Return the local maps that a local map is computed from."""
        if node in self.analysis.spatial:
            return [node.all_input_nodes[0]]
        return sorted_by_graph(self.tail, closure(node, self.analysis.grids)[1])

    def _needed(self) -> list[fx.Node]:
        needed: set[fx.Node] = set()
        pending = list(self.analysis.outputs)
        while pending:
            node = pending.pop()
            if node not in needed and node is not self.analysis.entry:
                needed.add(node)
                pending.extend(self.sources(node))
        return sorted_by_graph(self.tail, needed)

    def _norm(self, node: fx.Node) -> fx.Node | None:
        """Return the batch norm to merge into this convolution's weights; None if there is none."""
        spatial = self.analysis.spatial.get(node)
        norm = norm_after(self.tail, node)
        fusible = norm in self.analysis.grids and norm in self.needed and node not in self.analysis.outputs
        return norm if spatial is not None and spatial.kind == "convolution" and fusible else None

    def _compute_footprints(self) -> None:
        """Compute every map's footprint; maps with equal footprints share one object."""
        reach = len(STENCILS[self.kernel]) // 2
        entry = first_footprint((self.features.shape[2], self.features.shape[3]), reach)
        self.footprints[self.analysis.entry] = self._shared(
            Footprint(entry.rows.to(self.features.device), entry.columns.to(self.features.device))
        )
        for node in self.needed:
            spatial = self.analysis.spatial.get(node)
            before = [self.footprints[source] for source in self.sources(node)]
            if spatial is not None:
                taps = self._shared_taps(spatial.taps)
                self.analysis.spatial[node] = replace(spatial, taps=taps)
                after = before[0].through(taps)
            else:
                after = before[0]
                for other in before[1:]:
                    after = after.joined(other)
            self.footprints[node] = self._shared(after)

    def _shared(self, footprint: Footprint) -> Footprint:
        for known in self._footprints:
            if known.same(footprint):
                return known
        self._footprints.append(footprint)
        return footprint

    def _shared_taps(self, taps: KernelTaps) -> KernelTaps:
        for known in self._taps:
            if torch.equal(known.rows.cpu(), taps.rows) and torch.equal(known.columns.cpu(), taps.columns):
                return known
        self._taps.append(KernelTaps(taps.rows.to(self.features.device), taps.columns.to(self.features.device)))
        return self._taps[-1]

    def is_point(self, node: fx.Node) -> bool:
        """Return whether a layer is a 1x1 convolution without groups."""
        spatial = self.analysis.spatial[node]
        return spatial.kind == "convolution" and spatial.taps.count == 1 and spatial.groups == 1

    def _nodes_with_zero_response(self) -> set[fx.Node]:
        """Return the maps whose zero response a step or the plan needs."""
        nodes = set(self.analysis.outputs)
        for node in self.needed:
            spatial = self.analysis.spatial.get(node)
            if spatial is None:
                nodes.update(s for s in self.sources(node) if self.footprints[s] is not self.footprints[node])
            elif spatial.kind != "copy" and not self.is_point(node):
                nodes.update((node.all_input_nodes[0], self.folded.get(node, node)))
        return nodes

    def width(self, node: fx.Node) -> int:
        """Return the number of values per site of a map."""
        return math.prod(self.analysis.shapes[node])

    def one_cell(self, node: fx.Node) -> Tensor:
        """Return the vector of one site of a map, filled with zeros."""
        return self.features.new_zeros((1, *self.analysis.shapes[node]))

    def map_of(self, node: fx.Node) -> FeatureMapInfo:
        """Return the description of a map for the steps."""
        zero_response = self.zero_responses.get(node, self.features.new_empty(0))
        return FeatureMapInfo(node.name, self.footprints[node], self.width(node), zero_response)
