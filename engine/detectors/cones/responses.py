"""The responses of anchors to masks, and their extraction from the values that a plan computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.detectors.cones.assembly import PADDING, Assembly, Run
from engine.detectors.cones.execute import Buffers
from engine.detectors.cones.graph import Positions
from engine.detectors.cones.tables import Channels, Job
from engine.detectors.outputs import Read


class AnchorReads(NamedTuple):
    """The vectors from which the explained scalar of one anchor is computed."""

    reads: tuple[Read, ...]
    image: int = 0
    """Index in the batch."""
    channels: Channels | None = None
    """For each read, the channels to compute; None: all channels."""


@dataclass(frozen=True, eq=False)
class AnchorResponses:
    """The responses of one anchor to a window of regions, and the response to all other regions."""

    grid: tuple[int, int]
    """Numbers of rows and columns of regions in the image."""
    first: tuple[int, int]
    """Row and column of the window's first region."""
    size: tuple[int, int]
    """Numbers of rows and columns of regions in the window; all others do not affect the anchor."""
    vectors: list[Tensor]
    """For each read, (1 + regions in the window, channels): the outside response, then the window row by row."""

    def spread(self, values: Tensor) -> Tensor:
        """Expand values in the order of ``vectors`` to all regions, row by row: (regions, ...)."""
        rows, columns = self.grid
        (top, left), (height, width) = self.first, self.size
        spread = values[:1].repeat(rows * columns, *[1] * (values.dim() - 1))
        window = spread.view(rows, columns, *values.shape[1:])[top : top + height, left : left + width]
        window.copy_(values[1:].view(height, width, *values.shape[1:]))
        return spread


@dataclass(frozen=True, eq=False)
class Place:
    """An anchor in the cones for one size of regions."""

    job: Job
    """The job for the first image of a batch and all channels."""
    first: tuple[int, int]
    """Row and column of the first region that affects the anchor."""
    size: tuple[int, int]
    """Numbers of rows and columns of the window of regions that affect the anchor."""
    outside: tuple[tuple[int, int], ...]
    """For each read, its operation, and the position in its map; -1: the map is zero there."""


class Request(NamedTuple):
    """An anchor, its cones, and the responses to fill."""

    place: Place
    job: Job
    responses: AnchorResponses


def fill_responses(buffers: Buffers, assembly: Assembly, pieces: Sequence[tuple[Request, Job]]) -> None:
    """Copy the vectors of jobs, in the order of ``assembly``, to the responses of their requests."""
    for run in assembly.runs:
        part = pieces[run.jobs]
        for read in range(len(part[0][0].place.outside)):
            _fill_read(buffers, assembly, run, part, read)


def _fill_read(
    buffers: Buffers, assembly: Assembly, run: Run, pieces: Sequence[tuple[Request, Job]], read: int
) -> None:  # fmt: skip
    (_, whole, responses), job = pieces[0]
    operation = pieces[0][0].place.outside[read][0]
    (rows, columns), slots = run.template.regions[read], run.template.reads[read]
    first = buffers.bases[operation] + PADDING + assembly.offsets[run.jobs, operation]
    base = np.array([_outside(buffers, request, read) for request, _ in pieces])
    height, width = responses.size
    indices = np.repeat(base[:, None], 1 + height * width, 1)
    targets: slice | Positions = slice(1, None)
    if len(slots) < height * width:
        top = job.cones[0].first_region - responses.first[0]
        targets = (1 + (rows[:, None] + top) * width + columns).ravel()
    indices[:, targets] = first[:, None] + slots
    found = _values(buffers.tables[operation], indices, [request.job.channels for request, _ in pieces], read)
    for vectors, ((_, whole, responses), job) in zip(found, pieces, strict=True):
        if job.band == whole.band or not responses.vectors[read].numel():
            responses.vectors[read] = vectors
        else:
            responses.vectors[read][targets] = vectors[targets]


def _outside(buffers: Buffers, request: Request, read: int) -> int:
    """Return the row of an operation's values that contains the response outside of the window."""
    operation, position = request.place.outside[read]
    if position < 0:
        return buffers.bases[operation]
    cells = buffers.cells[operation]
    return position + (request.job.image * cells if buffers.store.drop else 0)


def _values(table: Tensor, rows: Positions, channels: Sequence[Channels | None], read: int) -> Sequence[Tensor]:
    """Return some rows and channels of a table: (1 + regions, channels) for each anchor."""
    counts = {None if chosen is None else len(chosen[read]) for chosen in channels}
    if len(counts) > 1 or None in counts:
        vectors = table.index_select(0, torch.from_numpy(rows.ravel()).to(table.device)).view(*rows.shape, -1)
        return [
            found if chosen is None else found[:, list(chosen[read])]
            for found, chosen in zip(vectors, channels, strict=True)
        ]
    chosen = np.array([part[read] for part in channels if part is not None])
    indices = rows[:, :, None] * table.shape[1] + chosen[:, None]
    values = table.view(-1).index_select(0, torch.from_numpy(indices.ravel()).to(table.device))
    return list(values.view(indices.shape))
