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
import operator
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils.flop_counter import FlopCounterMode

from engine.methods.kernels import Kernel
from engine.methods.local.analysis import analyze_tail, part_from
from engine.methods.local.layout import Layout
from engine.methods.local.plan import LocalPlan, load_of
from engine.methods.local.receptive_field import SpatialOp
from engine.methods.local.steps import (
    AvgPoolStep,
    CellwiseStep,
    ConvolutionStep,
    FeatureMapInfo,
    MaxPoolStep,
    PadStep,
    PointStep,
    Step,
    SumStep,
)
from engine.methods.plan import PlanInfo, reference_scores
from engine.split.fx_utils import iter_node_outputs

CLEARLY_CHEAPER = 3.0
"""From this many times fewer multiply-adds on, a plan is taken without asking the clock: over thirty cuts of known
networks the time gained lay between 0.5 and 1.9 times what the count promised."""
TIMED_CELLS = 24
TIMED_ROUNDS = 3
"""The fastest of so many runs each, in turn, counts; the first also warms up."""

_SUMS = (operator.add, torch.add)


def find_local(tail: nn.Module, features: Tensor, kernel: Kernel, budget_bytes: int) -> LocalPlan | None:
    """Return a local plan if the tail begins with layers that look at a neighbourhood only.

    What it returns still has to be proven, and may cost more than the definition: its facts tell.
    """
    if not isinstance(tail, fx.GraphModule) or features.device.type == "meta":
        return None
    reading = analyze_tail(tail, features)
    if reading.preserved == [reading.entry] or not reading.preserved:
        return None
    return _Builder(Layout(tail, features, kernel, reading)).plan(budget_bytes)


def why_not_cheaper(plan: LocalPlan, tail: nn.Module, features: Tensor, kernel: Kernel) -> str:
    """Return "" where the plan is cheaper than the definition, else what was counted or measured.

    Multiply-adds decide where they differ clearly. Where they are close, memory traffic matters as much, and both run
    against the clock on a few cells.
    """
    counted, dense = plan.info.multiply_adds or 0, plan.info.dense_multiply_adds or 0
    if dense >= CLEARLY_CHEAPER * counted:
        return ""
    if dense < counted:
        return f"it would take {counted / 1e9:.3g} G multiply-adds, the definition {dense / 1e9:.3g} G"
    cells = torch.linspace(0, plan.grid[0] * plan.grid[1] - 1, TIMED_CELLS).round().long().to(features.device)
    one = features[:1]
    ways: tuple[Callable[[], object], ...] = (
        lambda: plan.answers(one, cells),
        lambda: reference_scores(tail, one, kernel, cells),
    )
    with torch.inference_mode():
        times = [[_seconds(way, features.device) for way in ways] for _ in range(TIMED_ROUNDS)]
    local, direct = (min(column) for column in zip(*times, strict=True))
    return "" if local < direct else f"it takes {local / direct:.2f} times as long as the definition"


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


class _Builder:
    """Turns a layout into steps."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def plan(self, budget_bytes: int) -> LocalPlan | None:
        """Make the steps, fit them to the budget, and count."""
        steps: list[Step] = []
        with torch.no_grad():
            for node in self.layout.needed:
                if node not in self.layout.folded.values():
                    steps.append(self._step(node, steps))
        kept = self.layout.reading.preserved
        output = next(node for node in self.layout.tail.graph.nodes if node.op == "output")
        rest = None if self.layout.reading.complete else part_from(self.layout.tail, kept, output)
        entry = self.layout.map_of(self.layout.reading.entry)
        plan = LocalPlan(self.layout.tail, self.layout.kernel, steps, [entry, *map(self.layout.map_of, kept)], rest)
        widths = {node.name: self.layout.width(node) for node in [self.layout.reading.entry, *self.layout.needed]}
        load = load_of(steps, entry, widths, {node.name for node in kept}, self.layout.features.element_size())
        whole = [self._whole(node) for node in kept]
        plan.fit(budget_bytes, load, _bytes_of(rest, whole) if rest else 1)
        if plan.working_bytes > budget_bytes:
            return None  # not even one cell fits beside the blanks
        plan.info = self._facts(plan, steps, whole)
        return plan

    def _whole(self, node: fx.Node) -> Tensor:
        """Return one whole map as ``rest`` will be given it."""
        blank = self.layout.blanks[node]
        height, width = self.layout.reading.grids[node]
        return blank if blank.dim() == 2 else blank.view(height, width, 1, -1).permute(2, 3, 0, 1)

    def _step(self, node: fx.Node, before: list[Step]) -> Step:
        sources = [self.layout.map_of(source) for source in self.layout.sources(node)]
        target = self.layout.map_of(self.layout.folded.get(node, node))
        spatial = self.layout.reading.spatial.get(node)
        if spatial is None:
            return self._cellwise(node, sources, target, before)
        if spatial.kind == "convolution":
            weight, bias = self._weights(node, spatial)
            if self.layout.is_point(node):
                return PointStep(sources[0], target, spatial.taps, weight.flatten(1), bias)
            return ConvolutionStep(sources[0], target, spatial, weight)
        if spatial.kind == "average":
            assert spatial.scale is not None  # noqa: S101 - every average has one
            return AvgPoolStep(sources[0], target, spatial, spatial.scale)
        return (MaxPoolStep if spatial.kind == "largest" else PadStep)(sources[0], target, spatial)

    def _weights(self, node: fx.Node, spatial: SpatialOp) -> tuple[Tensor, Tensor | None]:
        """Return a convolution's weight and bias, with the batch norm behind it worked in."""
        assert spatial.weight is not None  # noqa: S101 - every convolution has one
        weight, bias = spatial.weight.detach(), None if spatial.bias is None else spatial.bias.detach()
        if node not in self.layout.folded:
            return weight, bias
        norm = self.layout.tail.get_submodule(str(self.layout.folded[node].target))
        assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None  # noqa: PT018, S101
        return fuse_conv_bn_weights(weight, bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)

    def _cellwise(
        self, node: fx.Node, sources: list[FeatureMapInfo], target: FeatureMapInfo, before: list[Step]
    ) -> Step:
        nodes = self.layout.sources(node)
        free = [self._is_free(source, node, before) for source in nodes]
        plain = node.all_input_nodes == nodes or node.all_input_nodes == nodes[::-1]
        alike = len({self.layout.reading.shapes[source] for source in nodes}) == 1
        if plain and alike and len(nodes) == 2 and node.target in _SUMS and not node.kwargs:
            return SumStep(sources, target, free=(free[0], free[1]))
        part = part_from(self.layout.tail, nodes, node)
        if plain and len(nodes) == 1 and free[0]:
            _work_in_place(part)
        cell = [self.layout.one_cell(source) for source in nodes]
        with torch.inference_mode():
            fractions = part(*cell).untyped_storage().data_ptr()
        held = {value.untyped_storage().data_ptr() for value, spare in zip(cell, free, strict=True) if not spare}
        return CellwiseStep(sources, target, part, fresh=fractions not in held, products=_products(part, cell))

    def _is_free(self, source: fx.Node, reader: fx.Node, before: list[Step]) -> bool:
        """Say whether ``reader`` may write over ``source``: nobody reads it later, and it shares no memory."""
        later = self.layout.needed[self.layout.needed.index(reader) + 1 :]
        if source in self.layout.reading.preserved or any(source in self.layout.sources(node) for node in later):
            return False
        # Whoever made it, and whoever read it before, may hold the same memory under another name.
        touched = [step for step in before if step.target == source.name or source.name in step.sources]
        return all(step.fresh for step in touched)

    def _facts(self, plan: LocalPlan, steps: list[Step], whole: list[Tensor]) -> PlanInfo:
        cells = plan.grid[0] * plan.grid[1]
        after = 0 if plan.rest is None else _products(plan.rest, whole)
        windows: list[tuple[str, int, int]] = []
        for step in steps:
            if not windows or windows[-1][1:] != step.after.window:
                windows.append((step.target, *step.after.window))
        return replace(
            plan.info,
            reason="layers that look at a neighbourhood only" + (", then the rest on whole maps" if plan.rest else ""),
            grid=plan.grid,
            windows=tuple(windows),
            multiply_adds=sum(step.multiply_adds for step in steps) + cells * after,
            dense_multiply_adds=cells * _products(self.layout.tail, [self.layout.features]),
            bytes=plan.working_bytes,
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
    with torch.inference_mode():
        answers = (answer for _, answer in iter_node_outputs(part, *inputs))
        return sum(answer.nbytes for answer in answers if isinstance(answer, Tensor))
