"""The cone plan: computes responses of boxes to masks from what a mask changes and a box needs.

A region of the image affects a cone of positions that widens from layer to layer; an anchor depends on a cone that
widens backwards from its reads. Only positions in both cones are computed, for each region. All other positions have
their *base* value: the response to all-zero features (``keep``; computed once) or the plain pass (``drop``; computed
where needed). The result equals ``engine.detectors.definition.dense_responses`` to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, fx

from engine.detectors.cones.assembly import Assembler, Store
from engine.detectors.cones.axes import AxisCones, Marks, changed_positions, choose_readings, region_marks
from engine.detectors.cones.execute import Buffers, execute, tap_matrices
from engine.detectors.cones.graph import Entry
from engine.detectors.cones.responses import AnchorReads, AnchorResponses, Place, Request, fill_responses
from engine.detectors.cones.rewrite import simplify, without_leading
from engine.detectors.cones.tables import Job
from engine.detectors.cones.tracing import build_graph
from engine.detectors.cones.wiring import wire
from engine.detectors.definition import check_mode
from engine.detectors.outputs import Read
from engine.detectors.regions import Mode, Regions
from engine.detectors.split import DetectorSplit
from pipeline.errors import ConfigError

MAX_VALUES = 1 << 24
"""Maximum number of values of one operation that are computed together: 64 MiB. Further anchors, or further regions of
one anchor, are computed afterwards."""
MAX_STORES = 4
"""Number of combinations of batch size and mode whose base values are cached."""

Families = tuple[AxisCones, AxisCones]


class ConePlan:
    """Computes the responses of anchors to all masks.

    A plan contains base values and working memory, so only one thread may use it at a time.
    """

    def __init__(self, split: DetectorSplit, features: Sequence[Tensor]) -> None:
        """Analyze the tail.

        Args:
            split: the detector; its cut should be complete, otherwise the responses do not explain the image.
            features: example features at the cut, each (N, C, h, w); only shapes, dtype and device are used.

        Raises:
            LayerError: a layer of the tail cannot be computed from cones; the message names it.
        """
        self.split = split
        graph = without_leading(simplify(build_graph(split.tail, features), split.cut.strides))
        self.nodes = tuple(
            entry.node or entry.name if entry.blank is not None else split.cut.nodes[entry.feature]
            for entry in graph.entries
        )
        """Names of the network's maps that the plan reads: features of the cut, or elementwise layers on them."""
        self.strides = tuple(split.cut.strides[entry.feature] for entry in graph.entries)
        self.given_names = tuple(entry.node or entry.name for entry in graph.entries)
        """Names of the maps ``nodes`` in the tail."""
        self.given = _part_up_to(split.tail, self.given_names)
        self.shapes = [(entry.width, *entry.grid) for entry in graph.entries]
        self.wiring = wire(graph)
        self.matrices = tap_matrices(self.wiring)
        self.assembler = Assembler(self.wiring, features[0].device)
        self.widths = np.array([operation.width for operation in self.wiring.operations])
        self.example = features[0][:1]
        self.families: dict[tuple[int, tuple[tuple[int, int, int], ...]], Families] = {}
        self.changed: dict[int, tuple[list[Marks], list[Marks]]] = {}
        self.plain: dict[int, Families] = {}
        self.buffers: dict[Store, Buffers] = {}
        self.places: dict[tuple[tuple[Read, ...], int], Place] = {}
        self.largest: dict[tuple[object, ...], int] = {}

    def responses(
        self, features: Sequence[Tensor], anchors: Sequence[AnchorReads], cell_px: int | Sequence[int], mode: Mode
    ) -> list[list[Tensor]]:
        """Return the vectors at the reads of each anchor, for each region.

        Args and errors are those of ``windows``, but ``features`` are the features at the cut.

        Returns:
            For each anchor, for each of its reads: (regions, channels), regions row by row.
        """
        with torch.inference_mode():
            found = self.windows(self.given(*features), anchors, cell_px, mode)
        return [[responses.spread(vectors) for vectors in responses.vectors] for responses in found]

    def windows(
        self, features: Sequence[Tensor], anchors: Sequence[AnchorReads], cell_px: int | Sequence[int], mode: Mode
    ) -> list[AnchorResponses]:
        """Return each anchor's responses to the regions that affect it, and one for all other regions.

        Args:
            features: the network's maps at ``nodes``, each (N, C, h, w), of any number of images.
            anchors: the explained anchors.
            cell_px: side of the regions in pixels: one value for all anchors, or one per anchor.
            mode: ``keep`` or ``drop``.

        Raises:
            ConfigError: the features have other shapes than at creation, a read lies outside its map, or the mode is
                unknown.
        """
        check_mode(mode)
        if [tuple(feature.shape[1:]) for feature in features] != self.shapes:
            shapes = [tuple(feature.shape[1:]) for feature in features]
            raise ConfigError(
                f"the features have the shapes {shapes}, but the plan was built for {self.shapes}; build a plan for "
                "this size"
            )
        with torch.inference_mode():
            sides = [cell_px] * len(anchors) if isinstance(cell_px, int) else cell_px
            requests = [self._request(anchor, side) for anchor, side in zip(anchors, sides, strict=True)]
            ordered = sorted(requests, key=lambda request: request.job.order)
            buffers = self._prepare(features, mode, [request.job for request in ordered])
            if mode == "drop":
                for chunk in self._chunks([self._plain_job(request.job) for request in ordered]):
                    self._fill_plain(buffers, [job for _, job in chunk])
            for chunk in self._chunks([request.job for request in ordered]):
                assembly = self.assembler.assemble([job for _, job in chunk], buffers.store)
                execute(self.wiring, buffers, assembly, self.matrices)
                fill_responses(buffers, assembly, [(ordered[i], job) for i, job in chunk])
            return [request.responses for request in requests]

    def warm_up(self, reads: Sequence[Read], cell_px: int) -> None:
        """Build the index tables along both axes for all anchors of a level, given the reads of one of them.

        Otherwise they are built when an anchor is first explained, which takes some milliseconds.
        """
        for family in self._place(tuple(reads), cell_px).job.families:
            for anchor in range(len(family.anchors)):
                family.cone(anchor, (0, len(family.changed[0])))

    def macs(self, anchors: Sequence[AnchorReads], cell_px: int, mode: Mode = "keep") -> int:
        """Return the multiply-adds of ``responses`` for some anchors, without the plain pass of ``drop``."""
        store = Store(1 + max((anchor.image for anchor in anchors), default=0), mode == "drop")
        jobs = sorted((self._request(anchor, cell_px).job for anchor in anchors), key=lambda job: job.order)
        return sum(
            self.assembler.assemble([job for _, job in chunk], store).multiply_adds(self.wiring)
            for chunk in self._chunks(jobs)
        )

    def _prepare(self, features: Sequence[Tensor], mode: Mode, jobs: Sequence[Job]) -> Buffers:
        """Return the buffers of a batch, with its features and, in mode ``keep``, the zero responses."""
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
        assembly = Assembler(self.wiring, self.example.device).assemble([Job(families, (0, 0), (0, 1))], buffers.store)
        inactive: dict[int, Tensor] = {}
        execute(self.wiring, buffers, assembly, self.matrices, inactive=inactive)
        for number, operation in enumerate(self.wiring.operations):
            if operation.sources:
                cells = operation.grid[0] * operation.grid[1]
                vectors = buffers.vectors(number, cells)
                buffers.tables[number][:cells] = vectors
                if number in inactive:
                    buffers.inactive[number].copy_(inactive[number])

    def _fill_plain(self, buffers: Buffers, jobs: Sequence[Job]) -> None:
        """Compute the plain pass at the positions that the anchors need."""
        assembly = self.assembler.assemble(jobs, buffers.store, plain=True)
        inactive: dict[int, Tensor] = {}
        execute(self.wiring, buffers, assembly, self.matrices, inactive=inactive)
        for number, operation in enumerate(self.wiring.operations):
            if not operation.sources or not assembly.counts[number]:
                continue
            height, width = operation.grid
            targets = []
            for run in assembly.runs:
                rows, columns = (cone.places[number] for cone in run.template.cones)
                first = [
                    (job.image * height + int(job.cones[0].origins[number])) * width + int(job.cones[1].origins[number])
                    for job in jobs[run.jobs]
                ]
                targets.append((np.array(first)[:, None, None] + rows[:, None] * width + columns).ravel())
            vectors = buffers.vectors(number, assembly.counts[number])
            base = buffers.tables[number][: buffers.bases[number]]
            rows_of_base = torch.from_numpy(np.concatenate(targets)).to(base.device)
            base.index_copy_(0, rows_of_base, vectors)
            if number in inactive:
                buffers.inactive[number].index_copy_(0, rows_of_base, inactive[number])

    def _plain_job(self, job: Job) -> Job:
        families = self.plain.get(id(job.families))
        if families is None:  # ``job.families`` are cached, so their ids stay unique
            self.plain[id(job.families)] = families = (job.families[0].plain(), job.families[1].plain())
        return Job(families, job.anchors, (0, 1), job.image)

    def _chunks(self, jobs: Sequence[Job]) -> Iterator[list[tuple[int, Job]]]:
        """Yield groups of numbered jobs that fit into memory; larger jobs are divided into bands."""
        chunk: list[tuple[int, Job]] = []
        total = 0
        for number, whole in enumerate(jobs):
            start, stop = whole.band
            parts = min(-(-self._values(whole) // MAX_VALUES), max(stop - start, 1))
            edges = [start + (stop - start) * i // max(parts, 1) for i in range(max(parts, 1) + 1)]
            for band in pairwise(edges):
                job = whole if band == whole.band else replace(whole, band=band)
                values = self._values(job)
                if chunk and total + values > MAX_VALUES:
                    yield chunk
                    chunk, total = [], 0
                chunk.append((number, job))
                total += values
        if chunk:
            yield chunk

    def _values(self, job: Job) -> int:
        """Return the largest number of values of an operation in a job."""
        key = job.order[:4]
        if key not in self.largest:
            rows, columns = job.cones
            self.largest[key] = int((np.array(rows.counts) * np.array(columns.counts) * self.widths).max())
        return self.largest[key]

    def _place(self, reads: tuple[Read, ...], cell_px: int) -> Place:
        """Return the cones of an anchor, and the window of regions that affect it."""
        known = self.places.get((reads, cell_px))
        if known is not None:
            return known
        outputs = [self._output(read) for read in reads]
        _, row, column = outputs[0]
        key = tuple((output, r - row, c - column) for output, r, c in outputs)
        families = self.families.get((cell_px, key))
        if families is None:
            rows, columns = (self._family(cell_px, axis, tuple((k[0], k[1 + axis]) for k in key)) for axis in (0, 1))
            choose_readings(rows, columns)
            self.families[cell_px, key] = families = (rows, columns)
        first_row, first_column = (family.anchors[0][0][1] for family in families)
        job = Job(families, (row - first_row, column - first_column), (0, len(families[0].changed[0])))
        first = [cone.first_region for cone in job.cones]
        size = [
            max((int(regions[-1]) + 1 for regions, _ in cone.reads if len(regions)), default=0) for cone in job.cones
        ]
        outside = tuple(self._position(*output) for output in outputs)
        place = Place(job, (first[0], first[1]), (size[0], size[1]), outside)
        self.places[reads, cell_px] = place
        return place

    def _position(self, output: int, row: int, column: int) -> tuple[int, int]:
        """Return the operation that computes a position of a raw map, and the position in its map; -1: zero."""
        operation, rows, columns = self.wiring.outputs[output]
        row, column = int(rows[row]), int(columns[column])
        return operation, -1 if min(row, column) < 0 else row * self.wiring.operations[operation].grid[1] + column

    def _output(self, read: Read) -> tuple[int, int, int]:
        """Return the index of a read's map in the tail's output, the row and the column."""
        if read.map not in self.split.maps:
            raise ConfigError(
                f"map {read.map}: the split computes only the maps {self.split.maps}; use the split of the level to "
                "which this map belongs"
            )
        output = self.split.maps.index(read.map)
        height, width = (len(table) for table in self.wiring.outputs[output][1:])
        if not (0 <= read.row < height and 0 <= read.column < width):
            raise ConfigError(
                f"row {read.row}, column {read.column}: is outside map {read.map}, which has {height} x {width} "
                "positions"
            )
        return output, read.row, read.column

    def _family(self, cell_px: int, axis: int, offsets: tuple[tuple[int, int], ...]) -> AxisCones:
        """Return the cones of all anchors with these read offsets along one axis."""
        sizes = [len(self.wiring.outputs[output][1:][axis]) for output, _ in offsets]
        low = max(-offset for _, offset in offsets)
        high = min(size - offset for size, (_, offset) in zip(sizes, offsets, strict=True))
        anchors = [tuple((output, place + offset) for output, offset in offsets) for place in range(low, high)]
        return AxisCones(self.wiring, axis, self._changed(cell_px)[axis], anchors)

    def _changed(self, cell_px: int) -> tuple[list[Marks], list[Marks]]:
        """Return the positions that each row and each column of regions changes."""
        if cell_px not in self.changed:
            strides = self.strides
            entries = [operation for operation in self.wiring.operations if isinstance(operation, Entry)]
            regions = Regions(self.split.image_size, cell_px).grid
            rows, columns = (
                {e.index: region_marks(regions[axis], cell_px, strides[e.index], e.grid[axis]) for e in entries}
                for axis in (0, 1)
            )
            self.changed[cell_px] = changed_positions(self.wiring, 0, rows), changed_positions(self.wiring, 1, columns)
        return self.changed[cell_px]

    def _request(self, anchor: AnchorReads, cell_px: int) -> Request:
        place = self._place(anchor.reads, cell_px)
        job = replace(place.job, image=anchor.image, channels=anchor.channels)
        grid = Regions(self.split.image_size, cell_px).grid
        vectors = [self.example.new_empty(0)] * len(anchor.reads)
        return Request(place, job, AnchorResponses(grid, place.first, place.size, vectors))


def _part_up_to(tail: fx.GraphModule, names: Sequence[str]) -> fx.GraphModule:
    """Return the part of a tail from the features of the cut to the nodes ``names``."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in tail.graph.nodes:
        if node.op != "output":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    by_name = {node.name: copy for node, copy in copies.items()}
    graph.output(tuple(by_name[name] for name in names))
    part = fx.GraphModule(tail, graph, "Given")
    part.graph.eliminate_dead_code()
    part.recompile()
    return part
