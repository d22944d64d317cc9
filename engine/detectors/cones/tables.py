"""Index tables of cones: for each vector to compute, the rows that it is computed from.

A *template* contains the tables of one anchor with relative indices; anchors whose cones differ only by a translation
share it. ``Assembler`` converts the templates of several anchors to absolute indices.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt

from engine.detectors.cones.axes import AxisCone, AxisCones, Gather
from engine.detectors.cones.graph import Convolution, Entry, Factors, Maximum, Positions
from engine.detectors.cones.wiring import Edge, Wiring

Indices = npt.NDArray[np.int32]

CHANGED, BASE, ZERO, LOWEST, RESULT = range(5)
"""Kinds of indices; each kind has its own offset for each operation that is read."""
KINDS = 5
MAX_CACHED_INDICES = 1 << 24
"""Maximum number of indices in all cached templates, 5 bytes each."""


@dataclass(frozen=True, eq=False)
class Changes:
    """The changed taps of each vector of a depthwise convolution; their values are in ``Template.inputs``."""

    unchanged: slice
    """The table of the base values of these taps."""
    own: slice
    """The table of the convolution's own base values."""
    kernel: Positions
    """Position of each tap in the kernel, row by row: (vectors * taps,)."""


@dataclass(frozen=True, eq=False)
class Template:
    """Relative index tables of one anchor."""

    indices: Indices
    """All tables, concatenated."""
    kinds: npt.NDArray[np.uint16]
    """Root and kind of each index, as ``root * KINDS + kind``; the root is the operation that the edge reads."""
    inputs: list[slice]
    """The table of each edge in ``indices``; empty: the edge reads nothing, or reads its root in order."""
    results: list[slice]
    """The table of the outputs of each edge with laid out windows."""
    counts: Positions
    """Number of vectors of each operation."""
    in_order: list[bool]
    """For each edge, whether it reads exactly the root's changed vectors, in their order."""
    heights: list[int]
    """Number of rows of the laid out image of each edge."""
    changes: dict[int, Changes]
    """The tables of the edges of which only the changed taps are read."""
    weights: list[Factors]
    """Factors of each index of each edge of a resampling."""
    regions: tuple[tuple[Positions, Positions], ...]
    """For each read, the rows and columns of regions that affect it, relative to the first."""
    reads: tuple[Positions, ...]
    """For each read, the vector of its operation for each of these regions: (rows * columns,)."""
    cones: tuple[AxisCone, AxisCone]
    """An example of the cones along rows and columns that have these tables."""


Channels = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class Job:
    """One anchor to compute: its families along both axes, its place in them, and the regions."""

    families: tuple[AxisCones, AxisCones]
    anchors: tuple[int, int]
    band: tuple[int, int]
    """First row of regions, and the row after the last."""
    image: int = 0
    channels: Channels | None = None
    """For each read, the channels to compute; None: all channels."""
    cones: tuple[AxisCone, AxisCone] = field(init=False)
    """The cones along rows and columns."""
    order: tuple[object, ...] = field(init=False)
    """Equal for jobs with equal tables and channels."""

    @property
    def content(self) -> tuple[object, ...]:
        """A key that is equal for equal jobs, as long as their families exist."""
        return id(self.families[0]), id(self.families[1]), self.anchors, self.band, self.image, self.channels

    def __post_init__(self) -> None:
        rows, columns = self.families
        everything = (0, len(columns.changed[0]))
        cones = rows.cone(self.anchors[0], self.band), columns.cone(self.anchors[1], everything)
        object.__setattr__(self, "cones", cones)
        order = (id(rows), id(columns), cones[0].key, cones[1].key, self.channels or ())
        object.__setattr__(self, "order", order)


class Templates:
    """Builds templates and caches the latest ones."""

    def __init__(self, wiring: Wiring) -> None:
        self.wiring = wiring
        self.cache: OrderedDict[tuple[object, ...], Template] = OrderedDict()
        self.cached_indices = 0

    def get(self, job: Job) -> Template:
        """Return the template of a job's anchor."""
        key = job.order[:4]
        found = self.cache.pop(key, None)
        if found is None:
            found = self._build(job, *job.cones)
            self.cached_indices += len(found.indices)
        self.cache[key] = found
        while self.cached_indices > MAX_CACHED_INDICES and len(self.cache) > 1:
            self.cached_indices -= len(self.cache.popitem(last=False)[1].indices)
        return found

    def _build(self, job: Job, rows: AxisCone, columns: AxisCone) -> Template:
        edges = self.wiring.edges
        inputs, results = [slice(0, 0)] * len(edges), [slice(0, 0)] * len(edges)
        weights = [np.zeros(0, np.float32)] * len(edges)
        in_order, heights = [False] * len(edges), [0] * len(edges)
        changes: dict[int, Changes] = {}
        tables = _Tables()
        for edge, row, column in zip(edges, rows.gathers, columns.gathers, strict=True):
            if row is None or column is None:
                continue
            number, root = edge.number, self.wiring.operations[edge.root]
            in_order[number] = row.in_order and column.in_order and not isinstance(root, Entry)
            if row.kernel is not None and column.kernel is not None:
                changes[number] = self._changes(edge, (rows, columns), tables)
            elif len(row.results):
                heights[number] = len(row.slots)
                family = job.families[1]
                width = (family.pitches[number] - edge.slides[1].extent) // family.steps[number] + 1
                results[number] = tables.add_results(edge.root * KINDS + RESULT, row.results * width, column.results)
            if not in_order[number]:
                lowest = isinstance(self.wiring.operations[edge.reader], Maximum)
                root_columns = 0 if isinstance(root, Entry) else columns.counts[edge.root]
                source = _Source(edge.root * KINDS, lowest, root_columns, root.grid[1])
                inputs[number] = tables.add_once(source, row, column)
            if row.weights is not None and column.weights is not None:
                weights[number] = (row.weights[:, None, :, None] * column.weights[None, :, None]).ravel()
        regions, reads = [], []
        outputs = [output for output, _ in job.families[0].anchors[job.anchors[0]]]
        for output, (row_regions, row_slots), (column_regions, column_slots) in zip(
            outputs, rows.reads, columns.reads, strict=True
        ):
            regions.append((row_regions, column_regions))
            stride = columns.counts[self.wiring.outputs[output][0]]
            reads.append((row_slots[:, None] * stride + column_slots[None]).ravel())
        return Template(
            *tables.build(), inputs, results, np.array(rows.counts) * np.array(columns.counts), in_order, heights,
            changes, weights, tuple(regions), tuple(reads), (rows, columns),
        )  # fmt: skip

    def _changes(self, edge: Edge, cones: tuple[AxisCone, AxisCone], tables: _Tables) -> Changes:
        """Add the tables of the base values to which a depthwise convolution adds changes."""
        root, reader = (self.wiring.operations[number] for number in (edge.root, edge.reader))
        row, column = (cast("Gather", cone.gathers[edge.number]) for cone in cones)
        unchanged = tables.add_once(
            _Source(edge.root * KINDS, lowest=False, columns=0, width=root.grid[1]), *map(_hidden, (row, column))
        )
        places = [cone.places[edge.reader][:, None] for cone in cones]
        own = [Gather(np.full_like(positions, -1), positions, positions[:0, 0], None) for positions in places]
        table = tables.add_once(_Source(edge.reader * KINDS, lowest=False, columns=0, width=reader.grid[1]), *own)
        width = cast("Convolution", reader).weight.shape[3]
        taps = cast("Positions", row.kernel)[:, None, :, None] * width + cast("Positions", column.kernel)[None, :, None]
        return Changes(unchanged, table, taps.ravel())


class _Source(NamedTuple):
    """Properties of an edge's root, from which the edge's index table is computed."""

    kinds: int
    """The first kind of the edge's root."""
    lowest: bool
    """True if positions outside the map read -inf, False if they read zeros."""
    columns: int
    """Number of the root's column entries; 0 if the root is an input of the graph, whose vectors are addressed by
    position."""
    width: int
    """Number of columns of the root's map."""


class _Tables:
    """Collects the tables of a template, whose indices are computed together."""

    def __init__(self) -> None:
        self.rows: list[Positions] = []
        self.columns: list[Positions] = []
        self.facts: list[tuple[int, ...]] = []
        self.permuted: list[tuple[slice, tuple[int, int, int, int]]] = []
        self.length = 0
        self.known: dict[tuple[object, ...], slice] = {}

    def add_once(self, source: _Source, row: Gather, column: Gather) -> slice:
        """Add the table of an edge, or return an equal existing table."""
        content = (source, *map(_content, (row.slots, row.positions, column.slots, column.positions)))
        if content not in self.known:
            self.known[content] = self.add(source, row, column)
        return self.known[content]

    def add_results(self, kind: int, rows: Positions, columns: Positions) -> slice:
        """Add a table whose indices are sums of a row index and a column index."""
        return self._append(rows, rows, columns, columns, (kind, kind, kind, 1, 0))

    def add(self, source: _Source, row: Gather, column: Gather) -> slice:
        """Add the table of an edge: (rows, columns, row taps, column taps)."""
        facts = (
            source.kinds + CHANGED, source.kinds + BASE, source.kinds + (LOWEST if source.lowest else ZERO),
            source.columns, source.width,
        )  # fmt: skip
        (n, k), (m, j) = row.slots.shape, column.slots.shape
        table = self._append(
            row.slots.ravel(), row.positions.ravel(), column.slots.ravel(), column.positions.ravel(), facts
        )
        if k * j > 1:
            self.permuted.append((table, (n, k, m, j)))
        return table

    def build(self) -> tuple[Indices, npt.NDArray[np.uint16]]:
        """Return the indices and kinds of all tables, one table after another."""
        if not self.facts:
            return np.zeros(0, np.int32), np.zeros(0, np.uint16)
        facts = np.array(self.facts, np.int32)
        height, width = facts[:, 5], facts[:, 6]
        row_slots, row_positions = np.concatenate(self.rows, 1, dtype=np.int32)
        slots, positions = np.concatenate(self.columns, 1, dtype=np.int32)
        lengths = np.repeat(width, height)  # length of each row of each table
        facts_of_rows = np.repeat(facts, height, 0)
        row_values = row_slots * facts_of_rows[:, 3]
        row_places = row_positions * facts_of_rows[:, 4]
        # The column of each index: counted from the first column of its table.
        skipped = np.repeat(np.cumsum(width) - width, height) - (np.cumsum(lengths) - lengths)
        column = np.arange(self.length, dtype=np.int32) + np.repeat(skipped.astype(np.int32), lengths)
        changed = np.repeat(row_slots >= 0, lengths) & (slots >= 0)[column]
        outside = np.repeat(row_positions < 0, lengths) | (positions < 0)[column]
        addressed = changed & np.repeat(facts_of_rows[:, 3] > 0, lengths)
        values = np.where(
            addressed,
            np.repeat(row_values, lengths) + slots[column],
            np.repeat(row_places, lengths) + positions[column],
        )
        values[outside] = 0
        kinds = np.where(
            outside, np.repeat(facts_of_rows[:, 2], lengths),
            np.where(changed, np.repeat(facts_of_rows[:, 0], lengths), np.repeat(facts_of_rows[:, 1], lengths)),
        ).astype(np.uint16)  # fmt: skip
        for table, (n, k, m, j) in self.permuted:
            for array in (values, kinds):
                array[table] = array[table].reshape(n, k, m, j).transpose(0, 2, 1, 3).ravel()
        return values, kinds

    def _append(
        self,
        row_slots: Positions,
        row_positions: Positions,
        slots: Positions,
        positions: Positions,
        facts: tuple[int, ...],
    ) -> slice:
        self.rows.append(np.stack((row_slots, row_positions)))
        self.columns.append(np.stack((slots, positions)))
        self.facts.append((*facts, len(row_slots), len(slots)))
        start, self.length = self.length, self.length + len(row_slots) * len(slots)
        return slice(start, self.length)


def _hidden(gather: Gather) -> Gather:
    """Return a gather that reads only base values."""
    return replace(gather, slots=np.full_like(gather.slots, -1))


def _content(table: Positions) -> tuple[tuple[int, ...], bytes]:
    return table.shape, table.tobytes()
