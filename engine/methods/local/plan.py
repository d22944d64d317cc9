"""Runs a local plan: its steps, for chunks of cells that fit into the memory budget."""

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
"""Index tables up to budget / INDEX_FRACTION bytes are cached for the next image; others are computed again."""
MAX_TENSOR_BYTES = {"cpu": 16 << 20, "cuda": 512 << 20}
"""Maximum size of a single tensor of a chunk in bytes, by type of device. On a CPU the allocator reuses blocks of this
size (glibc: up to 32 MiB) instead of mapping them again; on a GPU this size occupies all multiprocessors."""


class MemoryCost(NamedTuple):
    """Memory of each masked cell in bytes, as tensors (H, W)."""

    total: Tensor
    """Maximum memory in use at the same time, in bytes."""
    largest: Tensor
    """Size of the largest single tensor in bytes."""


class LocalPlan(Plan):
    """Computes only the positions that masks change, layer by layer."""

    weights: Tensor

    def __init__(
        self,
        tail: nn.Module,
        kernel: Kernel,
        steps: list[Step],
        maps: list[FeatureMapInfo],
        rest: fx.GraphModule | None,
    ) -> None:
        """Create the plan; call ``fit`` before using it.

        Args:
            tail: computes the network's own logits.
            kernel: the shape of the masks.
            steps: the layers in order.
            maps: the masked map, then the maps at the end of the local part (only the logits, if it is complete).
            rest: computes the logits from these maps, completed to full size; None if the local part is complete.
        """
        super().__init__()
        self.tail = tail
        self.steps = nn.ModuleList(steps)
        self.rest = rest
        self.entry, *self.outputs = [(end.name, end.footprint) for end in maps]
        for number, end in enumerate(maps[1:]):
            self.register_buffer(f"zero_response{number}", end.zero_response)
        self.register_buffer("weights", stencil(kernel).flatten())
        self.grid = self.entry[1].grid
        self.info = PlanInfo("local", "layers that read a bounded neighbourhood", one_module=False)
        self.chunk_bytes = self.index_bytes = self.fixed_bytes = self.working_bytes = self.rest_maps = 0
        self._max_index_bytes = 0
        self.cost = MemoryCost(self.entry[1].counts, self.entry[1].counts)
        self._release_after = _last_uses(steps, {name for name, _ in self.outputs})
        self._cached_chunks: dict[int, Chunk] = {}
        self._bounds: list[int] = []

    def fit(self, budget_bytes: int, cost: MemoryCost, bytes_per_rest_map: int) -> None:
        """Divide the cells into chunks that fit a memory budget, and set ``working_bytes``.

        Args:
            budget_bytes: maximum working memory, in bytes.
            cost: the memory of each masked cell.
            bytes_per_rest_map: memory of one full map in ``rest``, in bytes.
        """
        # The division into chunks is computed on the host.
        self.cost = cost = MemoryCost(cost.total.cpu(), cost.largest.cpu())
        self.fixed_bytes = sum(buffer.nbytes for buffer in self.buffers())
        self.index_bytes = self._max_index_bytes = budget_bytes // INDEX_FRACTION
        self.chunk_bytes = max(budget_bytes - self.index_bytes - self.fixed_bytes, 0)
        self.rest_maps = max(1, (self.chunk_bytes // 2) // bytes_per_rest_map) if self.rest else 0
        if self.rest:
            self.chunk_bytes //= 2
        self._bounds = self._cut(torch.arange(self.grid[0] * self.grid[1]))
        totals = cost.total.flatten().cumsum(0).tolist()
        heaviest = max(totals[end - 1] - (totals[start - 1] if start else 0) for start, end in self._pairs())
        self.working_bytes = self.fixed_bytes + self.index_bytes + heaviest + self.rest_maps * bytes_per_rest_map

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002 - torch's own
        """Move the index tables together with the weights, and divide the cells again for the device."""
        module: Any = super()
        module._apply(fn, recurse)  # noqa: SLF001 - overrides torch's method
        if fn(self.entry[1].rows).device == self.entry[1].rows.device:
            return self
        move = DeviceTransfer(fn)
        self.entry = self.entry[0], move.footprint(self.entry[1])
        self.outputs = [(name, move.footprint(footprint)) for name, footprint in self.outputs]
        for step in self.steps:
            assert isinstance(step, Step)  # noqa: S101 - a ModuleList is not typed by its elements
            step.move_tables(move)
        self._cached_chunks.clear()
        self.index_bytes = self._max_index_bytes
        self._bounds = self._cut(torch.arange(self.grid[0] * self.grid[1]))
        return self

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's logits (N, K) and the cells' logits (N, h * w, K)."""
        logits = [
            torch.cat([self._chunk_logits(vectors, chunk) for chunk in self._chunks()])
            for vectors in self._cell_vectors(features)
        ]
        return self.tail(features), torch.stack(logits)

    def probe(self, features: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's logits and the logits of ``cells`` only; the cost is proportional to ``len(cells)``."""
        return self.tail(features), self.cell_logits(features, cells)

    def cell_logits(self, features: Tensor, cells: Tensor) -> Tensor:
        """Return the logits of some cells: (N, len(cells), K)."""
        cells = cells.to(features.device)
        bounds = self._cut(cells)
        chunks = [Chunk(cells[a:b], self.grid[1]) for a, b in itertools.pairwise(bounds)]
        return torch.stack([
            torch.cat([self._chunk_logits(vectors, chunk) for chunk in chunks])
            for vectors in self._cell_vectors(features)
        ])  # fmt: skip

    def _cell_vectors(self, features: Tensor) -> Iterable[Tensor]:
        """Return the vectors of all cells for each image: (h * w, C)."""
        if tuple(features.shape[2:]) != self.grid:
            raise EngineError(
                f"this plan is for a grid of {self.grid[0]}x{self.grid[1]} cells, not "
                f"{features.shape[2]}x{features.shape[3]}; create a plan for that size by plan_for"
            )
        return (image.flatten(1).t().contiguous() for image in features)

    def _cut(self, cells: Tensor) -> list[int]:
        """Return the start of each chunk of these cells, and the number of cells."""
        max_tensor_bytes = MAX_TENSOR_BYTES.get(self.weights.device.type, MAX_TENSOR_BYTES["cpu"])
        totals = self.cost.total.flatten()[cells.cpu()].tolist()
        tensors = self.cost.largest.flatten()[cells.cpu()].tolist()
        bounds, chunk_total, chunk_tensor = [0], 0, 0
        for number, (total, tensor) in enumerate(zip(totals, tensors, strict=True)):
            chunk_total, chunk_tensor = chunk_total + total, chunk_tensor + tensor
            if number > bounds[-1] and (chunk_total > self.chunk_bytes or chunk_tensor > max_tensor_bytes):
                bounds.append(number)
                chunk_total, chunk_tensor = total, tensor
        return [*bounds, len(totals)]

    def _pairs(self) -> Iterable[tuple[int, int]]:
        return itertools.pairwise(self._bounds)

    def _chunks(self) -> Iterator[Chunk]:
        """Yield all chunks; index tables are cached after use, as long as there is memory."""
        device = self.weights.device
        for start, end in self._pairs():
            cached = self._cached_chunks.get(start)
            chunk = cached or Chunk(torch.arange(start, end, device=device), self.grid[1])
            yield chunk
            if cached is None and self.index_bytes > 0:
                self.index_bytes -= chunk.bytes()
                if self.index_bytes > 0:
                    self._cached_chunks[start] = chunk

    def _chunk_logits(self, vectors: Tensor, chunk: Chunk) -> Tensor:
        """Return the logits of a chunk's masked maps (cells, K), given the vectors of all cells (h * w, C)."""
        name, footprint = self.entry
        sites = chunk.sites(footprint)
        masked = vectors.index_select(0, chunk.cells[sites.owner])
        if len(self.weights) > 1:
            down = sites.row - chunk.row[sites.owner] + 1
            right = sites.column - chunk.column[sites.owner] + 1
            masked *= self.weights[down * 3 + right][:, None]
        rows = {name: masked[:, :, None, None]}
        del masked
        for step, unused in zip(self.steps, self._release_after, strict=True):
            assert isinstance(step, Step)  # noqa: S101 - a ModuleList is not typed by its elements
            rows[step.target] = step(chunk, *(rows[source] for source in step.sources))
            for map_name in unused:
                del rows[map_name]
        if self.rest is None:
            return self._full_maps(0, rows, chunk, slice(0, len(chunk.cells)))
        count = len(chunk.cells)
        parts = [slice(i, min(i + self.rest_maps, count)) for i in range(0, count, self.rest_maps)]
        return torch.cat(
            [self.rest(*(self._full_maps(i, rows, chunk, p) for i in range(len(self.outputs)))) for p in parts]
        )

    def _full_maps(self, number: int, rows: dict[str, Tensor], chunk: Chunk, part: slice) -> Tensor:
        """Return full maps of one output for some cells of a chunk, with zero responses at other sites."""
        name, footprint = self.outputs[number]
        zero_response: Tensor = getattr(self, f"zero_response{number}")
        sites = chunk.sites(footprint)
        count = part.stop - part.start
        maps = zero_response.flatten(1).repeat(count, 1)
        starts = chunk.starts(footprint)
        chosen = slice(starts[part.start], starts[part.stop])
        indices = (sites.owner[chosen] - part.start) * len(zero_response) + sites.position[chosen]
        maps.index_copy_(0, indices, rows[name][chosen].flatten(1))
        if zero_response.dim() == 2:
            return maps
        height, width = footprint.grid
        return maps.view(count, height, width, -1).permute(0, 3, 1, 2)


def _last_uses(steps: list[Step], outputs: set[str]) -> list[list[str]]:
    """Return, for each step, the maps that no later step reads, except for ``outputs``."""
    last = {source: number for number, step in enumerate(steps) for source in step.sources}
    return [[name for name, at in last.items() if at == number and name not in outputs] for number in range(len(steps))]


def memory_cost(
    steps: list[Step], entry: FeatureMapInfo, widths: dict[str, int], outputs: set[str], bytes_each: int
) -> MemoryCost:
    """Return the memory of each masked cell, from the maps alive at each step.

    Args:
        steps: the layers in order.
        entry: the masked map.
        widths: values per site, by map.
        outputs: the maps at the end of the local part, which stay in memory.
        bytes_each: size of one value in bytes.
    """
    footprints: dict[str, Footprint] = {entry.name: entry.footprint} | {step.target: step.after for step in steps}
    sizes = {name: footprint.counts * widths[name] for name, footprint in footprints.items()}
    alive = {entry.name}
    total = largest = sizes[entry.name]
    for step, unused in zip(steps, _last_uses(steps, outputs), strict=True):
        alive.add(step.target)
        now = step.scratch + sizes[step.target]  # the output, and a temporary of its size while it is assembled
        for name in alive:
            now = now + sizes[name]
        total = torch.maximum(total, now)
        largest = torch.maximum(largest, torch.maximum(step.scratch, sizes[step.target]))
        alive.difference_update(unused)
    return MemoryCost(total * bytes_each, largest * bytes_each)
