"""Plan 2, local tails: of every masked map only what the mask can change is computed, layer by layer.

The tail's answer to the all-zero map, the blank, does not depend on the picture. A masked map differs from it in a few
positions, which grow layer by layer; everywhere else the blank is the answer, exactly. So each layer is computed for
those positions alone, of many cells at once: no masked map exists. Which positions these are depends on sizes only and
is worked out when the plan is made (``local_sites``), after the tail has been read (``local_reading``).

Where a layer needs the whole map (squeeze-excite, attention, a flattened map), the maps before it are filled up with
the blank and the rest of the tail runs on them as it is.
"""

from __future__ import annotations

import copy
import math
import operator
from dataclasses import replace

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils.flop_counter import FlopCounterMode

from engine.methods.kernels import STENCILS, Kernel
from engine.methods.local_plan import LocalPlan, load_of
from engine.methods.local_reading import (
    Reading,
    blanks,
    closure,
    norm_behind,
    part_from,
    read_tail,
    sorted_by_graph,
)
from engine.methods.local_sites import Footprint, first_footprint
from engine.methods.local_steps import (
    AverageStep,
    CellwiseStep,
    ConvolutionStep,
    CopyStep,
    LargestStep,
    Map,
    PointStep,
    Step,
    SumStep,
)
from engine.methods.local_taps import Spatial, Taps

_SUMS = (operator.add, torch.add)


def find_local(tail: nn.Module, features: Tensor, kernel: Kernel, budget_bytes: int) -> LocalPlan | None:
    """Return a local plan if the tail begins with layers that look at a neighbourhood only.

    What it returns still has to be proven, and may cost more than the definition: its facts tell.
    """
    if not isinstance(tail, fx.GraphModule) or features.device.type == "meta":
        return None
    reading = read_tail(tail, features)
    if reading.kept == [reading.entry] or not reading.kept:
        return None
    return _Builder(tail, features, kernel, reading).plan(budget_bytes)


class _Builder:
    """Turns what was read into steps."""

    def __init__(self, tail: fx.GraphModule, features: Tensor, kernel: Kernel, reading: Reading) -> None:
        self.tail, self.features, self.kernel, self.reading = tail, features[:1], kernel, reading
        self.device = features.device
        self.prints: list[Footprint] = []
        self.taps: list[Taps] = []
        self.needed = self._needed()
        self.folded = {node: norm for node in self.needed if (norm := self._norm(node)) is not None}
        self.footprints: dict[fx.Node, Footprint] = {}
        self._spread()
        self.blanks = blanks(tail, reading, features, self._wanted())

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        """Return the local maps a local map is computed from."""
        if node in self.reading.spatial:
            return [node.all_input_nodes[0]]
        return sorted_by_graph(self.tail, closure(node, self.reading.grids)[1])

    def _needed(self) -> list[fx.Node]:
        found: set[fx.Node] = set()
        waiting = list(self.reading.kept)
        while waiting:
            node = waiting.pop()
            if node not in found and node is not self.reading.entry:
                found.add(node)
                waiting.extend(self._sources(node))
        return sorted_by_graph(self.tail, found)

    def _norm(self, node: fx.Node) -> fx.Node | None:
        """Return the batch norm that goes into this convolution's weights, or None."""
        spatial = self.reading.spatial.get(node)
        norm = norm_behind(self.tail, node)
        wanted = norm in self.reading.grids and norm in self.needed and node not in self.reading.kept
        return norm if spatial is not None and spatial.kind == "convolution" and wanted else None

    def _spread(self) -> None:
        """Work out every footprint, each kept once: equal ones are the same thing afterwards."""
        reach = len(STENCILS[self.kernel]) // 2
        entry = first_footprint((self.features.shape[2], self.features.shape[3]), reach)
        self.footprints[self.reading.entry] = self._one(Footprint(entry.rows.to(self.device), entry.columns.to(self.device)))
        for node in self.needed:
            spatial = self.reading.spatial.get(node)
            before = [self.footprints[source] for source in self._sources(node)]
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
        for known in self.prints:
            if known.same(footprint):
                return known
        self.prints.append(footprint)
        return footprint

    def _one_taps(self, taps: Taps) -> Taps:
        for known in self.taps:
            if torch.equal(known.rows.cpu(), taps.rows) and torch.equal(known.columns.cpu(), taps.columns):
                return known
        self.taps.append(Taps(taps.rows.to(self.device), taps.columns.to(self.device)))
        return self.taps[-1]

    def _is_point(self, node: fx.Node) -> bool:
        spatial = self.reading.spatial[node]
        return spatial.kind == "convolution" and spatial.taps.count == 1 and spatial.groups == 1

    def _wanted(self) -> set[fx.Node]:
        """Return the maps whose blank answer some step asks for."""
        wanted = set(self.reading.kept)
        for node in self.needed:
            spatial = self.reading.spatial.get(node)
            if spatial is None:
                wanted.update(s for s in self._sources(node) if self.footprints[s] is not self.footprints[node])
            elif spatial.kind != "copy" and not self._is_point(node):
                wanted.update((node.all_input_nodes[0], self.folded.get(node, node)))
        return wanted

    def _width(self, node: fx.Node) -> int:
        return math.prod(self.reading.shapes[node])

    def _one_cell(self, node: fx.Node) -> Tensor:
        return self.features.new_zeros((1, *self.reading.shapes[node]))

    def _map(self, node: fx.Node) -> Map:
        blank = self.blanks.get(node, self.features.new_empty(0))
        return Map(node.name, self.footprints[node], self._width(node), blank)

    def plan(self, budget_bytes: int) -> LocalPlan | None:
        """Make the steps, fit them to the budget, and count."""
        steps: list[Step] = []
        with torch.no_grad():
            for node in self.needed:
                if node not in self.folded.values():
                    steps.append(self._step(node, steps))
        kept = self.reading.kept
        output = next(node for node in self.tail.graph.nodes if node.op == "output")
        rest = None if self.reading.complete else part_from(self.tail, kept, output)
        entry = self._map(self.reading.entry)
        plan = LocalPlan(self.tail, self.kernel, steps, [entry, *map(self._map, kept)], rest)
        widths = {node.name: self._width(node) for node in [self.reading.entry, *self.needed]}
        load = load_of(steps, entry, widths, {node.name for node in kept}, self.features.element_size())
        whole = [self._whole(node) for node in kept]
        plan.fit(budget_bytes, load, _bytes_of(rest, whole) if rest else 1)
        if plan.chunk_bytes < int(load.total.max()):
            return None  # not even one cell fits beside the blanks
        plan.facts = self._facts(plan, steps, whole, budget_bytes)
        return plan

    def _whole(self, node: fx.Node) -> Tensor:
        """Return one whole map as ``rest`` will be given it."""
        blank = self.blanks[node]
        height, width = self.reading.grids[node]
        return blank if blank.dim() == 2 else blank.view(height, width, 1, -1).permute(2, 3, 0, 1)

    def _step(self, node: fx.Node, before: list[Step]) -> Step:
        sources = [self._map(source) for source in self._sources(node)]
        target = self._map(self.folded.get(node, node))
        spatial = self.reading.spatial.get(node)
        if spatial is None:
            return self._cellwise(node, sources, target, before)
        if spatial.kind == "convolution":
            weight, bias = self._weights(node, spatial)
            if self._is_point(node):
                return PointStep(sources[0], target, spatial.taps, weight.flatten(1), bias)
            return ConvolutionStep(sources[0], target, spatial, weight)
        if spatial.kind == "average":
            assert spatial.scale is not None  # noqa: S101 - every average has one
            return AverageStep(sources[0], target, spatial, spatial.scale)
        return (LargestStep if spatial.kind == "largest" else CopyStep)(sources[0], target, spatial)

    def _weights(self, node: fx.Node, spatial: Spatial) -> tuple[Tensor, Tensor | None]:
        """Return a convolution's weight and bias, with the batch norm behind it worked in."""
        assert spatial.weight is not None  # noqa: S101 - every convolution has one
        weight, bias = spatial.weight.detach(), None if spatial.bias is None else spatial.bias.detach()
        if node not in self.folded:
            return weight, bias
        norm = self.tail.get_submodule(str(self.folded[node].target))
        assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None  # noqa: PT018, S101
        return fuse_conv_bn_weights(  # type: ignore[return-value]
            weight, bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )

    def _cellwise(self, node: fx.Node, sources: list[Map], target: Map, before: list[Step]) -> Step:
        nodes = self._sources(node)
        free = [self._is_free(source, node, before) for source in nodes]
        plain = node.all_input_nodes == nodes or node.all_input_nodes == nodes[::-1]
        if plain and len(sources) == 2 and node.target in _SUMS and not node.kwargs and sources[0].width == sources[1].width:
            return SumStep(sources, target, free=(free[0], free[1]))
        part = part_from(self.tail, nodes, node)
        if plain and len(nodes) == 1 and free[0]:
            _work_in_place(part)
        cell = [self._one_cell(source) for source in nodes]
        with torch.inference_mode():
            shares = part(*cell).untyped_storage().data_ptr()
        held = {value.untyped_storage().data_ptr() for value, spare in zip(cell, free, strict=True) if not spare}
        return CellwiseStep(sources, target, part, fresh=shares not in held, products=_products(part, cell))

    def _is_free(self, source: fx.Node, reader: fx.Node, before: list[Step]) -> bool:
        """Say whether ``reader`` may write over ``source``: nobody reads it later, and it shares no memory."""
        if source in self.reading.kept or any(source in self._sources(n) for n in self._after(reader)):
            return False
        made = [step for step in before if step.target == source.name]
        return not made or made[0].fresh

    def _after(self, node: fx.Node) -> list[fx.Node]:
        return self.needed[self.needed.index(node) + 1 :]

    def _facts(self, plan: LocalPlan, steps: list[Step], whole: list[Tensor], budget_bytes: int) -> PlanFacts:
        cells = plan.grid[0] * plan.grid[1]
        after = 0 if plan.rest is None else _products(plan.rest, whole)
        windows: list[tuple[str, int, int]] = []
        for step in steps:
            if not windows or windows[-1][1:] != step.after.window:
                windows.append((step.target, *step.after.window))
        blanks_bytes = sum(buffer.nbytes for name, buffer in plan.named_buffers() if "blank" in name)
        busy = min(plan.chunk_bytes, int(plan.load.total.sum()))
        return replace(
            plan.facts,
            why="layers that look at a neighbourhood only" + (", then the rest on whole maps" if plan.rest else ""),
            grid=plan.grid,
            windows=tuple(windows),
            multiply_adds=sum(step.multiply_adds for step in steps) + cells * after,
            dense_multiply_adds=cells * _products(self.tail, [self.features]),
            bytes=min(budget_bytes, busy + blanks_bytes),
        )


def _work_in_place(part: fx.GraphModule) -> None:
    """Let a single activation write over its input."""
    inner = [node for node in part.graph.nodes if node.op not in {"placeholder", "output"}]
    if len(inner) != 1:
        return
    node = inner[0]
    if node.op == "call_module" and hasattr(module := part.get_submodule(str(node.target)), "inplace"):
        twin = copy.copy(module)
        setattr(twin, "inplace", True)  # noqa: B010 - only some modules have it, and mypy knows none
        part.set_submodule(str(node.target), twin)
    elif node.target is F.relu:
        node.kwargs = {**node.kwargs, "inplace": True}
        part.recompile()


def _products(part: nn.Module, inputs: list[Tensor]) -> int:
    """Count the multiply-adds of one run."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        part(*inputs)
    return int(counter.get_total_flops()) // 2


def _bytes_of(part: fx.GraphModule, inputs: list[Tensor]) -> int:
    """Return the bytes of everything a part makes of one set of maps: an upper bound of what is alive at a time."""
    total = 0

    class Adder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            nonlocal total
            answer: object = super().run_node(n)
            total += answer.nbytes if isinstance(answer, Tensor) else 0
            return answer

    with torch.inference_mode():
        Adder(part).run(*inputs)
    return total
