"""Plan 2 at work: the steps of a local tail, run for chunks of cells that fit the budget."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, fx, nn

from engine.methods.kernels import Kernel, stencil
from engine.methods.local.footprint import Chunk, DeviceTransfer, Footprint
from engine.methods.local.steps import FeatureMapInfo, Step
from engine.methods.plan import Plan, PlanInfo
from pipeline.errors import EngineError

INDEX_FRACTION = 8
"""Numbered positions are kept for the next image while they fit budget / INDEX_FRACTION; else counted again."""
PIECE_BYTES = {"cpu": 16 << 20, "cuda": 512 << 20}
"""The largest single tensor of a chunk: what a CPU's allocator hands out again instead of mapping it anew (glibc keeps
blocks up to 32 MiB), and what fills a GPU."""


class MemoryCost(NamedTuple):
    """What cells weigh, each (H, W)."""

    total: Tensor
    """Bytes alive at one time for each masked cell, at the worst step."""
    piece: Tensor
    """Bytes of the largest single tensor for each masked cell."""


class LocalPlan(Plan):
    """Only what masks change, layer by layer."""

    weights: Tensor

    def __init__(
        self,
        tail: nn.Module,
        kernel: Kernel,
        steps: list[Step],
        maps: list[FeatureMapInfo],
        rest: fx.GraphModule | None,
    ) -> None:
        """Take the plan's parts.

        Args:
            tail: for the plain network's own scores.
            kernel: the spread of a cell's own vector.
            steps: the layers in order.
            maps: the masked map, then those where the local part ends: the class scores alone, if it goes that far.
            rest: from these maps, filled up, to the class scores; None where the scores are there already.
        """
        super().__init__()
        self.tail = tail
        self.steps = nn.ModuleList(steps)
        self.rest = rest
        self.entry, *self.outputs = [(end.name, end.footprint) for end in maps]
        for number, end in enumerate(maps[1:]):
            self.register_buffer(f"blank{number}", end.blank)
        self.register_buffer("weights", stencil(kernel).flatten())
        self.grid = self.entry[1].grid
        self.info = PlanInfo("local", "layers that look at a neighbourhood only", one_module=False)
        self.chunk_bytes = self.index_bytes = self.fixed_bytes = self.working_bytes = self.rest_maps = 0
        self._index_most = 0
        self.load = MemoryCost(self.entry[1].counts, self.entry[1].counts)
        self._release_after = _drops(steps, {name for name, _ in self.outputs})
        self._numbered: dict[int, Chunk] = {}
        self._bounds: list[int] = []

    def fit(self, budget_bytes: int, load: MemoryCost, bytes_per_rest_map: int) -> None:
        """Choose how many cells go together; see ``MemoryCost``."""
        # What is cut by lies on the host, wherever the plan runs.
        self.load = load = MemoryCost(load.total.cpu(), load.piece.cpu())
        self.fixed_bytes = sum(buffer.nbytes for buffer in self.buffers())
        self.index_bytes = self._index_most = budget_bytes // INDEX_FRACTION
        self.chunk_bytes = max(budget_bytes - self.index_bytes - self.fixed_bytes, 0)
        self.rest_maps = max(1, (self.chunk_bytes // 2) // bytes_per_rest_map) if self.rest else 0
        if self.rest:
            self.chunk_bytes //= 2
        self._bounds = self._cut(torch.arange(self.grid[0] * self.grid[1]))
        totals = load.total.flatten().cumsum(0).tolist()
        heaviest = max(totals[end - 1] - (totals[start - 1] if start else 0) for start, end in self._pairs())
        self.working_bytes = self.fixed_bytes + self.index_bytes + heaviest + self.rest_maps * bytes_per_rest_map

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002 - torch's own
        """Take the tables of positions along to another device, and cut the cells as it likes them."""
        module: Any = super()
        module._apply(fn, recurse)  # noqa: SLF001 - its own parent's
        if fn(self.entry[1].rows).device == self.entry[1].rows.device:
            return self
        move = DeviceTransfer(fn)
        self.entry = self.entry[0], move.footprint(self.entry[1])
        self.outputs = [(name, move.footprint(footprint)) for name, footprint in self.outputs]
        for step in self.steps:
            assert isinstance(step, Step)  # noqa: S101 - a ModuleList forgets what it holds
            step.take_along(move)
        self._numbered.clear()
        self.index_bytes = self._index_most
        self._bounds = self._cut(torch.arange(self.grid[0] * self.grid[1]))
        return self

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the plain network's scores (N, K) and every cell's (N, h * w, K), before the softmax."""
        every = [
            torch.cat([self._scores(cells, chunk) for chunk in self._all()]) for cells in self._masked_rows(features)
        ]
        return self.tail(features), torch.stack(every)

    def probe(self, features: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Return the plain scores and those of some cells only, at the price of these."""
        return self.tail(features), self.answers(features, cells)

    def answers(self, features: Tensor, cells: Tensor) -> Tensor:
        """Return the scores of some cells only: (N, len(cells), K), before the softmax."""
        cells = cells.to(features.device)
        bounds = self._cut(cells)
        chunks = [Chunk(cells[a:b], self.grid[1]) for a, b in itertools.pairwise(bounds)]
        return torch.stack([torch.cat([self._scores(each, c) for c in chunks]) for each in self._masked_rows(features)])

    def _masked_rows(self, features: Tensor) -> Iterable[Tensor]:
        """Take each image's map apart into its cells' vectors: (h * w, C)."""
        if tuple(features.shape[2:]) != self.grid:
            raise EngineError(
                f"this plan was made for a grid of {self.grid[0]}x{self.grid[1]} cells, not "
                f"{features.shape[2]}x{features.shape[3]}; ask plan_for for a plan of that size"
            )
        return (image.flatten(1).t().contiguous() for image in features)

    def _cut(self, cells: Tensor) -> list[int]:
        """Return where chunks of these cells begin, and their end."""
        piece = PIECE_BYTES.get(self.weights.device.type, PIECE_BYTES["cpu"])
        totals = self.load.total.flatten()[cells.cpu()].tolist()
        pieces = self.load.piece.flatten()[cells.cpu()].tolist()
        bounds, total, largest = [0], 0, 0
        for number, (one, part) in enumerate(zip(totals, pieces, strict=True)):
            total, largest = total + one, largest + part
            if number > bounds[-1] and (total > self.chunk_bytes or largest > piece):
                bounds.append(number)
                total, largest = one, part
        return [*bounds, len(totals)]

    def _pairs(self) -> Iterable[tuple[int, int]]:
        return itertools.pairwise(self._bounds)

    def _all(self) -> Iterator[Chunk]:
        """Give every chunk, numbered before where the memory for it was left."""
        device = self.weights.device
        for start, end in self._pairs():
            known = self._numbered.get(start)
            chunk = known or Chunk(torch.arange(start, end, device=device), self.grid[1])
            yield chunk
            if known is None and self.index_bytes > 0:
                self.index_bytes -= chunk.bytes()
                if self.index_bytes > 0:
                    self._numbered[start] = chunk

    def _scores(self, cells: Tensor, chunk: Chunk) -> Tensor:
        """Return the class scores of a chunk's masked maps, given the vectors of all cells of the plain one."""
        name, footprint = self.entry
        sites = chunk.sites(footprint)
        masked = cells.index_select(0, chunk.cells[sites.owner])
        if len(self.weights) > 1:
            down = sites.row - chunk.row[sites.owner] + 1
            right = sites.column - chunk.column[sites.owner] + 1
            masked *= self.weights[down * 3 + right][:, None]
        rows = {name: masked[:, :, None, None]}
        del masked
        for step, drops in zip(self.steps, self._release_after, strict=True):
            assert isinstance(step, Step)  # noqa: S101 - a ModuleList forgets what it holds
            rows[step.target] = step(chunk, *(rows[source] for source in step.sources))
            for drop in drops:
                del rows[drop]
        if self.rest is None:
            return self._filled(0, rows, chunk, slice(0, len(chunk.cells)))
        count = len(chunk.cells)
        parts = [slice(i, min(i + self.rest_maps, count)) for i in range(0, count, self.rest_maps)]
        return torch.cat(
            [self.rest(*(self._filled(i, rows, chunk, p) for i in range(len(self.outputs)))) for p in parts]
        )

    def _filled(self, number: int, rows: dict[str, Tensor], chunk: Chunk, part: slice) -> Tensor:
        """Return an end's maps of some of a chunk's cells, whole: what no mask reached is as in the blank."""
        name, footprint = self.outputs[number]
        blank: Tensor = getattr(self, f"blank{number}")
        sites = chunk.sites(footprint)
        count = part.stop - part.start
        maps = blank.flatten(1).repeat(count, 1)
        starts = chunk.starts(footprint)
        chosen = slice(starts[part.start], starts[part.stop])
        places = (sites.owner[chosen] - part.start) * len(blank) + sites.position[chosen]
        maps.index_copy_(0, places, rows[name][chosen].flatten(1))
        if blank.dim() == 2:
            return maps
        height, width = footprint.grid
        return maps.view(count, height, width, -1).permute(0, 3, 1, 2)


def _drops(steps: list[Step], kept: set[str]) -> list[list[str]]:
    """Return, for each step, the maps that nobody reads after it."""
    last = {source: number for number, step in enumerate(steps) for source in step.sources}
    return [[name for name, at in last.items() if at == number and name not in kept] for number in range(len(steps))]


def load_of(
    steps: list[Step], entry: FeatureMapInfo, widths: dict[str, int], kept: set[str], bytes_each: int
) -> MemoryCost:
    """Return what each masked cell weighs: go through the steps and see what is alive."""
    prints: dict[str, Footprint] = {entry.name: entry.footprint} | {step.target: step.after for step in steps}
    sizes = {name: footprint.counts * widths[name] for name, footprint in prints.items()}
    alive = {entry.name}
    total = piece = sizes[entry.name]
    for step, drops in zip(steps, _drops(steps, kept), strict=True):
        alive.add(step.target)
        now = step.spare + sizes[step.target]  # the answer and one more of its size while it is put together
        for name in alive:
            now = now + sizes[name]
        total = torch.maximum(total, now)
        piece = torch.maximum(piece, torch.maximum(step.spare, sizes[step.target]))
        alive.difference_update(drops)
    return MemoryCost(total * bytes_each, piece * bytes_each)
