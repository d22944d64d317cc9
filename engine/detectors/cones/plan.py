"""Cone plan: the responses of single boxes to all masks, computing only what a mask changes and the box needs.

A region of the image changes a cone of positions that widens from layer to layer; an anchor needs a cone that widens
backwards from its reads. Only positions in both are computed, for each region, from the *base*: the response to
all-zero features (``keep``; computed once) or the plain pass (``drop``; computed where it is needed). The result equals
``engine.detectors.definition.dense_responses`` to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.detectors.cones.assembly import PADDING, Assembler, Assembly, Store
from engine.detectors.cones.axes import AxisCones, Marks, changed_positions, region_marks, wire
from engine.detectors.cones.execute import Buffers, execute, tap_matrices
from engine.detectors.cones.graph import Entry, Positions
from engine.detectors.cones.rewrite import simplify
from engine.detectors.cones.tables import Job
from engine.detectors.cones.tracing import build_graph
from engine.detectors.definition import check_mode
from engine.detectors.outputs import Read
from engine.detectors.regions import Mode, Regions
from engine.detectors.split import DetectorSplit
from pipeline.errors import ConfigError

MAX_VALUES = 1 << 24
"""Largest number of values of one operation that are computed together: 64 MiB. More anchors, or more regions of one
anchor, are computed one after another."""
MAX_STORES = 4
"""Batch sizes and modes whose base values are kept."""

Families = tuple[AxisCones, AxisCones]


class AnchorReads(NamedTuple):
    """The vectors from which the explained scalar of one anchor is computed."""

    reads: tuple[Read, ...]
    image: int = 0
    """Index in the batch."""


@dataclass(frozen=True, eq=False)
class AnchorResponses:
    """Responses of one anchor: those of a window of regions, and the response of all regions outside of it."""

    grid: tuple[int, int]
    """Rows and columns of regions of the image."""
    first: tuple[int, int]
    """Row and column of the window's first region."""
    size: tuple[int, int]
    """Rows and columns of regions in the window; all others do not reach the anchor."""
    vectors: list[Tensor]
    """For each read, (1 + regions in the window, C): the response outside, then the window's, row by row."""

    def spread(self, values: Tensor) -> Tensor:
        """Return values of all regions, row by row, from values in the order of ``vectors``: (regions, ...)."""
        rows, columns = self.grid
        (top, left), (height, width) = self.first, self.size
        spread = values[:1].repeat(rows * columns, *[1] * (values.dim() - 1))
        window = spread.view(rows, columns, *values.shape[1:])[top : top + height, left : left + width]
        window.copy_(values[1:].view(height, width, *values.shape[1:]))
        return spread


class _Request(NamedTuple):
    """An anchor, its cones, and the responses to fill."""

    anchor: AnchorReads
    job: Job
    responses: AnchorResponses


class ConePlan:
    """Computes the responses of anchors to all masks.

    A plan holds the base values and its working memory, so only one thread may use it at a time.
    """

    def __init__(self, split: DetectorSplit, features: Sequence[Tensor]) -> None:
        """Analyze the tail.

        Args:
            split: the detector; its cut should be complete, so that the responses explain the image.
            features: an example of the features at the cut, each (N, C, h, w): shapes, type and device count.

        Raises:
            LayerError: the tail has a layer without cones; the message names it.
        """
        self.split = split
        self.shapes = [tuple(feature.shape[1:]) for feature in features]
        self.wiring = wire(simplify(build_graph(split.tail, features), split.cut.strides))
        self.matrices = tap_matrices(self.wiring)
        self.assembler = Assembler(self.wiring, features[0].device)
        self.widths = np.array([operation.width for operation in self.wiring.operations])
        self.example = features[0][:1]
        self.families: dict[tuple[int, tuple[tuple[int, int, int], ...]], Families] = {}
        self.changed: dict[int, tuple[list[Marks], list[Marks]]] = {}
        self.plain: dict[int, Families] = {}
        self.buffers: dict[Store, Buffers] = {}

    def responses(
        self, features: Sequence[Tensor], anchors: Sequence[AnchorReads], cell_px: int | Sequence[int], mode: Mode
    ) -> list[list[Tensor]]:
        """Return the vectors at the reads of each anchor, for each region.

        Args and errors are those of ``windows``.

        Returns:
            For each anchor, for each of its reads: (regions, C of its map), regions row by row.
        """
        found = self.windows(features, anchors, cell_px, mode)
        return [[responses.spread(vectors) for vectors in responses.vectors] for responses in found]

    def windows(
        self, features: Sequence[Tensor], anchors: Sequence[AnchorReads], cell_px: int | Sequence[int], mode: Mode
    ) -> list[AnchorResponses]:
        """Return the responses of each anchor for the regions that reach it, and for the others together.

        Args:
            features: the features at the cut, each (N, C, h, w), of any number of images.
            anchors: the explained anchors.
            cell_px: side of the regions in pixels: of all anchors, or one for each.
            mode: ``keep`` or ``drop``.

        Raises:
            ConfigError: the features have other shapes than those of the plan, a read lies outside its map, or the mode
                is unknown.
        """
        check_mode(mode)
        if [tuple(feature.shape[1:]) for feature in features] != self.shapes:
            shapes = [tuple(feature.shape[1:]) for feature in features]
            raise ConfigError(f"features of shapes {shapes}: the plan is for {self.shapes}; build a plan for this size")
        with torch.inference_mode():
            sides = [cell_px] * len(anchors) if isinstance(cell_px, int) else cell_px
            requests = [self._request(anchor, side) for anchor, side in zip(anchors, sides, strict=True)]
            ordered = sorted(requests, key=lambda request: id(request.job.families))
            buffers = self._prepare(features, mode, [request.job for request in ordered])
            if mode == "drop":
                for chunk in self._chunks([self._plain_job(request.job) for request in ordered]):
                    self._fill_plain(buffers, [job for _, job in chunk])
            for chunk in self._chunks([request.job for request in ordered]):
                assembly = self.assembler.assemble([job for _, job in chunk], buffers.store)
                execute(self.wiring, buffers, assembly, self.matrices)
                self._fill_responses(buffers, assembly, [(ordered[i], job) for i, job in chunk])
            return [request.responses for request in requests]

    def warm_up(self, reads: Sequence[Read], cell_px: int) -> None:
        """Build the index tables along both axes for all anchors of a level, given the reads of one of them.

        Otherwise they are built when an anchor is explained for the first time, which takes some milliseconds.
        """
        job = self._job(AnchorReads(tuple(reads)), cell_px)
        for family in job.families:
            for anchor in range(len(family.anchors)):
                family.cone(anchor, (0, len(family.changed[0])))

    def macs(self, anchors: Sequence[AnchorReads], cell_px: int, mode: Mode = "keep") -> int:
        """Return the number of multiply-adds of ``responses`` for some anchors, without the plain pass of ``drop``."""
        store = Store(1 + max((anchor.image for anchor in anchors), default=0), mode == "drop")
        jobs = sorted((self._job(anchor, cell_px) for anchor in anchors), key=lambda job: id(job.families))
        return sum(
            self.assembler.assemble([job for _, job in chunk], store).multiply_adds(self.wiring)
            for chunk in self._chunks(jobs)
        )

    def _prepare(self, features: Sequence[Tensor], mode: Mode, jobs: Sequence[Job]) -> Buffers:
        """Return the buffers of a batch that hold its features and, in mode ``keep``, the zero responses."""
        store = Store(len(features[0]), mode == "drop")
        buffers = self.buffers.pop(store, None)
        if buffers is None:
            buffers = Buffers(self.wiring, store, self.example)
            if not store.drop:
                self._fill_zero_responses(buffers)
        self.buffers[store] = buffers
        if len(self.buffers) > MAX_STORES:
            del self.buffers[next(iter(self.buffers))]
        for number, operation in enumerate(self.wiring.operations):
            if isinstance(operation, Entry):
                windows = [
                    (job.image, rows.span(number, job.anchors[0]), columns.span(number, job.anchors[1]))
                    for job in jobs
                    for rows, columns in [job.families]
                ]
                buffers.write_features(number, features[operation.index], windows)
        return buffers

    def _fill_zero_responses(self, buffers: Buffers) -> None:
        """Compute the response to all-zero features at all positions."""
        families = (AxisCones.of_whole_map(self.wiring, 0), AxisCones.of_whole_map(self.wiring, 1))
        job = Job(families, (0, 0), (0, 1))
        execute(
            self.wiring,
            buffers,
            Assembler(self.wiring, self.example.device).assemble([job], buffers.store),
            self.matrices,
        )
        for number, operation in enumerate(self.wiring.operations):
            if operation.sources:
                cells = operation.grid[0] * operation.grid[1]
                vectors = buffers.vectors(number, cells)
                buffers.tables[number][:cells] = vectors

    def _fill_plain(self, buffers: Buffers, jobs: Sequence[Job]) -> None:
        """Compute the plain pass at the positions that the anchors need."""
        assembly = self.assembler.assemble(jobs, buffers.store, plain=True)
        execute(self.wiring, buffers, assembly, self.matrices)
        for number, operation in enumerate(self.wiring.operations):
            if operation.sources and assembly.counts[number]:
                height, width = operation.grid
                targets = []
                for job in jobs:
                    rows, columns = (
                        np.flatnonzero(family.needed[number][anchor])
                        for family, anchor in zip(job.families, job.anchors, strict=True)
                    )
                    targets.append(((job.image * height + rows[:, None]) * width + columns).ravel())
                vectors = buffers.vectors(number, assembly.counts[number])
                base = buffers.tables[number][: buffers.bases[number]]
                base.index_copy_(0, torch.from_numpy(np.concatenate(targets)).to(base.device), vectors)

    def _plain_job(self, job: Job) -> Job:
        families = self.plain.get(id(job.families))
        if families is None:
            self.plain[id(job.families)] = families = (job.families[0].plain(), job.families[1].plain())
        return Job(families, job.anchors, (0, 1), job.image)

    def _chunks(self, jobs: Sequence[Job]) -> Iterator[list[tuple[int, Job]]]:
        """Yield jobs with their numbers, as many as fit the memory; a job that does not fit is divided into bands."""
        chunk: list[tuple[int, Job]] = []
        total = 0
        for number, whole in enumerate(jobs):
            start, stop = whole.band
            parts = min(-(-self._values(whole) // MAX_VALUES), max(stop - start, 1))
            edges = [start + (stop - start) * i // max(parts, 1) for i in range(max(parts, 1) + 1)]
            for band in pairwise(edges):
                job = whole._replace(band=band)
                values = self._values(job)
                if chunk and total + values > MAX_VALUES:
                    yield chunk
                    chunk, total = [], 0
                chunk.append((number, job))
                total += values
        if chunk:
            yield chunk

    def _values(self, job: Job) -> int:
        """Return the largest number of values of one operation."""
        rows, columns = job.cones
        return int((np.array(rows.counts) * np.array(columns.counts) * self.widths).max())

    def _job(self, anchor: AnchorReads, cell_px: int) -> Job:
        reads = [self._output(read) for read in anchor.reads]
        _, row, column = reads[0]
        key = tuple((output, r - row, c - column) for output, r, c in reads)
        families = self.families.get((cell_px, key))
        if families is None:
            rows, columns = (self._family(cell_px, axis, tuple((k[0], k[1 + axis]) for k in key)) for axis in (0, 1))
            self.families[cell_px, key] = families = (rows, columns)
        first_row, first_column = (family.anchors[0][0][1] for family in families)
        return Job(families, (row - first_row, column - first_column), (0, len(families[0].changed[0])), anchor.image)

    def _output(self, read: Read) -> tuple[int, int, int]:
        """Return the index of a read's map in the tail's output, the row and the column."""
        if read.map not in self.split.maps:
            raise ConfigError(f"map {read.map}: the cut is for the maps {self.split.maps}; use the cut of its level")
        output = self.split.maps.index(read.map)
        height, width = (len(table) for table in self.wiring.outputs[output][1:])
        if not (0 <= read.row < height and 0 <= read.column < width):
            raise ConfigError(f"row {read.row}, column {read.column}: map {read.map} has {height} x {width} positions")
        return output, read.row, read.column

    def _family(self, cell_px: int, axis: int, offsets: tuple[tuple[int, int], ...]) -> AxisCones:
        """Return the cones of all anchors that differ by a translation along one axis."""
        sizes = [len(self.wiring.outputs[output][1:][axis]) for output, _ in offsets]
        low = max(-offset for _, offset in offsets)
        high = min(size - offset for size, (_, offset) in zip(sizes, offsets, strict=True))
        anchors = [tuple((output, place + offset) for output, offset in offsets) for place in range(low, high)]
        return AxisCones(self.wiring, axis, self._changed(cell_px)[axis], anchors)

    def _changed(self, cell_px: int) -> tuple[list[Marks], list[Marks]]:
        """Return the positions that each row and each column of regions changes."""
        if cell_px not in self.changed:
            strides = self.split.cut.strides
            entries = [operation for operation in self.wiring.operations if isinstance(operation, Entry)]
            regions = Regions(self.split.image_size, cell_px).grid
            rows, columns = (
                {e.index: region_marks(regions[axis], cell_px, strides[e.index], e.grid[axis]) for e in entries}
                for axis in (0, 1)
            )
            self.changed[cell_px] = changed_positions(self.wiring, 0, rows), changed_positions(self.wiring, 1, columns)
        return self.changed[cell_px]

    def _request(self, anchor: AnchorReads, cell_px: int) -> _Request:
        job = self._job(anchor, cell_px)
        first, size = [], []
        for cone in job.cones:
            first.append(cone.first_region)
            size.append(max((int(regions[-1]) + 1 for regions, _ in cone.reads if len(regions)), default=0))
        grid = Regions(self.split.image_size, cell_px).grid
        vectors = [self.example.new_empty(0)] * len(anchor.reads)
        return _Request(anchor, job, AnchorResponses(grid, (first[0], first[1]), (size[0], size[1]), vectors))

    def _fill_responses(self, buffers: Buffers, assembly: Assembly, pieces: Sequence[tuple[_Request, Job]]) -> None:
        """Write the vectors of some jobs to the responses of their requests, with one gather for each map."""
        found: dict[int, list[tuple[Positions, Positions, tuple[AnchorResponses, int, bool]]]] = {}
        for number, ((anchor, whole, responses), job) in enumerate(pieces):
            top = job.cones[0].first_region - responses.first[0]
            height, width = responses.size
            template = assembly.templates[number]
            for read, ((rows, columns), slots) in enumerate(zip(template.regions, template.reads, strict=True)):
                operation, base = self._base_index(buffers, anchor, read)
                vectors = slots + (buffers.bases[operation] + PADDING + int(assembly.offsets[number, operation]))
                if len(slots) == height * width:
                    targets, indices = slots[:0], np.append(base, vectors)
                else:
                    targets = (1 + (rows[:, None] + top) * width + columns).ravel()
                    indices = np.full(1 + height * width, base)
                    indices[targets] = vectors
                target = (responses, read, job.band == whole.band)
                found.setdefault(operation, []).append((indices, targets, target))
        for operation, parts in found.items():
            rows_of_values = torch.from_numpy(np.concatenate([part[0] for part in parts])).to(self.example.device)
            gathered = buffers.tables[operation].index_select(0, rows_of_values)
            pieces_of_gathered = torch.split(gathered, [len(part[0]) for part in parts])
            for piece, (_, targets, (responses, read, complete)) in zip(pieces_of_gathered, parts, strict=True):
                if complete or not responses.vectors[read].numel():
                    responses.vectors[read] = piece
                else:
                    responses.vectors[read][targets] = piece[targets]

    def _base_index(self, buffers: Buffers, anchor: AnchorReads, number_of_read: int) -> tuple[int, int]:
        """Return a read's operation, and the row of its values that holds the response of all other regions."""
        output, read_row, read_column = self._output(anchor.reads[number_of_read])
        operation, rows, columns = self.wiring.outputs[output]
        row, column = int(rows[read_row]), int(columns[read_column])
        if row < 0 or column < 0:
            return operation, buffers.bases[operation]
        height, width = self.wiring.operations[operation].grid
        image = anchor.image if buffers.store.drop else 0
        return operation, (image * height + row) * width + column
