"""Absolute index tables of several anchors, so that one operation on tensors computes all anchors together.

The values of an operation lie in one tensor: the base values of whole maps, a row of zeros, a row of -inf, then the
changed vectors of all anchors. The values of a feature map of the cut are those of all images, then a map of zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.detectors.cones.axes import AxisCones, Edge, Wiring
from engine.detectors.cones.graph import Affine, Convolution, Entry, Positions, Resampling
from engine.detectors.cones.tables import BASE, CHANGED, KINDS, LOWEST, ZERO, Indices, Job, Template, Templates

PADDING = 2
"""Rows of zeros and of -inf between the base values and the changed vectors."""


@dataclass(frozen=True)
class Store:
    """Number and meaning of the base values."""

    images: int
    """Number of images of the batch."""
    drop: bool
    """The base is the plain pass of each image; else the response to all-zero features."""

    def base_rows(self, cells: int) -> int:
        """Return the number of rows of base values of an operation with ``cells`` positions."""
        return cells * (self.images if self.drop else 1)


@dataclass(frozen=True, eq=False)
class Group:
    """The windows of the anchors of one family at one edge, laid out as one image."""

    vectors: slice
    """The reader's vectors that the image gives."""
    size: tuple[int, int]
    """Rows and columns of the image."""
    strides: tuple[int, int]
    """Steps between the windows."""
    inputs: Tensor
    """Rows of the root's values: (rows * columns,)."""
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
class Assembly:
    """Absolute tables of several anchors."""

    counts: list[int]
    """Vectors of each operation."""
    offsets: Positions
    """First vector of each job in each operation: (jobs, operations)."""
    inputs: list[Tensor | None]
    """Indices of each edge; None = the edge reads all changed vectors of its root in order."""
    groups: list[list[Group]]
    """The images of each edge with laid out windows."""
    weights: list[Tensor | None]
    """Factors of the indices of each edge of a resampling."""
    templates: list[Template]
    """One for each job."""

    def multiply_adds(self, wiring: Wiring) -> int:
        """Return the number of multiply-adds of the vectors of this assembly."""
        total = 0
        for number, operation in enumerate(wiring.operations):
            count = self.counts[number]
            if isinstance(operation, Affine):
                total += count * sum(weight.numel() for weight in operation.weights if weight is not None)
            elif isinstance(operation, Convolution) and operation.laid_out:
                (edge,) = wiring.incoming[number]
                count = sum(group.positions(edge) for group in self.groups[edge.number])
                total += count * operation.weight.numel()
            elif isinstance(operation, Convolution):
                total += count * operation.weight.numel()
            elif isinstance(operation, Resampling):
                weights = [self.weights[edge.number] for edge in wiring.incoming[number]]
                total += operation.width * sum(w.numel() for w in weights if w is not None)
        return total


class Assembler:
    """Joins the templates of anchors."""

    def __init__(self, wiring: Wiring, device: torch.device) -> None:
        self.wiring, self.device = wiring, device
        self.templates = Templates(wiring)
        self.columns = np.array([operation.grid[1] for operation in wiring.operations])
        self.cells = np.array([operation.grid[0] * operation.grid[1] for operation in wiring.operations])
        self.is_entry = np.array([isinstance(operation, Entry) for operation in wiring.operations])
        self.roots = np.array([edge.root for edge in wiring.edges])

    def assemble(self, jobs: Sequence[Job], store: Store, *, plain: bool = False) -> Assembly:
        """Return the absolute tables of some anchors.

        Args:
            jobs: the anchors; those of one family follow each other.
            store: the base values.
            plain: the regions show the features in both modes. This computes base values.
        """
        templates = [self.templates.get(job) for job in jobs]
        counts = np.stack([template.counts for template in templates])
        offsets = np.cumsum(counts, 0) - counts
        hides = store.drop and not plain
        flat = [
            template.indices + self._shifts(job, offset, store, hides=hides)[template.kinds]
            for job, template, offset in zip(jobs, templates, offsets, strict=True)
        ]
        total: list[int] = counts.sum(0).tolist()
        count = len(self.wiring.edges)
        assembly = Assembly(total, offsets, [None] * count, [[] for _ in range(count)], [None] * count, templates)
        bases = np.where(self.is_entry, self.cells * (store.images + 1), self.cells * store.base_rows(1)) + PADDING
        users_of = [[j for j, n in enumerate(column) if n] for column in counts.T.tolist()]
        for edge in self.wiring.edges:
            users = users_of[edge.reader]
            if not users:
                continue
            number = edge.number
            if edge.slides:
                assembly.groups[number].extend(
                    self._group(edge, part, jobs, flat, assembly) for part in _parts(users, jobs)
                )
                continue
            in_order = [templates[j].in_order[number] for j in users]
            if not all(in_order) or total[edge.root] != total[edge.reader]:
                tables = []
                for j, ordered in zip(users, in_order, strict=True):
                    start = int(bases[edge.root] + offsets[j, edge.root])
                    table = np.arange(start, start + int(counts[j, edge.root]), dtype=np.int32)
                    tables.append(table if ordered else flat[j][templates[j].inputs[number]])
                assembly.inputs[number] = self._joined(tables)
            if edge.weights is not None:
                assembly.weights[number] = self._joined([templates[j].weights[number] for j in users])
        return assembly

    def _shifts(self, job: Job, offset: Positions, store: Store, *, hides: bool) -> Indices:
        """Return what to add to the relative indices of each kind of each edge: (edges * KINDS,)."""
        rows, columns = job.cones
        origin = rows.origins * self.columns + columns.origins
        base = self.cells * store.base_rows(1)
        shown = job.image * self.cells + origin
        blank = store.images * self.cells + origin
        changed = np.where(self.is_entry, blank if hides else shown, base + PADDING + offset)
        unchanged = np.where(self.is_entry, shown if hides else blank, shown if store.drop else origin)
        zeros = np.where(self.is_entry, (store.images + 1) * self.cells, base)
        shifts = np.zeros((len(self.roots), KINDS), np.int32)
        shifts[:, CHANGED], shifts[:, BASE] = changed[self.roots], unchanged[self.roots]
        shifts[:, ZERO], shifts[:, LOWEST] = zeros[self.roots], zeros[self.roots] + 1
        return shifts.ravel()

    def _group(
        self, edge: Edge, users: list[int], jobs: Sequence[Job], flat: Sequence[Indices], assembly: Assembly
    ) -> Group:
        rows, columns = jobs[users[0]].families
        number, reader = edge.number, edge.reader
        strides = (rows.steps[number], columns.steps[number])
        pitch = columns.pitches[number]
        width = (pitch - edge.slides[1].extent) // strides[1] + 1
        height, inputs, results = 0, [], []
        for j in users:
            template = assembly.templates[j]
            inputs.append(flat[j][template.inputs[number]])
            results.append(flat[j][template.results[number]] + np.int32(height // strides[0] * width))
            height += template.heights[number]
        start, last = int(assembly.offsets[users[0], reader]), users[-1]
        stop = int(assembly.offsets[last, reader] + assembly.templates[last].counts[reader])
        return Group(slice(start, stop), (height, pitch), strides, self._joined(inputs), self._joined(results))

    def _joined(self, tables: Sequence[npt.NDArray[np.int32] | npt.NDArray[np.float32]]) -> Tensor:
        return torch.from_numpy(tables[0] if len(tables) == 1 else np.concatenate(tables)).to(self.device)


def _parts(users: list[int], jobs: Sequence[Job]) -> list[list[int]]:
    """Return the runs of jobs of one family."""
    parts: list[list[int]] = []
    families: tuple[AxisCones, AxisCones] | None = None
    for j in users:
        if jobs[j].families is not families:
            parts.append([])
            families = jobs[j].families
        parts[-1].append(j)
    return parts
