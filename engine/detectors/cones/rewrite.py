"""Simplifies a cone graph: fewer multiply-adds, equal results up to rounding.

- An activation is merged into the operation before it, if nothing else reads that operation.
- A 1x1 convolution of a concatenation becomes the sum of 1x1 convolutions of its parts.
- A 1x1 convolution is moved before nearest upsampling: a quarter of the positions.
- Elementwise layers at the start are removed, if the plain pass returns their results.
- A 1x1 convolution is computed separately for sources of which masks change fewer positions, and the results are added.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from engine.detectors.cones.axes import changed_counts
from engine.detectors.cones.graph import Affine, Cellwise, Concatenation, ConeGraph, Copy, Entry, Operation
from engine.detectors.cones.wiring import resolve

FEWER = 0.6
"""Maximum fraction of changed positions of a source at which a 1x1 convolution is moved to this source."""


def simplify(graph: ConeGraph, strides: tuple[int, ...]) -> ConeGraph:
    """Return the graph with all rewrites applied; the operations of ``graph`` are not used afterwards."""
    graph = _replace(graph, _fuse_activations(graph))
    for operation in graph.operations():
        if isinstance(operation, Affine):
            _split_concatenations(operation)
    counts = changed_counts(graph, strides)
    for operation in graph.operations():
        if isinstance(operation, Affine):
            _move_before_copies(operation, counts)
    return graph


def _fuse_activations(graph: ConeGraph) -> dict[Operation, Operation]:
    """Merge activations into the operations before them; return the replacement of each removed operation."""
    readers = graph.readers()
    replaced: dict[Operation, Operation] = {}
    for operation in graph.operations():
        if not isinstance(operation, Affine) or operation.weights != (None,) or operation.bias is not None:
            continue
        source = replaced.get(operation.sources[0], operation.sources[0])
        alone = len(readers[operation.sources[0]]) == 1 and operation.sources[0] not in graph.outputs
        if alone and not isinstance(source, Entry | Copy):
            source.activations.extend(operation.activations)
            source.node = operation.node or operation.name
            replaced[operation] = source
    return replaced


def _replace(graph: ConeGraph, replaced: dict[Operation, Operation]) -> ConeGraph:
    for operation in graph.operations():
        operation.sources = tuple(replaced.get(source, source) for source in operation.sources)
    return replace(graph, outputs=tuple(replaced.get(output, output) for output in graph.outputs))


def _split_concatenations(operation: Affine) -> None:
    """Make a 1x1 convolution read the parts of a concatenation instead of the concatenation."""
    sources: list[Operation] = []
    weights: list[Tensor | None] = []
    pending = list(zip(operation.sources, operation.weights, strict=True))
    while pending:
        source, weight = pending.pop(0)
        if weight is None or not isinstance(source, Concatenation) or source.activations:
            sources.append(source)
            weights.append(weight)
            continue
        parts = torch.split(weight, [part.width for part in source.sources])
        pending[:0] = [(part, w.contiguous()) for part, w in zip(source.sources, parts, strict=True)]
    operation.sources, operation.weights = tuple(sources), tuple(weights)


def _move_before_copies(operation: Affine, counts: dict[Operation, float]) -> None:
    sources, weights = list(operation.sources), list(operation.weights)
    if all(weight is None for weight in weights):
        return
    for number, (source, weight) in enumerate(zip(sources, weights, strict=True)):
        root, copies = source, []
        while isinstance(root, Copy):
            copies.append(root)
            root = root.sources[0]
        if weight is None or counts[root] > FEWER * counts[operation] or (len(sources) == 1 and not copies):
            continue
        moved: Operation = Affine(f"{operation.name}.{number}", root.grid, operation.width, (root,), weights=(weight,))
        if operation.bias is not None and all((t >= 0).all() for copied in copies for t in copied.taps):
            moved = replace(moved, bias=operation.bias)  # type: ignore[call-arg]
            operation.bias = None
        for copied in reversed(copies):
            moved = Copy(f"{copied.name}.{number}", copied.grid, operation.width, (moved,), taps=copied.taps)
        sources[number], weights[number] = moved, None
    operation.sources, operation.weights = tuple(sources), tuple(weights)


def without_leading(graph: ConeGraph) -> ConeGraph:
    """Remove the elementwise layers at the start of every path; their results become the graph's inputs.

    The value of such a layer at a cell depends only on this cell, so it is either that of the plain pass or that of a
    masked cell.
    """
    readers = graph.readers()
    ends = {resolve(output)[0] for output in graph.outputs}
    entries: list[Entry] = []
    replaced: dict[Operation, Operation] = {}
    for entry in graph.entries:
        for value, blank in _leading(entry, torch.zeros(1, entry.width), readers, ends):
            if value is entry:
                found = replace(entry, index=len(entries))
            else:
                found = Entry(
                    value.name, value.grid, value.width, node=value.node,
                    index=len(entries), feature=entry.index, blank=blank[0],
                )  # fmt: skip
            entries.append(found)
            replaced[value] = found
    return replace(_replace(graph, replaced), entries=tuple(entries))


def _leading(
    value: Operation, blank: Tensor, readers: dict[Operation, list[Operation]], ends: set[Operation]
) -> list[tuple[Operation, Tensor]]:
    """Return the last leading elementwise operations after a value, and their masked values."""
    users = readers.get(value, [])
    if not users or not all(_is_leading(user, value) and user not in ends for user in users):
        return [(value, blank)]
    return [found for user in users for found in _leading(user, _of_cell(user, blank), readers, ends)]


def _is_leading(operation: Operation, source: Operation) -> bool:
    single = isinstance(operation, Affine | Cellwise) and operation.sources == (source,)
    return single and operation.grid == source.grid and "." not in operation.name


def _of_cell(operation: Operation, value: Tensor) -> Tensor:
    """Return the result of an elementwise operation for one vector (1, C)."""
    if isinstance(operation, Cellwise):
        result: Tensor = operation.part(value[:, :, None, None]).flatten(1).clone()
    else:
        assert isinstance(operation, Affine)  # noqa: S101 - no other operation is leading
        (weight,) = operation.weights
        result = value.clone() if weight is None else value.to(weight) @ weight
        result = result if operation.bias is None else result + operation.bias
    for activation in operation.activations:
        activation(result)
    return result
