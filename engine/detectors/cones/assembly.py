"""Joins the index tables of several anchors, so that each tensor operation computes all of them.

The values of an operation are stored in one tensor: the base values of whole maps, a row of zeros, a row of -inf, then
the changed vectors of all anchors. For a feature map of the cut: the values of all images, then a map of zeros.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from engine.detectors.cones.axes import AxisCones
from engine.detectors.cones.graph import Affine, Convolution, Entry, Factors, Operation, Positions, Resampling
from engine.detectors.cones.tables import BASE, CHANGED, KINDS, LOWEST, ZERO, Indices, Job, Template, Templates
from engine.detectors.cones.wiring import Edge, Wiring

MAX_KEPT = 8
"""Number of cached assemblies: boxes that do not move have the same tables in the next frame."""
MAX_KEPT_VECTORS = 1 << 16
"""Maximum number of vectors of a cached assembly."""
PADDING = 2
"""Number of rows (zeros, -inf) between the base values and the changed vectors."""


@dataclass(frozen=True)
class Store:
    """The kind and the number of the base values that a batch's responses are computed from."""

    images: int
    """Number of images of the batch."""
    drop: bool
    """True: base values are the plain pass of each image; False: the response to all-zero features."""

    def base_rows(self, cells: int) -> int:
        """Return the number of rows of base values of an operation with ``cells`` positions."""
        return cells * (self.images if self.drop else 1)


@dataclass(frozen=True, eq=False)
class Group:
    """The windows of the anchors of one family at one edge, laid out as one image."""

    vectors: slice
    """The vectors of the reader that are computed from the image."""
    size: tuple[int, int]
    """Rows and columns of the image."""
    strides: tuple[int, int]
    """Steps between the windows."""
    inputs: Tensor
    """Row index of the root's values for each position: (rows * columns,)."""
    results: Tensor
    """Output positions of the image, one for each vector."""

    def positions(self, edge: Edge) -> int:
        """Return the number of output positions of the image."""
        counts = [
            (size - slide.extent) // stride + 1
            for size, stride, slide in zip(self.size, self.strides, edge.slides, strict=True)
        ]
        return counts[0] * counts[1]


@dataclass(frozen=True, eq=False)
class Change:
    """The taps whose values a mask changes; all other taps have their base values."""

    unchanged: Tensor
    """Row index of the root's base value for each tap: (vectors * taps,)."""
    own: Tensor
    """Row index of the convolution's base value for each vector: (vectors,)."""
    kernel: Tensor
    """Position of each tap in the kernel: (vectors * taps,), or for one anchor if equal for all."""


@dataclass(frozen=True, eq=False)
class Taps:
    """The taps of a depthwise convolution that are gathered, for the anchors of one family."""

    vectors: slice
    """The vectors that are computed from these taps."""
    inputs: Tensor
    """Row index of the root's value for each tap: (vectors * taps,)."""
    change: Change | None
    """The taps that the mask changes, if only these are read; None: all taps of the kernel are read."""


@dataclass(frozen=True, eq=False)
class Assembly:
    """Absolute index tables of several anchors."""

    counts: list[int]
    """Number of vectors of each operation."""
    offsets: Positions
    """Index of the first vector of each job in each operation: (jobs, operations)."""
    runs: list[Run]
    """Runs of consecutive jobs with equal templates."""
    inputs: list[Tensor | None]
    """Indices of each edge; None: the edge reads all changed vectors of its root, in order."""
    groups: list[list[Group]]
    """The images of each edge with laid out windows."""
    taps: list[list[Taps]]
    """The taps of each edge of a depthwise convolution without laid out windows."""
    weights: list[Tensor | None]
    """Factors of the indices of each edge of a resampling."""
    picks: dict[int, list[tuple[slice, tuple[int, ...]]]]
    """For operations of which only some channels are read: the vectors and channels to compute."""

    def multiply_adds(self, wiring: Wiring) -> int:
        """Return the number of multiply-adds of the vectors of this assembly."""
        total = 0
        for number, operation in enumerate(wiring.operations):
            count = self.counts[number]
            if number in self.picks:
                values = sum((rows.stop - rows.start) * len(channels) for rows, channels in self.picks[number])
                total += values * _products(operation) // operation.width
            elif isinstance(operation, Convolution) and operation.laid_out:
                (edge,) = wiring.incoming[number]
                total += sum(group.positions(edge) for group in self.groups[edge.number]) * operation.weight.numel()
                total += sum(len(taps.inputs) for taps in self.taps[edge.number]) * operation.width
            elif isinstance(operation, Resampling):
                weights = [self.weights[edge.number] for edge in wiring.incoming[number]]
                total += operation.width * sum(w.numel() for w in weights if w is not None)
            else:
                total += count * _products(operation)
        return total


def _products(operation: Operation) -> int:
    """Return the number of multiply-adds of one vector of a convolution."""
    if isinstance(operation, Affine):
        return sum(weight.numel() for weight in operation.weights if weight is not None)
    return operation.weight.numel() if isinstance(operation, Convolution) else 0


@dataclass(frozen=True, eq=False)
class Run:
    """Consecutive jobs with equal templates."""

    jobs: slice
    template: Template
    flat: Indices
    """Absolute indices of each job: (jobs, indices)."""

    def __len__(self) -> int:
        return int(self.jobs.stop - self.jobs.start)


class Assembler:
    """Joins the templates of several anchors to an assembly."""

    def __init__(self, wiring: Wiring, device: torch.device) -> None:
        self.wiring, self.device = wiring, device
        self.templates = Templates(wiring)
        self.latest: OrderedDict[tuple[object, ...], Assembly] = OrderedDict()
        self.columns = np.array([operation.grid[1] for operation in wiring.operations])
        self.cells = np.array([operation.grid[0] * operation.grid[1] for operation in wiring.operations])
        self.is_entry = np.array([isinstance(operation, Entry) for operation in wiring.operations])

    def assemble(self, jobs: Sequence[Job], store: Store, *, plain: bool = False) -> Assembly:
        """Return the absolute tables of some anchors.

        Args:
            jobs: the anchors, in the order of ``Job.order``.
            store: the base values.
            plain: True: regions contain the unmasked features in both modes, to compute base values.
        """
        key = (store, plain, *(job.content for job in jobs))
        assembly = self.latest.pop(key, None) or self._build(jobs, store, plain=plain)
        if sum(assembly.counts) <= MAX_KEPT_VECTORS:
            self.latest[key] = assembly
        if len(self.latest) > MAX_KEPT:
            self.latest.popitem(last=False)
        return assembly

    def _build(self, jobs: Sequence[Job], store: Store, *, plain: bool) -> Assembly:
        parts, templates = self._runs(jobs)
        lengths = [part.stop - part.start for part in parts]
        counts = np.stack([template.counts for template in templates]).repeat(lengths, 0)
        offsets = np.cumsum(counts, 0) - counts
        shifts = self._shifts(jobs, offsets, store, hides=store.drop and not plain)
        runs = [
            Run(part, template, template.indices + shifts[part][:, template.kinds])
            for part, template in zip(parts, templates, strict=True)
        ]
        edges = len(self.wiring.edges)
        assembly = Assembly(
            counts.sum(0).tolist(), offsets, runs, [None] * edges, [[] for _ in range(edges)],
            [[] for _ in range(edges)], [None] * edges, self._picks(jobs, counts, offsets),
        )  # fmt: skip
        bases = np.where(self.is_entry, self.cells * (store.images + 1), self.cells * store.base_rows(1)) + PADDING
        known: dict[tuple[object, ...], Tensor] = {}
        for edge in self.wiring.edges:
            users = [run for run in runs if run.template.counts[edge.reader]]
            if users:
                self._add_edge(edge, users, jobs, (assembly, int(bases[edge.root])), known)
        return assembly

    def _runs(self, jobs: Sequence[Job]) -> tuple[list[slice], list[Template]]:
        """Return the runs of jobs with equal templates, and the template of each run."""
        keys = [job.order[:4] for job in jobs]
        starts = [n for n in range(len(jobs)) if n == 0 or keys[n] != keys[n - 1]]
        parts = [slice(start, stop) for start, stop in pairwise([*starts, len(jobs)])]
        return parts, [self.templates.get(jobs[start]) for start in starts]

    def _add_edge(
        self,
        edge: Edge,
        users: Sequence[Run],
        jobs: Sequence[Job],
        target: tuple[Assembly, int],
        known: dict[tuple[object, ...], Tensor],
    ) -> None:
        """Add the tables of one edge; edges that read the same values share one table."""
        assembly, base = target
        number = edge.number
        if edge.slides:
            for part in _families(users, jobs):
                if jobs[part[0].jobs.start].families[0].readings[number] == "laid out":
                    assembly.groups[number].append(self._group(edge, part, jobs, assembly, known))
                else:
                    assembly.taps[number].append(self._taps(edge, part, assembly, known))
            return
        in_order = all(run.template.in_order[number] for run in users)
        if not in_order or assembly.counts[edge.root] != assembly.counts[edge.reader]:
            assembly.inputs[number] = self._inputs(edge, users, (assembly, base), known)
        if edge.weights is not None:
            weights = [run.template.weights[number] for run in users for _ in range(len(run))]
            assembly.weights[number] = self._joined(weights)

    def _inputs(
        self, edge: Edge, users: Sequence[Run], target: tuple[Assembly, int], known: dict[tuple[object, ...], Tensor]
    ) -> Tensor:
        assembly, base = target
        key: list[object] = [edge.root]
        for run in users:
            part = run.template.inputs[edge.number]
            key.append((run.jobs.start, run.template.in_order[edge.number] or (part.start, part.stop)))
        if tuple(key) not in known:
            tables = []
            for run in users:
                first = base + int(assembly.offsets[run.jobs.start, edge.root])
                if run.template.in_order[edge.number]:
                    count = len(run) * int(run.template.counts[edge.root])
                    tables.append(np.arange(first, first + count, dtype=np.int32))
                else:
                    tables.append(run.flat[:, run.template.inputs[edge.number]].ravel())
            known[tuple(key)] = self._joined(tables)
        return known[tuple(key)]

    def _picks(
        self, jobs: Sequence[Job], counts: Positions, offsets: Positions
    ) -> dict[int, list[tuple[slice, tuple[int, ...]]]]:
        """Return the vectors and channels to compute for operations of which only some channels are read."""
        found: dict[int, list[tuple[slice, tuple[int, ...]]]] = {}
        if any(job.channels is None for job in jobs):
            return found
        for number, job in enumerate(jobs):
            outputs = [output for output, _ in job.families[0].anchors[job.anchors[0]]]
            for output, channels in zip(outputs, job.channels or (), strict=True):
                operation = self.wiring.outputs[output][0]
                if operation not in self.wiring.selectable or len(channels) == self.wiring.operations[operation].width:
                    continue
                start = int(offsets[number, operation])
                stop = start + int(counts[number, operation])
                parts = found.setdefault(operation, [])
                if parts and parts[-1][1] == channels and parts[-1][0].stop == start:
                    parts[-1] = slice(parts[-1][0].start, stop), channels
                elif stop > start:
                    parts.append((slice(start, stop), channels))
        return found

    def _shifts(self, jobs: Sequence[Job], offsets: Positions, store: Store, *, hides: bool) -> Indices:
        """Return the offsets of each kind of index of each operation: (jobs, operations * KINDS)."""
        origins = np.stack([job.cones[0].origins for job in jobs]) * self.columns
        origins += np.stack([job.cones[1].origins for job in jobs])
        images = np.array([job.image for job in jobs])[:, None]
        base = self.cells * store.base_rows(1)
        shown = images * self.cells + origins
        blank = store.images * self.cells + origins
        zeros = np.where(self.is_entry, (store.images + 1) * self.cells, base)
        shifts = np.zeros((*origins.shape, KINDS), np.int32)
        shifts[:, :, CHANGED] = np.where(self.is_entry, blank if hides else shown, base + PADDING + offsets)
        unchanged = shown if store.drop else origins
        shifts[:, :, BASE] = np.where(self.is_entry, shown if hides else blank, unchanged)
        shifts[:, :, ZERO], shifts[:, :, LOWEST] = zeros, zeros + 1
        return shifts.reshape(len(jobs), -1)

    def _group(
        self,
        edge: Edge,
        users: Sequence[Run],
        jobs: Sequence[Job],
        assembly: Assembly,
        known: dict[tuple[object, ...], Tensor],
    ) -> Group:
        number, reader = edge.number, edge.reader
        rows, columns = jobs[users[0].jobs.start].families
        strides = (rows.steps[number], columns.steps[number])
        pitch = columns.pitches[number]
        width = (pitch - edge.slides[1].extent) // strides[1] + 1
        height, inputs, results = 0, [], []
        key: list[object] = [edge.root]
        for run in users:
            part, step = run.template.inputs[number], run.template.heights[number]
            tops = height + step * np.arange(len(run), dtype=np.int32)
            inputs.append(run.flat[:, part])
            results.append((run.flat[:, run.template.results[number]] + tops[:, None] // strides[0] * width).ravel())
            height += step * len(run)
            key.append((run.jobs.start, part.start, part.stop))
        if tuple(key) not in known:
            known[tuple(key)] = self._joined([table.ravel() for table in inputs])
        first, last = users[0].jobs.start, users[-1].jobs.stop - 1
        start = int(assembly.offsets[first, reader])
        stop = int(assembly.offsets[last, reader] + users[-1].template.counts[reader])
        return Group(slice(start, stop), (height, pitch), strides, known[tuple(key)], self._joined(results))

    def _taps(
        self, edge: Edge, users: Sequence[Run], assembly: Assembly, known: dict[tuple[object, ...], Tensor]
    ) -> Taps:
        number, first, last = edge.number, users[0], users[-1]
        start = int(assembly.offsets[first.jobs.start, edge.reader])
        stop = int(assembly.offsets[last.jobs.stop - 1, edge.reader] + last.template.counts[edge.reader])
        changes = [run.template.changes[number] for run in users if number in run.template.changes]
        kind = "changes" if changes else "values"
        inputs = self._flat(kind, users, [run.template.inputs[number] for run in users], known)
        if not changes:
            return Taps(slice(start, stop), inputs, None)
        kernels = [change.kernel for change in changes]
        if len(users) > 1:
            kernels = [np.tile(kernel, len(run)) for kernel, run in zip(kernels, users, strict=True)]
        unchanged, own = (
            self._flat("base", users, parts, known)
            for parts in ([change.unchanged for change in changes], [change.own for change in changes])
        )
        return Taps(slice(start, stop), inputs, Change(unchanged, own, self._joined(kernels)))

    def _flat(
        self, kind: str, users: Sequence[Run], parts: Sequence[slice], known: dict[tuple[object, ...], Tensor]
    ) -> Tensor:
        """Concatenate tables of some runs; equal tables are returned as the same object."""
        key = (kind, *((run.jobs.start, part.start, part.stop) for run, part in zip(users, parts, strict=True)))
        if key not in known:
            known[key] = self._joined([run.flat[:, part].ravel() for run, part in zip(users, parts, strict=True)])
        return known[key]

    def _joined(self, tables: Sequence[Indices | Positions | Factors]) -> Tensor:
        return torch.from_numpy(tables[0] if len(tables) == 1 else np.concatenate(tables)).to(self.device)


def _families(users: Sequence[Run], jobs: Sequence[Job]) -> list[list[Run]]:
    """Group the runs by family of anchors."""
    parts: list[list[Run]] = []
    families: tuple[AxisCones, AxisCones] | None = None
    for run in users:
        if jobs[run.jobs.start].families is not families:
            parts.append([])
            families = jobs[run.jobs.start].families
        parts[-1].append(run)
    return parts
