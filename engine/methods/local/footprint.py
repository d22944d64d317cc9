"""Which positions of a map a mask can change, and where their vectors stand.

A *footprint* says, for one map of the network, which of its rows and columns feel each row and column of the masked
grid. A *chunk* takes some masked cells and numbers all positions that feel them, cell after cell, row after row: these
are the *sites* of that map, and the vectors at the sites are all that is ever computed. Everything here is integers;
it depends on sizes, never on pictures or weights.
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
    """Which rows (H, h) and columns (W, w) of a map feel each row and column of the masked (H, W) grid: bool."""

    rows: Tensor
    columns: Tensor

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the map."""
        return self.rows.shape[1], self.columns.shape[1]

    @cached_property
    def counts(self) -> Tensor:
        """How many positions feel each cell of the masked grid: (H, W)."""
        return self.rows.sum(1)[:, None] * self.columns.sum(1)[None]

    @property
    def window(self) -> tuple[int, int]:
        """The most rows and columns that feel one cell."""
        return int(self.rows.sum(1).max()), int(self.columns.sum(1).max())

    @cached_property
    def tables(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Touched rows and columns listed first to last, and each one's place in that list (-1 = untouched)."""
        lists = [torch.argsort(~axis, dim=1, stable=True) for axis in (self.rows, self.columns)]
        places = [torch.where(axis, axis.cumsum(1) - 1, -1) for axis in (self.rows, self.columns)]
        return lists[0], lists[1], places[0], places[1]

    def same(self, other: Footprint) -> bool:
        """Say whether both name the same positions for every cell."""
        return self is other or (torch.equal(self.rows, other.rows) and torch.equal(self.columns, other.columns))

    def through(self, taps: KernelTaps) -> Footprint:
        """Return the footprint behind a layer."""
        return Footprint(_felt(self.rows, taps.rows).any(2), _felt(self.columns, taps.columns).any(2))

    def joined(self, other: Footprint) -> Footprint:
        """Return the footprint of a layer that reads two maps of one size."""
        return Footprint(self.rows | other.rows, self.columns | other.columns)

    def pairs(self, taps: KernelTaps) -> Tensor:
        """Count, for each masked cell, the touched taps of all touched output positions: (H, W)."""
        rows = _felt(self.rows, taps.rows).sum((1, 2))
        return rows[:, None] * _felt(self.columns, taps.columns).sum((1, 2))[None]


def _felt(axis: Tensor, taps: Tensor) -> Tensor:
    """Return which taps of which outputs feel each row of the masked grid: (H, h', kh)."""
    return axis[:, taps.clamp_min(0)] & (taps >= 0)


def first_footprint(grid: tuple[int, int], reach: int) -> Footprint:
    """Return the footprint of the masked map itself: each cell and ``reach`` neighbours around it."""
    axes = (torch.arange(size) for size in grid)
    rows, columns = ((axis[:, None] - axis[None]).abs() <= reach for axis in axes)
    return Footprint(rows, columns)


@dataclass(frozen=True, eq=False)
class ActiveSites:
    """The positions of one map that feel a chunk's cells, in order."""

    first: Tensor
    """Where each cell's sites begin; one more than there are cells."""
    owner: Tensor
    """Which of the chunk's cells each site belongs to."""
    row: Tensor
    column: Tensor
    position: Tensor
    """row * w + column."""


@dataclass(frozen=True, eq=False)
class GatherIndex:
    """Which entries of a table are summed into each site."""

    entries: Tensor
    """int32, site after site."""
    first: Tensor
    """int32: where each site's entries begin; one more than there are sites."""
    sources: tuple[Tensor, ...] = ()
    """Where the table is made tap by tap: which input sites each tap takes."""


class DeviceTransfer:
    """Tables taken to another device: what was one object stays one."""

    def __init__(self, take: Callable[[Tensor], Tensor]) -> None:
        """Take what a module's tensors are moved with."""
        self._take = take
        # The originals are kept beside: an identity is reused once its object is gone.
        self._moved: dict[int, tuple[object, object]] = {}

    def footprint(self, old: Footprint) -> Footprint:
        """Return a footprint there."""
        return self._once(old, lambda: Footprint(self._take(old.rows), self._take(old.columns)))

    def taps(self, old: KernelTaps) -> KernelTaps:
        """Return taps there."""
        return self._once(old, lambda: KernelTaps(self._take(old.rows), self._take(old.columns)))

    def _once(self, old: T, make: Callable[[], T]) -> T:
        if id(old) not in self._moved:
            self._moved[id(old)] = old, make()
        return self._moved[id(old)][1]  # type: ignore[return-value]


class Chunk:
    """Some masked cells and everything that was numbered for them; what was asked once is kept."""

    def __init__(self, cells: Tensor, columns: int) -> None:
        """Take indices of masked cells, counted row by row over ``columns`` columns."""
        self.cells = cells
        self.row, self.column = cells // columns, cells % columns
        self._known: dict[object, object] = {}

    def bytes(self) -> int:
        """Return the bytes held by what was numbered."""
        held: list[Tensor] = []
        for value in self._known.values():
            if isinstance(value, list):
                continue  # on the host, one number for each cell
            parts = [value] if isinstance(value, Tensor) else list(vars(value).values())
            for part in parts:
                held.extend([part] if isinstance(part, Tensor) else part)
        return sum(tensor.nbytes for tensor in held)

    def _once(self, key: object, make: Callable[[], T]) -> T:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]  # type: ignore[return-value]

    def sites(self, footprint: Footprint) -> ActiveSites:
        """Return the positions of a map that feel the chunk's cells."""
        return self._once(footprint, lambda: self._sites(footprint))

    def starts(self, footprint: Footprint) -> list[int]:
        """Return where each cell's sites begin, on the host: asked of a device once, not while a graph is captured."""
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

    def _found(self, before: Footprint, after: Footprint, taps: KernelTaps | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return, for all sites of ``after`` and all taps, the site of ``before`` (-1: none), its row, its column."""
        out, known = self.sites(after), self.sites(before)
        _, _, row_place, column_place = before.tables
        rows = out.row[:, None] if taps is None else taps.rows[out.row]
        columns = out.column[:, None] if taps is None else taps.columns[out.column]
        masked_row, masked_column = self.row[out.owner], self.column[out.owner]
        high = torch.where(rows >= 0, row_place[masked_row[:, None], rows.clamp_min(0)], -1)[:, :, None]
        wide = torch.where(columns >= 0, column_place[masked_column[:, None], columns.clamp_min(0)], -1)[:, None]
        across = before.columns.sum(1)[masked_column][:, None, None]
        site = known.first[out.owner][:, None, None] + high * across + wide
        return torch.where((high >= 0) & (wide >= 0), site, -1).flatten(1), rows, columns

    def bags(self, before: Footprint, after: Footprint, taps: KernelTaps, *, order: str) -> GatherIndex:
        """Return what is summed into each site of ``after``.

        Args:
            before: the layer's input.
            after: its output.
            taps: where it looks.
            order: ``site`` = entries are sites of ``before``; ``site-tap`` = entries of a table (sites, taps);
                ``tap`` = entries of a table with tap after tap, each only for the sites it is needed from.
        """

        def make() -> GatherIndex:
            site, _, _ = self._found(before, after, taps)
            there = site >= 0
            first = torch.cat((there.new_zeros(1, dtype=torch.int32), there.sum(1).cumsum(0).int()))
            if order == "site":
                return GatherIndex(site[there].int(), first)
            if order == "site-tap":
                tap = torch.arange(site.shape[1], device=site.device)
                return GatherIndex((site * site.shape[1] + tap)[there].int(), first)
            entry = there.t().flatten().cumsum(0).view(there.t().shape).t() - 1
            return GatherIndex(entry[there].int(), first, tuple(site[there[:, t], t] for t in range(site.shape[1])))

        return self._once((before, after, taps, order), make)

    def lookup(self, before: Footprint, after: Footprint, taps: KernelTaps | None = None) -> Tensor:
        """Return where to find what each site of ``after`` looks at: (sites, taps).

        Entries count the sites of ``before``, then all its positions (untouched ones keep the blank answer), then one
        more for what lies outside the map.
        """

        def make() -> Tensor:
            site, rows, columns = self._found(before, after, taps)
            height, width = before.grid
            position = rows[:, :, None] * width + columns[:, None]
            position = torch.where((rows[:, :, None] >= 0) & (columns[:, None] >= 0), position, height * width)
            return torch.where(site >= 0, site, len(self.sites(before).owner) + position.flatten(1))

        return self._once((before, after, taps, "lookup"), make)
