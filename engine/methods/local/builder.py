"""The local plan, for tails that start with convolutions: computes only positions that a mask can change.

The zero response of a map is its value for the all-zero input; it does not depend on the image. For the masked map of
cell p, each later map equals its zero response, except at the active sites: the positions whose receptive field
contains a cell of the mask, a window around p that grows from layer to layer. So each layer is computed only at its
active sites, for many cells p at once. The sites depend only on sizes and are computed when the plan is built
(``footprint``), after the analysis of the tail (``analysis``).

Before a layer that needs the full map (squeeze-excite, attention, flatten) the maps are completed with the zero
response, and the rest of the tail runs on full maps.
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
from engine.methods.local.plan import LocalPlan, memory_cost
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
"""A plan with this factor fewer multiply-adds is used without timing: for thirty layers of known networks, the measured
speed-up was 0.5 to 1.9 times the ratio of multiply-adds."""
TIMED_CELLS = 24
TIMED_ROUNDS = 3
"""Number of alternating runs of each plan; the shortest time counts, and the first run warms up."""

_SUMS = (operator.add, torch.add)


def find_local(tail: nn.Module, features: Tensor, kernel: Kernel, budget_bytes: int) -> LocalPlan | None:
    """Return a local plan if the tail starts with layers that read a bounded neighbourhood, else None.

    The caller must check the result with ``verify_plan`` and compare its cost (``why_not_cheaper``).

    Args:
        tail: computes logits (N, K) from maps (N, C, h, w).
        features: the feature map, (N, C, h, w).
        kernel: the shape of the masks.
        budget_bytes: maximum working memory of the plan, in bytes.
    """
    if not isinstance(tail, fx.GraphModule) or features.device.type == "meta":
        return None
    analysis = analyze_tail(tail, features)
    if analysis.outputs == [analysis.entry] or not analysis.outputs:
        return None
    return _Builder(Layout(tail, features, kernel, analysis)).plan(budget_bytes)


def why_not_cheaper(plan: LocalPlan, tail: nn.Module, features: Tensor, kernel: Kernel) -> str:
    """Return "" if the plan is cheaper than the dense plan, else the reason: its counts or times.

    The numbers of multiply-adds decide if they differ by more than ``CLEARLY_CHEAPER``. If they are close, memory
    traffic matters too, and both plans are timed on some cells.
    """
    counted, dense = plan.info.multiply_adds or 0, plan.info.dense_multiply_adds or 0
    if dense >= CLEARLY_CHEAPER * counted:
        return ""
    if dense < counted:
        return f"it needs {counted / 1e9:.3g} G multiply-adds, but the dense plan only {dense / 1e9:.3g} G"
    cells = torch.linspace(0, plan.grid[0] * plan.grid[1] - 1, TIMED_CELLS).round().long().to(features.device)
    first = features[:1]
    calls: tuple[Callable[[], object], ...] = (
        lambda: plan.cell_logits(first, cells),
        lambda: reference_scores(tail, first, kernel, cells),
    )
    with torch.inference_mode():
        times = [[_seconds(call, features.device) for call in calls] for _ in range(TIMED_ROUNDS)]
    local, direct = (min(column) for column in zip(*times, strict=True))
    return "" if local < direct else f"it takes {local / direct:.2f} times as long as the dense plan"


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


class _Builder:
    """Builds the steps of a local plan from its layout."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def plan(self, budget_bytes: int) -> LocalPlan | None:
        """Return the plan; None if one cell does not fit into the budget."""
        steps: list[Step] = []
        with torch.no_grad():
            for node in self.layout.needed:
                if node not in self.layout.folded.values():
                    steps.append(self._step(node, steps))
        outputs = self.layout.analysis.outputs
        output = next(node for node in self.layout.tail.graph.nodes if node.op == "output")
        rest = None if self.layout.analysis.complete else part_from(self.layout.tail, outputs, output)
        entry = self.layout.map_of(self.layout.analysis.entry)
        plan = LocalPlan(self.layout.tail, self.layout.kernel, steps, [entry, *map(self.layout.map_of, outputs)], rest)
        widths = {node.name: self.layout.width(node) for node in [self.layout.analysis.entry, *self.layout.needed]}
        cost = memory_cost(steps, entry, widths, {node.name for node in outputs}, self.layout.features.element_size())
        full_maps = [self._full_map(node) for node in outputs]
        plan.fit(budget_bytes, cost, _bytes_of(rest, full_maps) if rest else 1)
        if plan.working_bytes > budget_bytes:
            return None  # the zero responses leave no memory for one cell
        plan.info = self._info(plan, steps, full_maps)
        return plan

    def _full_map(self, node: fx.Node) -> Tensor:
        """Return the zero response of a map in the input shape of ``rest``: (1, C, h, w) or (1, C)."""
        zero_response = self.layout.zero_responses[node]
        height, width = self.layout.analysis.grids[node]
        if zero_response.dim() == 2:
            return zero_response
        return zero_response.view(height, width, 1, -1).permute(2, 3, 0, 1)

    def _step(self, node: fx.Node, before: list[Step]) -> Step:
        sources = [self.layout.map_of(source) for source in self.layout.sources(node)]
        target = self.layout.map_of(self.layout.folded.get(node, node))
        spatial = self.layout.analysis.spatial.get(node)
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
        """Return a convolution's weight and bias; a batch norm after it is merged into them."""
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
        direct = node.all_input_nodes == nodes or node.all_input_nodes == nodes[::-1]
        same_shape = len({self.layout.analysis.shapes[source] for source in nodes}) == 1
        if direct and same_shape and len(nodes) == 2 and node.target in _SUMS and not node.kwargs:
            return SumStep(sources, target, free=(free[0], free[1]))
        part = part_from(self.layout.tail, nodes, node)
        if direct and len(nodes) == 1 and free[0]:
            _work_in_place(part)
        cell = [self.layout.one_cell(source) for source in nodes]
        with torch.inference_mode():
            output_address = part(*cell).untyped_storage().data_ptr()
        in_use = {value.untyped_storage().data_ptr() for value, is_free in zip(cell, free, strict=True) if not is_free}
        fresh = output_address not in in_use
        return CellwiseStep(sources, target, part, fresh=fresh, products=_products(part, cell))

    def _is_free(self, source: fx.Node, reader: fx.Node, before: list[Step]) -> bool:
        """Return whether ``reader`` may overwrite ``source``: it has no later reader or shared memory."""
        later = self.layout.needed[self.layout.needed.index(reader) + 1 :]
        if source in self.layout.analysis.outputs or any(source in self.layout.sources(node) for node in later):
            return False
        # The step that wrote ``source``, and earlier readers, may have outputs that share its memory.
        related = [step for step in before if step.target == source.name or source.name in step.sources]
        return all(step.fresh for step in related)

    def _info(self, plan: LocalPlan, steps: list[Step], full_maps: list[Tensor]) -> PlanInfo:
        cells = plan.grid[0] * plan.grid[1]
        after = 0 if plan.rest is None else _products(plan.rest, full_maps)
        windows: list[tuple[str, int, int]] = []
        for step in steps:
            if not windows or windows[-1][1:] != step.after.window:
                windows.append((step.target, *step.after.window))
        return replace(
            plan.info,
            reason="layers that read a bounded neighbourhood" + (", then the rest on full maps" if plan.rest else ""),
            grid=plan.grid,
            windows=tuple(windows),
            multiply_adds=sum(step.multiply_adds for step in steps) + cells * after,
            dense_multiply_adds=cells * _products(self.layout.tail, [self.layout.features]),
            bytes=plan.working_bytes,
        )


def _work_in_place(part: fx.GraphModule) -> None:
    """If a part is a single activation, make it overwrite its input."""
    inner = [node for node in part.graph.nodes if node.op not in {"placeholder", "output"}]
    if len(inner) != 1:
        return
    node = inner[0]
    if node.op == "call_module" and hasattr(module := part.get_submodule(str(node.target)), "inplace"):
        copied = copy.copy(module)
        setattr(copied, "inplace", True)  # noqa: B010 - only some modules have it, and mypy knows none
        part.set_submodule(str(node.target), copied)
    elif node.target is F.relu:
        node.kwargs = {**node.kwargs, "inplace": True}
        part.recompile()


def _products(part: nn.Module, inputs: list[Tensor]) -> int:
    """Return the number of multiply-adds of ``part`` for these inputs."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        part(*inputs)
    return int(counter.get_total_flops()) // 2


def _bytes_of(part: fx.GraphModule, inputs: list[Tensor]) -> int:
    """Return the size in bytes of the outputs of a part's nodes, an upper bound of its memory."""
    with torch.inference_mode():
        outputs = (output for _, output in iter_node_outputs(part, *inputs))
        return sum(output.nbytes for output in outputs if isinstance(output, Tensor))
