"""Computes footprints and active sites: the positions of a map that a mask can change.

The *footprint* of a map states which of its rows and columns depend on each row and column of the masked grid. A
*chunk* is a set of masked cells. The *active sites* of a map for a chunk are all positions that depend on its cells,
ordered by cell, then row, then column; only the vectors at active sites are computed. All tables in this module contain
integers or booleans and depend only on sizes, not on images or weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from engine.methods.local.receptive_field import KernelTaps

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Footprint:
    """Which rows and columns of a map (h, w) depend on those of the masked grid (H, W).

    Position (y, x) depends on cell (i, j) if ``rows[i, y]`` and ``columns[j, x]`` are True.
    """

    rows: Tensor
    """Which rows of the map depend on each row of the grid, bool (H, h)."""
    columns: Tensor
    """Which columns of the map depend on each column of the grid, bool (W, w)."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the map."""
        return self.rows.shape[1], self.columns.shape[1]

    @cached_property
    def counts(self) -> Tensor:
        """Number of dependent positions for each cell of the masked grid: (H, W)."""
        return self.rows.sum(1)[:, None] * self.columns.sum(1)[None]

    @property
    def window(self) -> tuple[int, int]:
        """Maximum number of rows and of columns that depend on one cell."""
        return int(self.rows.sum(1).max()), int(self.columns.sum(1).max())

    @cached_property
    def tables(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Dependent rows and columns in order, and the index of each in that order (-1: independent)."""
        lists = [torch.argsort(~axis, dim=1, stable=True) for axis in (self.rows, self.columns)]
        indices = [torch.where(axis, axis.cumsum(1) - 1, -1) for axis in (self.rows, self.columns)]
        return lists[0], lists[1], indices[0], indices[1]

    def same(self, other: Footprint) -> bool:
        """Return whether both footprints have the same positions for every cell."""
        return self is other or (torch.equal(self.rows, other.rows) and torch.equal(self.columns, other.columns))

    def through(self, taps: KernelTaps) -> Footprint:
        """Return the footprint of a layer's output."""
        return Footprint(_depends(self.rows, taps.rows).any(2), _depends(self.columns, taps.columns).any(2))

    def joined(self, other: Footprint) -> Footprint:
        """Return the footprint of the output of a layer that reads both maps, of equal size."""
        return Footprint(self.rows | other.rows, self.columns | other.columns)

    def pairs(self, taps: KernelTaps) -> Tensor:
        """Return the number of active taps of all active output positions, per masked cell: (H, W)."""
        rows = _depends(self.rows, taps.rows).sum((1, 2))
        return rows[:, None] * _depends(self.columns, taps.columns).sum((1, 2))[None]


def _depends(axis: Tensor, taps: Tensor) -> Tensor:
    """Return which taps of which output rows depend on each row of the masked grid: bool (H, h', kh)."""
    return axis[:, taps.clamp_min(0)] & (taps >= 0)


def first_footprint(grid: tuple[int, int], reach: int) -> Footprint:
    """Return the footprint of the masked map: each cell and its neighbours up to ``reach`` rows and columns away."""
    axes = (torch.arange(size) for size in grid)
    rows, columns = ((axis[:, None] - axis[None]).abs() <= reach for axis in axes)
    return Footprint(rows, columns)


@dataclass(frozen=True, eq=False)
class ActiveSites:
    """The positions of one map that depend on a chunk's cells, ordered by cell, row, column."""

    first: Tensor
    """Index of each cell's first site, and the number of sites: (cells + 1,)."""
    owner: Tensor
    """Index of the chunk's cell to which each site belongs."""
    row: Tensor
    column: Tensor
    position: Tensor
    """row * w + column."""


@dataclass(frozen=True, eq=False)
class GatherIndex:
    """The entries of a table that are summed into each site, in the form of ``F.embedding_bag``."""

    entries: Tensor
    """Table entries to sum, ordered by site, int32."""
    first: Tensor
    """Index of each site's first entry, then the number of entries, int32 (sites + 1,)."""
    sources: tuple[Tensor, ...] = ()
    """For a table ordered by tap: the input sites that each tap reads."""


class DeviceTransfer:
    """Moves footprints and taps to another device; shared objects are moved once and stay shared."""

    def __init__(self, move: Callable[[Tensor], Tensor]) -> None:
        """Create an object; ``move`` moves one tensor."""
        self._move = move
        # Also stores the originals, because Python reuses the id of a deleted object.
        self._moved: dict[int, tuple[object, object]] = {}

    def footprint(self, old: Footprint) -> Footprint:
        """Return a footprint on the new device."""
        return self._once(old, lambda: Footprint(self._move(old.rows), self._move(old.columns)))

    def taps(self, old: KernelTaps) -> KernelTaps:
        """Return taps on the new device."""
        return self._once(old, lambda: KernelTaps(self._move(old.rows), self._move(old.columns)))

    def _once(self, old: T, make: Callable[[], T]) -> T:
        if id(old) not in self._moved:
            self._moved[id(old)] = old, make()
        return self._moved[id(old)][1]  # type: ignore[return-value]


class Chunk:
    """A set of masked cells with index tables, which are computed at their first use."""

    def __init__(self, cells: Tensor, columns: int) -> None:
        """Create a chunk from int64 cell indices, in row-major order of a grid with ``columns`` columns."""
        self.cells = cells
        self.row, self.column = cells // columns, cells % columns
        self._tables: dict[object, object] = {}

    def bytes(self) -> int:
        """Return the size of the index tables in bytes."""
        tensors: list[Tensor] = []
        for value in self._tables.values():
            if isinstance(value, list):
                continue  # stored on the host, one number per cell
            parts = [value] if isinstance(value, Tensor) else list(vars(value).values())
            for part in parts:
                tensors.extend([part] if isinstance(part, Tensor) else part)
        return sum(tensor.nbytes for tensor in tensors)

    def _once(self, key: object, make: Callable[[], T]) -> T:
        if key not in self._tables:
            self._tables[key] = make()
        return self._tables[key]  # type: ignore[return-value]

    def sites(self, footprint: Footprint) -> ActiveSites:
        """Return the positions of a map that depend on the chunk's cells."""
        return self._once(footprint, lambda: self._sites(footprint))

    def starts(self, footprint: Footprint) -> list[int]:
        """Return ``ActiveSites.first`` as a list; copied from the device once, before a CUDA graph is captured."""
        return self._once((footprint, "starts"), lambda: [int(n) for n in self.sites(footprint).first.tolist()])

    def _sites(self, footprint: Footprint) -> ActiveSites:
        row_list, column_list, _, _ = footprint.tables
        counts = footprint.counts[self.row, self.column]
        first = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
        owner = torch.repeat_interleave(torch.arange(len(self.cells), device=counts.device), counts)
        within = torch.arange(len(owner), device=counts.device) - first[owner]
        wide = footprint.columns.sum(1)[self.column][owner]
        row = row_list[self.row[owner], within // wide]
        column = column_list[self.column[owner], within % wide]
        return ActiveSites(first, owner, row, column, row * footprint.grid[1] + column)

    def _input_sites(
        self, before: Footprint, after: Footprint, taps: KernelTaps | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the site of ``before`` that each tap of each site of ``after`` reads, its row and column."""
        out, inputs = self.sites(after), self.sites(before)
        _, _, row_index, column_index = before.tables
        rows = out.row[:, None] if taps is None else taps.rows[out.row]
        columns = out.column[:, None] if taps is None else taps.columns[out.column]
        masked_row, masked_column = self.row[out.owner], self.column[out.owner]
        down = torch.where(rows >= 0, row_index[masked_row[:, None], rows.clamp_min(0)], -1)[:, :, None]
        right = torch.where(columns >= 0, column_index[masked_column[:, None], columns.clamp_min(0)], -1)[:, None]
        row_length = before.columns.sum(1)[masked_column][:, None, None]
        site = inputs.first[out.owner][:, None, None] + down * row_length + right
        return torch.where((down >= 0) & (right >= 0), site, -1).flatten(1), rows, columns

    def bags(self, before: Footprint, after: Footprint, taps: KernelTaps, *, order: str) -> GatherIndex:
        """Return the entries that are summed into each site of ``after``.

        Args:
            before: footprint of the layer's input.
            after: footprint of its output.
            taps: the layer's taps.
            order: ``site``: entries are sites of ``before``; ``site-tap``: entries of a table (sites, taps); ``tap``:
                entries of a table ordered by tap, with only the sites that each tap reads.
        """

        def make() -> GatherIndex:
            site, _, _ = self._input_sites(before, after, taps)
            active = site >= 0
            first = torch.cat((active.new_zeros(1, dtype=torch.int32), active.sum(1).cumsum(0).int()))
            if order == "site":
                return GatherIndex(site[active].int(), first)
            if order == "site-tap":
                tap = torch.arange(site.shape[1], device=site.device)
                return GatherIndex((site * site.shape[1] + tap)[active].int(), first)
            entry = active.t().flatten().cumsum(0).view(active.t().shape).t() - 1
            return GatherIndex(entry[active].int(), first, tuple(site[active[:, t], t] for t in range(site.shape[1])))

        return self._once((before, after, taps, order), make)

    def lookup(self, before: Footprint, after: Footprint, taps: KernelTaps | None = None) -> Tensor:
        """Return the table rows that each site of ``after`` reads: (sites, taps).

        The table contains the sites of ``before``, then all positions of its map (with the zero response, for inactive
        positions), then one row for positions outside the map.
        """

        def make() -> Tensor:
            site, rows, columns = self._input_sites(before, after, taps)
            height, width = before.grid
            position = rows[:, :, None] * width + columns[:, None]
            position = torch.where((rows[:, :, None] >= 0) & (columns[:, None] >= 0), position, height * width)
            return torch.where(site >= 0, site, len(self.sites(before).owner) + position.flatten(1))

        return self._once((before, after, taps, "lookup"), make)
