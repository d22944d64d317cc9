"""Computes the vectors of cones, in one pass through the operations for all anchors together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.detectors.cones.assembly import PADDING, Assembly, Group, Store, Taps
from engine.detectors.cones.graph import (
    Affine,
    Cellwise,
    Concatenation,
    Convolution,
    Entry,
    Maximum,
    Operation,
    Resampling,
)
from engine.detectors.cones.wiring import Edge, Wiring

MAX_WINDOWS = 0.5
"""Maximum fraction of a map at which only the windows that anchors need are stored."""
FIRST_IMAGE = 100
"""Number of the first temporary slot for images; larger than any operation's number of sources."""


class Buffers:
    """Memory for the values of all operations, for one mode and one number of images; grows as needed."""

    def __init__(self, wiring: Wiring, store: Store, example: Tensor) -> None:
        self.wiring, self.store = wiring, store
        self.example = example
        self.tables: list[Tensor] = []
        self.bases: list[int] = []
        self.cells = [operation.grid[0] * operation.grid[1] for operation in wiring.operations]
        for operation in wiring.operations:
            cells = operation.grid[0] * operation.grid[1]
            rows = cells * (store.images + 1) if isinstance(operation, Entry) else store.base_rows(cells)
            self.bases.append(rows)
            self.tables.append(self._empty(rows + PADDING, operation.width))
            self.tables[-1].zero_()
            if isinstance(operation, Entry) and operation.blank is not None:
                self.tables[-1][:rows] = operation.blank
            self.tables[-1][rows + 1] = -torch.inf
        self.inactive = {
            number: self._empty(self.bases[number], operation.width)
            for number, operation in enumerate(wiring.operations)
            if isinstance(operation, Convolution) and operation.laid_out and operation.activations
        }
        """Base values of depthwise convolutions before activation; changes are added to them."""
        self.scratch: dict[int, Tensor] = {}
        self.gathered: dict[int, tuple[Tensor, Tensor]] = {}
        """Indices and values of the images that the last operation with laid out windows read, by slot."""

    def _empty(self, rows: int, width: int) -> Tensor:
        return torch.empty((rows, width), dtype=self.example.dtype, device=self.example.device)

    def vectors(self, number: int, count: int) -> Tensor:
        """Return the memory of an operation's changed vectors: (count, width)."""
        start = self.bases[number] + PADDING
        table = self.tables[number]
        if len(table) < start + count:
            grown = self._empty(start + count + count // 2, table.shape[1])
            grown[:start] = table[:start]
            self.tables[number] = table = grown
        return table[start : start + count]

    def temporary(self, slot: int, rows: int, width: int) -> Tensor:
        """Return memory (rows, width) that is valid until the next call with the same slot."""
        size = rows * width
        self.gathered.pop(slot, None)
        memory = self.scratch.get(slot)
        if memory is None or memory.numel() < size:
            self.scratch[slot] = memory = self._empty(1, size + size // 2)[0]
        return memory[:size].view(rows, width)

    def image(self, slot: int, root: int, indices: Tensor) -> Tensor:
        """Return rows of an operation's values; the last gathered table is reused."""
        known = self.gathered.get(slot)
        if known is not None and known[0] is indices:
            return known[1]
        table = self.tables[root]
        rows = torch.index_select(table, 0, indices, out=self.temporary(slot, len(indices), table.shape[1]))
        self.gathered[slot] = indices, rows
        return rows

    def taps(self, slot: int, root: int, taps: Taps) -> Tensor:
        """Return the values of taps, or their change by a mask; the last gathered table is reused."""
        known = self.gathered.get(slot)
        if taps.change is None or (known is not None and known[0] is taps.inputs):
            return self.image(slot, root, taps.inputs)
        rows = self.image(slot, root, taps.inputs)
        return rows.sub_(self.tables[root].index_select(0, taps.change.unchanged))

    def write_features(self, number: int, feature: Tensor, windows: Sequence[tuple[int, slice, slice]]) -> None:
        """Store a feature map (N, C, h, w), at least in ``windows``: (image, rows, columns)."""
        images, _, height, width = feature.shape
        table = self.tables[number][: images * height * width].view(images, height, width, -1)
        moved = feature.permute(0, 2, 3, 1)
        area = sum((rows.stop - rows.start) * (columns.stop - columns.start) for _, rows, columns in windows)
        if area > MAX_WINDOWS * height * width:
            table.copy_(moved)
            return
        for image, rows, columns in windows:
            if rows.stop > rows.start and columns.stop > columns.start:
                table[image, rows, columns] = moved[image, rows, columns]


def execute(
    wiring: Wiring,
    buffers: Buffers,
    assembly: Assembly,
    weights: dict[Operation, Tensor],
    *,
    inactive: dict[int, Tensor] | None = None,
) -> None:
    """Compute all changed vectors.

    Args:
        wiring: the operations.
        buffers: memory of the features, the base values and the results.
        assembly: the index tables.
        weights: matrices of the convolutions that read their taps by table (``tap_matrices``).
        inactive: filled with the vectors before activation of the operations in ``buffers.inactive``.
    """
    buffers.gathered.clear()
    for number, operation in enumerate(wiring.operations):
        count = assembly.counts[number]
        if count == 0 or isinstance(operation, Entry):
            continue
        step = _Step(wiring, buffers, assembly, number, count)
        if number in assembly.picks:
            step.picked(operation, assembly.picks[number], weights.get(operation))
        else:
            step.run(operation, weights.get(operation))
        if inactive is not None and number in buffers.inactive:
            inactive[number] = step.out.clone()
        for activation in operation.activations:
            activation(step.out)


def tap_matrices(wiring: Wiring) -> dict[Operation, Tensor]:
    """Return reordered weights of the operations.

    Convolutions that read by table: (groups, taps * C / groups, C' / groups). 1x1 convolutions of which single channels
    are computed: (C', C). Depthwise convolutions: (taps, C).
    """
    found: dict[Operation, Tensor] = {}
    for number, operation in enumerate(wiring.operations):
        if isinstance(operation, Affine) and number in wiring.selectable and len(operation.sources) == 1:
            found[operation] = cast("Tensor", operation.weights[0]).t().contiguous()
        if isinstance(operation, Convolution) and operation.laid_out:
            found[operation] = operation.weight.flatten(1).t().contiguous()
        elif isinstance(operation, Convolution):
            weight = operation.weight
            grouped = weight.reshape(operation.groups, -1, *weight.shape[1:])
            found[operation] = grouped.permute(0, 3, 4, 2, 1).flatten(1, 3).contiguous()
    return found


class _Step:
    """One operation in one pass."""

    def __init__(self, wiring: Wiring, buffers: Buffers, assembly: Assembly, number: int, count: int) -> None:
        self.buffers, self.assembly = buffers, assembly
        self.edges = wiring.incoming[number]
        self.out = buffers.vectors(number, count)
        self.count = count

    def run(self, operation: Operation, matrix: Tensor | None) -> None:
        """Compute all vectors; ``matrix`` contains the weights of a convolution that gathers its taps."""
        if isinstance(operation, Affine):
            self.affine(operation)
        elif isinstance(operation, Convolution | Maximum) and operation.laid_out:
            self.laid_out(operation)
            self.read_taps(cast("Convolution", operation), matrix)
        elif isinstance(operation, Convolution) and matrix is not None:
            self.convolution(operation, matrix)
        elif isinstance(operation, Resampling):
            self.weighted_sum()
        elif isinstance(operation, Concatenation):
            torch.cat([self.gather(edge, slot) for slot, edge in enumerate(self.edges)], 1, out=self.out)
        elif isinstance(operation, Cellwise):
            parts = [self.gather(edge, slot)[:, :, None, None] for slot, edge in enumerate(self.edges)]
            self.out.copy_(operation.part(*parts).flatten(1))
        else:
            self.maximum()

    def gather(self, edge: Edge, slot: int, rows: slice | None = None) -> Tensor:
        """Return the vectors that an edge reads, one per index; ``rows`` selects some of them."""
        indices = self.assembly.inputs[edge.number]
        if indices is None:
            vectors = self.buffers.vectors(edge.root, self.count)
            return vectors if rows is None else vectors[rows]
        if rows is not None:
            indices = indices.view(self.count, -1)[rows].flatten()
        table = self.buffers.tables[edge.root]
        return torch.index_select(table, 0, indices, out=self.buffers.temporary(slot, len(indices), table.shape[1]))

    def affine(self, operation: Affine) -> None:
        """Compute the sum of the sources, each multiplied by its matrix."""
        terms = sorted(zip(self.edges, operation.weights, strict=True), key=lambda term: term[1] is not None)
        started = False
        bias = operation.bias
        for edge, weight in terms:
            indices = self.assembly.inputs[edge.number]
            if weight is None and not started and indices is not None:
                torch.index_select(self.buffers.tables[edge.root], 0, indices, out=self.out)
            elif weight is None:
                value = self.gather(edge, 0)
                self.out.add_(value) if started else self.out.copy_(value)
            elif started:
                self.out.addmm_(self.gather(edge, 0), weight)
            elif bias is not None:
                torch.addmm(bias, self.gather(edge, 0), weight, out=self.out)
                bias = None
            else:
                torch.mm(self.gather(edge, 0), weight, out=self.out)
            started = True
        if bias is not None:
            self.out.add_(bias)

    def picked(
        self, operation: Operation, picks: Sequence[tuple[slice, tuple[int, ...]]], matrix: Tensor | None
    ) -> None:
        """Compute only the channels of an operation that are read."""
        counts = [rows.stop - rows.start for rows, channels in picks if len(channels) == 1]
        alone = isinstance(operation, Affine) and len(operation.sources) == 1 and matrix is not None
        if not alone or len(counts) < len(picks) or sum(counts) != self.count:
            for rows, channels in picks:
                self.channels(operation, rows, list(channels), matrix)
            return
        chosen = np.repeat([channels[0] for _, channels in picks], counts)
        columns = torch.from_numpy(chosen).to(self.out.device)
        products = self.gather(self.edges[0], 0) * cast("Tensor", matrix).index_select(0, columns)
        values = products.sum(1)
        bias = cast("Affine", operation).bias
        values = values if bias is None else values + bias[columns]
        self.out.scatter_(1, columns[:, None], values[:, None])

    def channels(self, operation: Operation, rows: slice, channels: list[int], matrix: Tensor | None) -> None:
        """Compute some channels of some vectors of a convolution."""
        total = self.out.new_zeros(rows.stop - rows.start, len(channels))
        if isinstance(operation, Affine):
            for edge, weight in zip(self.edges, operation.weights, strict=True):
                if weight is not None:
                    total.addmm_(self.gather(edge, 0, rows), weight[:, channels])
        elif matrix is not None:
            total.addmm_(self.gather(self.edges[0], 0, rows).view(len(total), -1), matrix[0][:, channels])
        bias = cast("Affine | Convolution", operation).bias
        self.out[rows, channels] = total if bias is None else total.add_(bias[channels])

    def convolution(self, operation: Convolution, matrix: Tensor) -> None:
        """Compute a convolution from its taps, gathered by table."""
        (edge,) = self.edges
        taps = self.gather(edge, 0).view(self.count, -1)
        if operation.groups == 1 and operation.bias is not None:
            torch.addmm(operation.bias, taps, matrix[0], out=self.out)
            return
        grouped = taps.view(self.count, -1, operation.groups, operation.weight.shape[1]).permute(2, 0, 1, 3)
        products = torch.bmm(grouped.flatten(2), matrix)  # (groups, R, C' / groups)
        self.out.view(self.count, operation.groups, -1).copy_(products.transpose(0, 1))
        if operation.bias is not None:
            self.out.add_(operation.bias)

    def laid_out(self, operation: Convolution | Maximum) -> None:
        """Compute an operation on windows that are laid out as images."""
        (edge,) = self.edges
        width = self.buffers.tables[edge.root].shape[1]
        for slot, group in enumerate(self.assembly.groups[edge.number]):
            rows = self.buffers.image(FIRST_IMAGE + slot, edge.root, group.inputs)
            image = rows.view(1, *group.size, width).permute(0, 3, 1, 2)
            result = _slide(operation, image, edge, group).permute(0, 2, 3, 1)
            torch.index_select(result.reshape(-1, width), 0, group.results, out=self.out[group.vectors])

    def read_taps(self, operation: Convolution, matrix: Tensor | None) -> None:
        """Compute the vectors of a depthwise convolution without laid out windows; ``matrix`` is (taps, C)."""
        (edge,) = self.edges
        number = edge.reader
        for slot, taps in enumerate(self.assembly.taps[edge.number], len(self.assembly.groups[edge.number])):
            out, factors, base = self.out[taps.vectors], cast("Tensor", matrix), operation.bias
            if taps.change is not None:
                factors = factors.index_select(0, taps.change.kernel)
                unchanged = self.buffers.inactive.get(number, self.buffers.tables[number])
                base = unchanged.index_select(0, taps.change.own)
            values = self.buffers.taps(FIRST_IMAGE + slot, edge.root, taps).view(-1, *factors.shape)
            products = (values * factors).view(len(out), -1, out.shape[1])
            summed = products[:, 0] if products.shape[1] == 1 else products.sum(1)
            torch.add(summed, 0.0 if base is None else base, out=out)

    def weighted_sum(self) -> None:
        """Compute the sum of the taps, each times its factor."""
        (edge,) = self.edges
        indices, factors = self.assembly.inputs[edge.number], self.assembly.weights[edge.number]
        table = self.buffers.tables[edge.root]
        if factors is None:
            return
        if indices is None:
            start = self.buffers.bases[edge.root] + PADDING
            indices = torch.arange(start, start + self.count, device=table.device)
        self.out.copy_(
            F.embedding_bag(
                indices.long().view(self.count, -1), table, mode="sum", per_sample_weights=factors.view(self.count, -1)
            )
        )

    def maximum(self) -> None:
        """Compute the maximum of taps gathered by table."""
        (edge,) = self.edges
        torch.amax(self.gather(edge, 0).view(self.count, -1, self.out.shape[1]), 1, out=self.out)


def _slide(operation: Convolution | Maximum, image: Tensor, edge: Edge, group: Group) -> Tensor:
    rows, columns = edge.slides
    dilation = [rows.dilation, columns.dilation]
    if isinstance(operation, Maximum):
        return F.max_pool2d(image, [rows.kernel, columns.kernel], list(group.strides), dilation=dilation)
    return F.conv2d(image, operation.weight, operation.bias, group.strides, 0, dilation, operation.groups)
