"""Converts a traced tail to a graph of operations with known receptive fields.

``build_graph`` runs the traced tail once on random maps and classifies each node:

- a convolution, pooling or padding (``engine.methods.local.receptive_field``);
- a resampling: a linear operation, equal for all channels, and separable by rows and columns. Its taps and weights are
  measured, so that all interpolation modes and all variants of exporters are covered;
- a cellwise operation: the same function of each cell, which is tested on separate cells. Activations, sums and
  concatenations are recognised by their values on a wide range of inputs.

All other operations (group norm, attention, pooling of the whole map) make the maps after them depend on all positions:
the tail then has no cones, and ``LayerError`` names the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from engine.detectors.cones.graph import (
    Affine,
    Cellwise,
    Concatenation,
    ConeGraph,
    Convolution,
    Copy,
    Entry,
    Factors,
    Function,
    Maximum,
    Operation,
    Positions,
    Resampling,
    Slide,
)
from engine.methods.local.analysis import Grid, as_rows, closure, norm_after, part_from, sorted_by_graph
from engine.methods.local.receptive_field import SpatialOp, read_spatial
from pipeline.errors import LayerError

PROBED_CELLS = 64
PROBE_RANGE = 10.0
"""Standard deviation of the inputs that distinguish activations (ReLU and ReLU6 differ above 6)."""


def _in_place(function: Function) -> Function:
    return lambda x: x.copy_(function(x))


_ACTIVATIONS: tuple[tuple[Function, Function | None], ...] = (
    (lambda x: x, None),
    (F.silu, lambda x: F.silu(x, inplace=True)),
    (F.relu, torch.relu_),
    (F.relu6, lambda x: x.clamp_(0.0, 6.0)),
    (F.hardswish, lambda x: F.hardswish(x, inplace=True)),
    (F.hardsigmoid, lambda x: F.hardsigmoid(x, inplace=True)),
    (torch.sigmoid, torch.sigmoid_),
    (torch.tanh, torch.tanh_),
    *((lambda x, s=s: F.leaky_relu(x, s), lambda x, s=s: F.leaky_relu_(x, s)) for s in (0.1, 0.01, 0.2)),
    (F.elu, F.elu_),
    (F.gelu, _in_place(F.gelu)),
    (F.mish, lambda x: F.mish(x, inplace=True)),
    (F.softplus, _in_place(F.softplus)),
)
"""Each activation, and its in-place version (None: the identity)."""


def build_graph(tail: fx.GraphModule, features: Sequence[Tensor]) -> ConeGraph:
    """Return the operations of a tail for the sizes of ``features``.

    Args:
        tail: computes the raw maps, in any nesting of tuples and lists, from the features, each (N, C, h, w).
        features: example features; only shapes, devices and dtypes are used.

    Raises:
        LayerError: a raw map depends on a layer without cones.
    """
    with torch.no_grad():
        return _Builder(tail).run(features)


class _Builder:
    """Runs a tail once and records its operations."""

    def __init__(self, tail: fx.GraphModule) -> None:
        self.tail = tail
        self.interpreter = fx.Interpreter(tail)
        self.maps: dict[fx.Node, Any] = {}
        self.rows: dict[fx.Node, Any] = {}
        """Values of the cells as a batch of single vectors, by node."""
        self.grids: dict[fx.Node, Grid] = {}
        """The grid of each value that depends on the features."""
        self.operations: dict[fx.Node, Operation] = {}
        self.refused: dict[fx.Node, str] = {}
        self.generator = torch.Generator().manual_seed(5)

    def run(self, features: Sequence[Tensor]) -> ConeGraph:
        remaining = list(features)
        entries: list[Entry] = []
        for node in self.tail.graph.nodes:
            if node.op == "output":
                return ConeGraph(tuple(entries), tuple(self._outputs(node)))
            if node.op == "placeholder":
                example = remaining.pop(0)
                self.maps[node] = self._random((1, *example.shape[1:])).to(example)
                _, width, height, columns = self.maps[node].shape
                entries.append(Entry(node.name, (height, columns), width, index=len(entries), feature=len(entries)))
                self._record(node, entries[-1])
            else:
                self._step(node)
        raise LayerError("the tail has no output node")

    def _outputs(self, node: fx.Node) -> list[Operation]:
        found: list[Operation] = []
        for output in node.all_input_nodes:
            if output not in self.operations:
                reason = self.refused.get(output, f"map {output.name} does not depend on the features")
                raise LayerError(f"the tail has no cones: {reason}; use the dense plan at the box's own level")
            found.append(self.operations[output])
        return found

    def _random(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def _record(self, node: fx.Node, operation: Operation) -> None:
        self.operations[node] = operation
        self.grids[node] = operation.grid
        self.rows[node] = as_rows(self.maps[node], operation.grid)

    def _call(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:  # noqa: ANN401 - any layer's output
        call: Callable[..., Any] = getattr(self.interpreter, node.op)
        return call(node.target, map_arg(node.args, values.__getitem__), map_arg(node.kwargs, values.__getitem__))

    def _step(self, node: fx.Node) -> None:
        self.maps[node] = output = self._call(node, self.maps)
        used = node.all_input_nodes
        if not any(source in self.grids or source in self.refused for source in used):
            self.rows[node] = output  # a constant of the network
            return
        for source in used:
            if source in self.refused:
                self.refused[node] = self.refused[source]
                return
        if self._folded(node) or self._spatial(node) or self._resampling(node) or self._cellwise(node):
            return
        self.refused[node] = f"layer {self._label(node)} reads more than a neighbourhood of each position"

    def _label(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"{node.target} ({type(self.tail.get_submodule(str(node.target))).__name__})"
        return f"{node.name} ({getattr(node.target, '__name__', node.target)})"

    def _folded(self, node: fx.Node) -> bool:
        """Merge a batch norm into the convolution before it; return False for other nodes."""
        source = node.all_input_nodes[0]
        if source not in self.operations or norm_after(self.tail, source) is not node:
            return False
        if not isinstance(self.operations[source], Convolution | Affine) or not self._is_convolution(source):
            return False
        self.operations[source].node = node.name
        self._record(node, self.operations[source])
        return True

    def _is_convolution(self, node: fx.Node) -> bool:
        return node.op == "call_module" and isinstance(self.tail.get_submodule(str(node.target)), nn.Conv2d)

    def _spatial(self, node: fx.Node) -> bool:
        source = node.all_input_nodes[0]
        output = self.maps[node]
        if source not in self.operations or not isinstance(output, Tensor) or self.maps[source].dim() != 4:
            return False
        arguments = map_arg(node.args, self.maps.__getitem__), map_arg(node.kwargs, self.maps.__getitem__)
        spatial = read_spatial(self.tail, node, arguments, self.maps[source], output)
        if spatial is None or output.dim() != 4 or (spatial.kind == "copy" and not self._pads_zeros(node, source)):
            return False
        self._record(node, self._windowed(node, spatial))
        return True

    def _pads_zeros(self, node: fx.Node, source: fx.Node) -> bool:
        zero = torch.zeros_like(self.maps[source])
        return not bool(self._call(node, self.maps | {source: zero}).any())

    def _windowed(self, node: fx.Node, spatial: SpatialOp) -> Operation:
        source = self.operations[node.all_input_nodes[0]]
        taps = (spatial.taps.rows.numpy(), spatial.taps.columns.numpy())
        grid, width = (len(taps[0]), len(taps[1])), int(self.maps[node].shape[1])
        if spatial.kind == "copy":
            return Copy(node.name, grid, width, (source,), taps=(taps[0][:, 0], taps[1][:, 0]))
        slides = _slides(taps, source.grid)
        if spatial.kind == "largest":
            return Maximum(node.name, grid, width, (source,), taps=taps, slides=slides)
        if spatial.kind == "average":
            return self._average(node, source, spatial)
        weight, bias = cast("Tensor", spatial.weight).detach(), spatial.bias
        norm = norm_after(self.tail, node)
        if norm is not None and self._is_convolution(node):
            n: Any = self.tail.get_submodule(str(norm.target))
            weight, bias = fuse_conv_bn_weights(weight, bias, n.running_mean, n.running_var, n.eps, n.weight, n.bias)
        weight, bias = weight.detach(), None if bias is None else bias.detach()
        if weight.shape[2:] == (1, 1) and spatial.groups == 1:
            matrix = weight[:, :, 0, 0].t().contiguous()
            rows, columns = taps[0][:, 0], taps[1][:, 0]
            if grid != source.grid or any((t != np.arange(len(t))).any() for t in (rows, columns)):
                source = Copy(f"{node.name}.input", grid, source.width, (source,), taps=(rows, columns))
            return Affine(node.name, grid, width, (source,), weights=(matrix,), bias=bias)
        return Convolution(
            node.name, grid, width, (source,),
            taps=taps, slides=slides, weight=weight, bias=bias, groups=spatial.groups,
        )  # fmt: skip

    def _average(self, node: fx.Node, source: Operation, spatial: SpatialOp) -> Operation:
        """Return an average pooling; each factor is the product of a row factor and a column factor."""
        taps = (spatial.taps.rows.numpy(), spatial.taps.columns.numpy())
        scale = cast("Tensor", spatial.scale).reshape(len(taps[0]), len(taps[1])).double()
        by_row, by_column = scale[:, 0] / scale[0, 0], scale[0]
        factors = tuple(
            np.where(t >= 0, f.cpu().numpy()[:, None], 0).astype(np.float32)
            for t, f in zip(taps, (by_row, by_column), strict=True)
        )
        return Resampling(
            node.name, (len(taps[0]), len(taps[1])), source.width, (source,),
            taps=taps, tap_weights=(factors[0], factors[1]),
        )  # fmt: skip

    def _resampling(self, node: fx.Node) -> bool:
        """Record a separable resampling that is equal for all channels; return False for other nodes."""
        dynamic = [source for source in node.all_input_nodes if source in self.operations]
        output = self.maps[node]
        if len(dynamic) != 1 or not isinstance(output, Tensor) or output.dim() != 4:
            return False
        source = self.operations[dynamic[0]]
        grid = (int(output.shape[2]), int(output.shape[3]))
        if output.shape[1] != source.width or grid == source.grid:
            return False
        matrices = []
        for axis in (0, 1):
            indicator = torch.eye(source.grid[axis]).unsqueeze(2 - axis).expand(-1, *source.grid)[None].contiguous()
            try:
                answer = self._call(node, self.maps | {dynamic[0]: indicator.to(output)})
            except Exception:  # noqa: BLE001 - a layer may refuse another number of channels in any way
                return False
            if answer.shape[1:] != (source.grid[axis], *grid):
                return False
            matrices.append(answer[0].select(2 - axis, 0).t())  # (size of the output, size of the source)
        rows, columns = matrices
        separable = torch.einsum("yi,nkij,xj->nkyx", rows, self.maps[dynamic[0]], columns)
        if not torch.allclose(separable, output, rtol=1e-4, atol=1e-4):
            return False
        (row_taps, row_factors), (column_taps, column_factors) = map(_taps_of, matrices)
        if all(f.shape[1] == 1 and (f == 1).all() for f in (row_factors, column_factors)):
            taps = (row_taps[:, 0], column_taps[:, 0])
            self._record(node, Copy(node.name, grid, source.width, (source,), taps=taps))
        else:
            self._record(
                node,
                Resampling(
                    node.name, grid, source.width, (source,),
                    taps=(row_taps, column_taps), tap_weights=(row_factors, column_factors),
                ),
            )  # fmt: skip
        return True

    def _cellwise(self, node: fx.Node) -> bool:
        """Record a node that computes each cell only from the same cell; return False for other nodes."""
        grids = {self.grids[source] for source in node.all_input_nodes if source in self.grids}
        if len(grids) != 1 or any(source not in self.rows for source in node.all_input_nodes):
            return False
        grid = grids.pop()
        try:
            separate = self._call(node, self.rows)
        except Exception:  # noqa: BLE001 - the network's own layers may fail for single cells in any way
            return False
        output = self.maps[node]
        is_map = isinstance(output, Tensor) and output.dim() == 4 and tuple(output.shape[2:]) == grid
        if is_map and isinstance(separate, Tensor):
            if not _agree(as_rows(output, grid), separate):
                return False
            self._record(node, self._function(node))
            return True
        self.rows[node], self.grids[node] = separate, grid  # a split or a reshaped map
        return True

    def _function(self, node: fx.Node) -> Operation:
        """Return the operation of a cellwise node."""
        inner, reached = closure(node, self.operations)
        nodes = self._without_gate(sorted_by_graph(self.tail, reached))
        if len(nodes) < len(reached):
            inner, _ = closure(node, nodes)
        values = {n: PROBE_RANGE * self._random((PROBED_CELLS, self.operations[n].width, 1, 1)) for n in nodes}
        values = {n: value.to(self.maps[n]) for n, value in values.items()}
        answer = self._evaluate(inner, values, node)
        grid, width = self.operations[nodes[0]].grid, int(self.maps[node].shape[1])
        if len(nodes) == 1:
            source, value = self.operations[nodes[0]], values[nodes[0]]
            for function, in_place in _ACTIVATIONS:
                if answer.shape == value.shape and torch.allclose(answer, function(value), rtol=1e-5, atol=1e-6):
                    if in_place is None:
                        return source
                    return Affine(node.name, grid, width, (source,), [in_place], weights=(None,))
        ordered = [n for n in node.all_input_nodes if n in self.operations]
        if set(ordered) == set(nodes) and len(ordered) > 1:
            sources = tuple(self.operations[n] for n in ordered)
            parts = [values[n] for n in ordered]
            if torch.equal(answer, torch.cat(parts, 1)):
                return Concatenation(node.name, grid, width, sources)
            if len({p.shape for p in parts}) == 1 and torch.equal(answer, sum(parts[1:], parts[0])):
                return Affine(node.name, grid, width, sources, weights=(None,) * len(sources))
        sources = tuple(self.operations[n] for n in nodes)
        return Cellwise(node.name, grid, width, sources, part=part_from(self.tail, nodes, node).eval())

    def _without_gate(self, nodes: list[fx.Node]) -> list[fx.Node]:
        """Return [x] for ``x * gate(x)``, the form of SiLU and hardswish in exported graphs."""
        if len(nodes) != 2:
            return nodes
        for value, gate in (nodes, nodes[::-1]):
            operation = self.operations[gate]
            if (
                operation.sources == (self.operations[value],)
                and isinstance(operation, Affine)
                and operation.activations
            ):
                return [value]
        return nodes

    def _evaluate(self, inner: set[fx.Node], values: dict[fx.Node, Any], end: fx.Node) -> Tensor:
        known = {n: v for n, v in self.maps.items() if n not in self.grids} | values
        for node in self.tail.graph.nodes:
            if node in inner:
                known[node] = self._call(node, known)
        answer: Tensor = known[end]
        return answer


def _agree(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape or not first.is_floating_point():
        return False
    allowed = torch.finfo(first.dtype).eps ** 0.5 * float(first.abs().max())
    return bool(float((first - second).abs().max()) <= allowed)


def _taps_of(matrix: Tensor) -> tuple[Positions, Factors]:
    """Return the nonzero columns of each row of a resampling matrix, and their values."""
    values = matrix.double().cpu().numpy()
    used = values != 0
    order = np.argsort(~used, axis=1, kind="stable")[:, : max(int(used.sum(1).max()), 1)]
    chosen = np.take_along_axis(used, order, 1)
    factors = np.take_along_axis(values, order, 1)
    return np.where(chosen, order, -1), np.where(chosen, factors, 0).astype(np.float32)


def _slides(taps: tuple[Positions, Positions], grid: Grid) -> tuple[Slide, Slide] | None:
    rows, columns = (_slide(table, size) for table, size in zip(taps, grid, strict=True))
    return None if rows is None or columns is None else (rows, columns)


def _slide(taps: Positions, size: int) -> Slide | None:
    """Return the sliding window with these taps; None if they are reflected, circular or adaptive."""
    count, kernel = taps.shape
    inside = taps >= 0
    both = inside[:, 1:] & inside[:, :-1]
    dilation = int((taps[:, 1:] - taps[:, :-1])[both][0]) if kernel > 1 and both.any() else 1
    first = np.where(inside, taps - np.arange(kernel) * dilation, np.iinfo(np.int64).min).max(1)
    seen = np.flatnonzero(inside.any(1))
    if len(seen) == 0 or dilation < 1:
        return None
    stride = int(first[seen[1]] - first[seen[0]]) // int(seen[1] - seen[0]) if len(seen) > 1 else 1
    pad = int(seen[0]) * stride - int(first[seen[0]])
    positions = np.arange(count)[:, None] * stride - pad + np.arange(kernel) * dilation
    expected = np.where((positions >= 0) & (positions < size), positions, -1)
    return Slide(kernel, stride, dilation, pad) if stride > 0 and (expected == taps).all() else None
