"""Resolves the ``Copy`` operations in a cone graph to edges between the other operations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np

from engine.detectors.cones.graph import (
    Affine,
    Cellwise,
    ConeGraph,
    Convolution,
    Copy,
    Entry,
    Factors,
    Operation,
    Positions,
    Slide,
    Windowed,
)


@dataclass(frozen=True, eq=False)
class Edge:
    """One source of an operation, with copies between them resolved."""

    number: int
    reader: int
    """Index of the reading operation."""
    root: int
    """Index of the operation whose vectors are read."""
    taps: tuple[Positions, Positions]
    """Rows of the root that each row reads (h', k), and columns likewise; -1: outside."""
    inputs: tuple[Positions, Positions]
    """Row of the root that equals each row of the operation's direct input, and columns likewise."""
    slides: tuple[Slide, ...]
    """The windows along rows and columns to lay out as images; empty: gathered tap by tap."""
    weights: tuple[Factors, Factors] | None = None


@dataclass(frozen=True, eq=False)
class Wiring:
    """The operations of a graph except for ``Copy``, and the edges between them."""

    operations: tuple[Operation, ...]
    edges: tuple[Edge, ...]
    outputs: tuple[tuple[int, Positions, Positions], ...]
    """For each raw map: its operation, and the operation's row (column) for each row (column) of the map."""
    independent: tuple[bool, ...]
    """``is_cell_independent`` of each operation."""

    @cached_property
    def selectable(self) -> frozenset[int]:
        """The operations of raw maps whose channels can be computed separately: convolutions without readers."""
        read = {edge.root for edge in self.edges}
        roots = {root for root, _, _ in self.outputs} - read
        return frozenset(root for root in roots if _separates_channels(self.operations[root]))

    @cached_property
    def incoming(self) -> list[list[Edge]]:
        """The edges of each operation, in the order of its sources."""
        found: list[list[Edge]] = [[] for _ in self.operations]
        for edge in self.edges:
            found[edge.reader].append(edge)
        return found


def wire(graph: ConeGraph) -> Wiring:
    """Resolve all copies of a graph."""
    operations = _twins_together([operation for operation in graph.operations() if not isinstance(operation, Copy)])
    index = {operation: number for number, operation in enumerate(operations)}
    edges: list[Edge] = []
    for reader, operation in enumerate(operations):
        for source in operation.sources:
            root, rows, columns = resolve(source)
            taps = (rows[:, None], columns[:, None])
            slides: tuple[Slide, ...] = ()
            weights: tuple[Factors, Factors] | None = None
            if isinstance(operation, Windowed):
                taps = (_through(operation.taps[0], rows), _through(operation.taps[1], columns))
                slides = operation.slides if operation.laid_out and operation.slides else ()
                weights = operation.tap_weights
            edges.append(Edge(len(edges), reader, index[root], taps, (rows, columns), slides, weights))
    outputs = tuple((index[root], rows, columns) for root, rows, columns in map(resolve, graph.outputs))
    return Wiring(tuple(operations), tuple(edges), outputs, tuple(map(is_cell_independent, operations)))


def _separates_channels(operation: Operation) -> bool:
    if operation.activations:
        return False
    if isinstance(operation, Affine):
        return all(weight is not None for weight in operation.weights)
    return isinstance(operation, Convolution) and operation.groups == 1 and not operation.laid_out


def _twins_together(operations: list[Operation]) -> list[Operation]:
    """Reorder the operations so that those that lay out the same windows of one source are adjacent."""
    ordered: dict[Operation, None] = {}
    for operation in operations:
        ordered[operation] = None
        if isinstance(operation, Windowed) and operation.laid_out:
            ordered.update(dict.fromkeys(other for other in operations if _are_twins(operation, other)))
    return list(ordered)


def _are_twins(first: Windowed, other: Operation) -> bool:
    same_source = other.sources == first.sources and isinstance(other, Windowed) and other.laid_out
    return same_source and all(
        np.array_equal(a, b) for a, b in zip(first.taps, cast("Windowed", other).taps, strict=True)
    )


def resolve(operation: Operation) -> tuple[Operation, Positions, Positions]:
    """Follow a chain of copies to its source; return it, with its row and column per row and column."""
    rows, columns = np.arange(operation.grid[0]), np.arange(operation.grid[1])
    while isinstance(operation, Copy):
        rows, columns = _through(rows, operation.taps[0]), _through(columns, operation.taps[1])
        operation = operation.sources[0]
    return operation, rows, columns


def _through(positions: Positions, table: Positions) -> Positions:
    return np.where(positions >= 0, table[positions], -1)


def is_cell_independent(operation: Operation) -> bool:
    """Return whether values depend on a single feature cell, and so are the same for all masks."""
    if isinstance(operation, Entry):
        return True
    single = isinstance(operation, Affine | Cellwise) and len(operation.sources) == 1
    return single and is_cell_independent(operation.sources[0])
