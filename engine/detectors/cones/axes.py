"""Computes, along one axis, which positions of each map a region changes and an anchor needs.

Convolution, pooling and resampling read rectangles, so rows and columns are independent: all tables in this module are
for one axis, and a set of positions is a set of rows times a set of columns.

For one anchor the *entries* of a map are its pairs (region, position) that are both changed and needed. The vectors of
a map are stored for the product of its row entries and its column entries. An operation whose changed values do not
depend on the region (``is_cell_independent``) has one entry for each position.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from engine.detectors.cones.graph import ConeGraph, Convolution, Entry, Factors, Operation, Positions, Slide
from engine.detectors.cones.wiring import Edge, Wiring, wire

Marks = npt.NDArray[np.bool_]
Reads = tuple[tuple[int, int], ...]
"""For each read: (output of the graph, row or column)."""


MAX_SEPARATE = 1.5
"""Maximum factor by which the images may grow if each output gets its own window. Then no output without a region is
computed; otherwise windows of neighbouring outputs overlap."""
MAX_CHANGED = 1 / 3
"""Maximum fraction of changed taps for which a depthwise convolution computes only the change of its value."""

Reading = Literal["table", "laid out", "changes"]
"""Modes in which an edge reads: tap by tap; windows laid out as one image; only the taps that a mask changes."""


def changed_positions(wiring: Wiring, axis: int, entries: Mapping[int, Marks]) -> list[Marks]:
    """Return, for each operation, the positions that each region changes: (regions, size).

    Args:
        wiring: the operations.
        axis: 0 = rows, 1 = columns.
        entries: the positions that each region changes in the feature maps of the cut, by map index.
    """
    found: list[Marks] = []
    for number, operation in enumerate(wiring.operations):
        if isinstance(operation, Entry):
            found.append(entries[operation.index])
            continue
        marks = np.zeros((len(next(iter(entries.values()))), operation.grid[axis]), np.bool_)
        for edge in wiring.incoming[number]:
            taps = edge.taps[axis]
            marks |= (found[edge.root][:, taps.clip(0)] & (taps >= 0)).any(2)
        found.append(marks)
    return found


def needed_positions(wiring: Wiring, axis: int, anchors: Sequence[Reads]) -> list[Marks]:
    """Return, for each operation, the positions that the reads of each anchor depend on: (anchors, size)."""
    found = [np.zeros((len(anchors), operation.grid[axis]), np.float32) for operation in wiring.operations]
    for number, reads in enumerate(anchors):
        for output, position in reads:
            operation, *tables = wiring.outputs[output]
            root = int(tables[axis][position])
            if root >= 0:
                found[operation][number, root] = 1
    for reader in range(len(found) - 1, -1, -1):
        if found[reader].any():
            for edge in wiring.incoming[reader]:
                found[edge.root] += found[reader] @ _incidence(edge.taps[axis], found[edge.root].shape[1])
                np.minimum(found[edge.root], 1, out=found[edge.root])
    return [marks > 0 for marks in found]


def _incidence(taps: Positions, size: int) -> npt.NDArray[np.float32]:
    """Return a 0/1 matrix (h', size): which root positions each reader position reads."""
    matrix = np.zeros((len(taps), size + 1), np.float32)
    np.put_along_axis(matrix, np.where(taps >= 0, taps, size), 1, axis=1)
    return matrix[:, :size]


def changed_counts(graph: ConeGraph, strides: tuple[int, ...]) -> dict[Operation, float]:
    """Return the number of vectors of each operation for all regions of the coarsest stride."""
    wiring = wire(graph)
    cell = max(strides)
    sides: list[list[Marks]] = []
    for axis in (0, 1):
        size = max(entry.grid[axis] * stride for entry, stride in zip(graph.entries, strides, strict=True))
        regions = -(-size // cell)
        marks = {
            e.index: region_marks(regions, cell, stride, e.grid[axis])
            for e, stride in zip(graph.entries, strides, strict=True)
        }
        sides.append(changed_positions(wiring, axis, marks))
    counts: dict[Operation, float] = {}
    for number, operation in enumerate(wiring.operations):
        changed = float(sides[0][number].sum()) * float(sides[1][number].sum())
        counts[operation] = float(np.prod(operation.grid)) if wiring.independent[number] else changed
    return counts


def region_marks(regions: int, cell_px: int, stride: int, size: int) -> Marks:
    """Return which feature rows (or columns) belong to each row (or column) of regions: (regions, size)."""
    start = np.arange(regions)[:, None] * cell_px
    cell = np.arange(size) * stride
    return (cell + stride > start) & (cell < start + cell_px)


@dataclass(frozen=True, eq=False)
class Gather:
    """The vectors that one edge reads along one axis."""

    slots: Positions
    """Entry of the root (n, k), -1: not changed; for laid out windows (length, 1)."""
    positions: Positions
    """Position in the root's map, relative to its origin, -1: outside."""
    results: Positions
    """Laid out windows only: the output index of each entry of the reader; else empty."""
    weights: Factors | None
    in_order: bool = False
    """True if the edge reads exactly all entries of the root, in order."""
    kernel: Positions | None = None
    """Changed taps only: the row (or column) of the kernel of each tap; else None."""


@dataclass(frozen=True, eq=False)
class AxisCone:
    """Cones of one anchor along one axis."""

    counts: tuple[int, ...]
    """Number of entries of each operation."""
    gathers: tuple[Gather | None, ...]
    """One per edge; None: nothing to compute."""
    reads: tuple[tuple[Positions, Positions], ...]
    """For each read: the regions that affect the read, relative to ``first_region``, and their entries."""
    origins: Positions
    """First needed position of each operation; positions in ``gathers`` are relative to it."""
    first_region: int
    places: tuple[Positions, ...] = ()
    """Position of each entry of each operation, relative to its origin."""
    key: int = 0
    """Equal for cones that differ only by a translation."""


class AxisCones:
    """Computes the cones of a family of anchors along one axis, for one size of regions."""

    def __init__(
        self,
        wiring: Wiring,
        axis: int,
        changed: list[Marks],
        anchors: Sequence[Reads],
        needed: list[Marks] | None = None,
    ) -> None:
        """Create the cones from the changed positions of regions and the reads of the anchors.

        ``needed`` replaces the positions that the reads depend on, (anchors, size) for each operation.
        """
        self.wiring, self.axis, self.changed, self.anchors = wiring, axis, changed, anchors
        self.needed = needed_positions(wiring, axis, anchors) if needed is None else needed
        self.alone: set[int] = set()
        """Edges whose windows do not overlap."""
        self.separate, self.pitches, self.steps = self._layouts()
        self.readings: list[Reading] = ["laid out" if edge.slides else "table" for edge in wiring.edges]
        self.cache: dict[tuple[int, int, int], AxisCone] = {}
        self.kinds: dict[bytes, AxisCone] = {}
        self.firsts = [marks.argmax(1) for marks in self.needed]
        self.stops = [
            np.where(m.any(1), m.shape[1] - m[:, ::-1].argmax(1), f)
            for m, f in zip(self.needed, self.firsts, strict=True)
        ]

    @classmethod
    def of_whole_map(cls, wiring: Wiring, axis: int) -> AxisCones:
        """Return a family of one anchor that needs all positions, with one region that changes all."""
        everything = [np.ones((1, operation.grid[axis]), np.bool_) for operation in wiring.operations]
        return cls(wiring, axis, everything, [()], everything)

    def plain(self) -> AxisCones:
        """Return the family with a single region that changes all positions: the plain pass."""
        changed = [np.ones((1, marks.shape[1]), np.bool_) for marks in self.needed]
        return AxisCones(self.wiring, self.axis, changed, self.anchors, self.needed)

    def _layouts(self) -> tuple[list[bool], list[int], list[int]]:
        """Return for each edge: whether each output has its own window, the image length, and the step."""
        separate: list[bool] = []
        pitches: list[int] = []
        steps: list[int] = []
        for edge in self.wiring.edges:
            if not edge.slides:
                separate.append(False)
                pitches.append(0)
                steps.append(1)
                continue
            active = self.changed[edge.reader][None] & self.needed[edge.reader][:, None]
            anchor, cell, where = np.nonzero(active)
            slide = edge.slides[self.axis]
            starts, lengths = runs(anchor * active.shape[1] + cell, where)
            totals = np.bincount(anchor[starts], spans(slide, lengths), minlength=1)
            apart = np.bincount(anchor, minlength=1) * slide.extent
            separate.append(bool(apart.sum() <= MAX_SEPARATE * totals.sum()))
            if apart.sum() <= totals.sum():
                self.alone.add(edge.number)
            pitches.append(int((apart if separate[-1] else totals).max()))
            steps.append(slide.extent if separate[-1] else slide.stride)
        return separate, pitches, steps

    def most_changed(self, edge: Edge) -> int:
        """Return the maximum number of taps that a region changes, over all regions and all outputs of the edge."""
        taps = edge.taps[self.axis]
        changed = self.changed[edge.root][:, taps.clip(0)] & (taps >= 0)
        active = self.changed[edge.reader] & self.needed[edge.reader].any(0)
        return int((changed.sum(2) * active).max(initial=0))

    def span(self, operation: int, anchor: int) -> slice:
        """Return the positions of an operation that an anchor needs, from the first to the last."""
        return slice(int(self.firsts[operation][anchor]), int(self.stops[operation][anchor]))

    def active(self, anchor: int, band: tuple[int, int]) -> list[Marks]:
        """Return the entries of each operation as a mask (regions, size)."""
        found = []
        for changed, needed in zip(self.changed, self.needed, strict=True):
            both = changed & needed[anchor]
            both[: band[0]] = False
            both[band[1] :] = False
            found.append(both)
        return found

    def cone(self, anchor: int, band: tuple[int, int]) -> AxisCone:
        """Return the cone of one anchor of the family for the regions ``band[0] <= region < band[1]``."""
        key = (anchor, *band)
        if key not in self.cache:
            self.cache[key] = self._build(anchor, band)
        return self.cache[key]

    def _build(self, anchor: int, band: tuple[int, int]) -> AxisCone:
        active = self.active(anchor, band)
        reads = self.anchors[anchor]
        origins = np.array([int(firsts[anchor]) for firsts in self.firsts])
        cells: list[Positions] = []
        positions: list[Positions] = []
        slots: list[Positions] = []
        for marks, independent in zip(active, self.wiring.independent, strict=True):
            if independent:
                where = np.flatnonzero(marks.any(0))
                order = np.zeros(marks.shape[1], np.int64)
                order[where] = np.arange(len(where))
                slots.append(np.where(marks, order, -1))
                cells.append(marks.argmax(0)[where])
                positions.append(where)
            else:
                cell, where = np.nonzero(marks)
                slot = np.full(marks.shape, -1, np.int64)
                slot[cell, where] = np.arange(len(cell))
                slots.append(slot)
                cells.append(cell)
                positions.append(where)
        gathers: list[Gather | None] = []
        for edge, apart in zip(self.wiring.edges, self.separate, strict=True):
            cell, where = cells[edge.reader], positions[edge.reader]
            if len(cell) == 0:
                gathers.append(None)
            elif self.readings[edge.number] == "changes":
                gathers.append(self._changed_taps(edge, cell, where, slots[edge.root], int(origins[edge.root])))
            elif self.readings[edge.number] == "table":
                gathers.append(self._by_table(edge, cell, where, slots[edge.root], int(origins[edge.root])))
            else:
                gathers.append(
                    self._laid_out(edge, (cell, where), slots[edge.root], int(origins[edge.root]), separate=apart)
                )
        found = []
        for output, position in reads:
            number, *tables = self.wiring.outputs[output]
            root = int(tables[self.axis][position])
            reaching = np.flatnonzero(active[number][:, root]) if root >= 0 else np.zeros(0, np.int64)
            found.append((reaching, slots[number][reaching, root]))
        first = min((int(reaching[0]) for reaching, _ in found if len(reaching)), default=0)
        found = [(reaching - first, chosen) for reaching, chosen in found]
        places = tuple(where - origin for where, origin in zip(positions, origins, strict=True))
        return self._interned(AxisCone(tuple(map(len, cells)), tuple(gathers), tuple(found), origins, first, places))

    def _interned(self, cone: AxisCone) -> AxisCone:
        """Return the cone; if an equal one is cached, with its gathers and key."""
        content = _content(cone)
        equal = self.kinds.setdefault(content, replace(cone, key=len(self.kinds)))
        return replace(equal, origins=cone.origins, first_region=cone.first_region)

    def _by_table(self, edge: Edge, cell: Positions, where: Positions, slots: Positions, origin: int) -> Gather:
        taps = edge.taps[self.axis][where]
        chosen = np.where(taps >= 0, slots[cell[:, None], taps.clip(0)], -1)
        weights = None if edge.weights is None else edge.weights[self.axis][where]
        in_order = taps.shape[1] == 1 and np.array_equal(chosen[:, 0], np.arange(int(slots.max()) + 1))
        return Gather(chosen, np.where(taps >= 0, taps - origin, -1), np.zeros(0, np.int64), weights, in_order)

    def _changed_taps(self, edge: Edge, cell: Positions, where: Positions, slots: Positions, origin: int) -> Gather:
        taps = edge.taps[self.axis][where]
        chosen = np.where(taps >= 0, slots[cell[:, None], taps.clip(0)], -1)
        order = np.argsort(chosen < 0, axis=1, kind="stable")[:, : max(self.most_changed(edge), 1)]
        chosen = np.take_along_axis(chosen, order, 1)
        positions = np.where(chosen >= 0, np.take_along_axis(taps, order, 1) - origin, -1)
        return Gather(chosen, positions, np.zeros(0, np.int64), None, kernel=order)

    def _laid_out(
        self, edge: Edge, entries: tuple[Positions, Positions], slots: Positions, origin: int, *, separate: bool
    ) -> Gather:
        slide, (cell, where) = edge.slides[self.axis], entries
        starts, lengths = runs(cell, where)
        if separate:
            starts, lengths = np.arange(len(cell)), np.ones(len(cell), np.int64)
        span = spans(slide, lengths, separate=separate)
        begin = np.cumsum(span) - span
        segment = np.repeat(np.arange(len(starts)), span)
        offset = np.arange(int(span.sum())) - begin[segment]
        used = offset < (lengths[segment] - 1) * slide.stride + slide.extent
        position = where[starts][segment] * slide.stride - slide.pad + offset
        table = edge.inputs[self.axis]
        inside = used & (position >= 0) & (position < len(table))
        position = np.where(inside, table[position.clip(0, len(table) - 1)], -1)
        chosen = np.where(position >= 0, slots[cell[starts][segment], position.clip(0)], -1)
        missing = self.pitches[edge.number] - len(position) if self.axis == 1 else 0
        position, chosen = (np.append(array, np.full(missing, -1)) for array in (position, chosen))
        step = self.steps[edge.number]
        run = np.repeat(np.arange(len(starts)), lengths)
        results = begin[run] // step + (np.arange(len(cell)) - starts[run])
        return Gather(chosen[:, None], np.where(position >= 0, position - origin, -1)[:, None], results, None)


def choose_readings(rows: AxisCones, columns: AxisCones) -> None:
    """Choose how depthwise convolutions read, before any cone is built.

    If few taps change, only these are read; windows that do not overlap are not laid out.
    """
    for edge in rows.wiring.edges:
        operation = rows.wiring.operations[edge.reader]
        if not (isinstance(operation, Convolution) and operation.laid_out):
            continue
        taps = operation.weight.shape[2] * operation.weight.shape[3]
        if rows.most_changed(edge) * columns.most_changed(edge) <= MAX_CHANGED * taps:
            reading: Reading = "changes"
        elif edge.number in rows.alone and edge.number in columns.alone:
            reading = "table"
        else:
            continue
        rows.readings[edge.number] = columns.readings[edge.number] = reading


def runs(cell: Positions, where: Positions) -> tuple[Positions, Positions]:
    """Return the first entry and the length of each run of neighbouring positions of one region."""
    breaks = np.flatnonzero((np.diff(cell) != 0) | (np.diff(where) != 1)) + 1
    starts = np.concatenate((np.zeros(min(1, len(cell)), np.int64), breaks))
    return starts, np.diff(np.append(starts, len(cell)))


def spans(slide: Slide, lengths: Positions, *, separate: bool = False) -> Positions:
    """Return the number of input positions to lay out for each run of outputs: a multiple of the step."""
    step = slide.extent if separate else slide.stride
    return -(-((lengths - 1) * slide.stride + slide.extent) // step) * step


def _content(cone: AxisCone) -> bytes:
    """Return a hash of a cone without its position."""
    parts: list[bytes] = [repr(cone.counts).encode()]
    for gather in cone.gathers:
        if gather is not None:
            arrays = (gather.slots, gather.positions, gather.results, gather.weights, gather.kernel)
            parts.extend(repr(a.shape).encode() + a.tobytes() for a in arrays if a is not None)
        parts.append(b"|")
    parts.extend(a.tobytes() + b"/" + b.tobytes() for a, b in cone.reads)
    parts.extend(places.tobytes() for places in cone.places)
    return hashlib.sha256(b";".join(parts)).digest()
