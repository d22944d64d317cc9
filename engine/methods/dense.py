"""Dense plan: runs every masked map through the whole tail, in chunks that fit a memory budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.methods.kernels import Kernel
from engine.methods.plan import Plan, PlanInfo, reference_scores

DEFAULT_BUDGET_BYTES = 1 << 30
"""Default memory for one chunk of masked maps and all outputs of the tail for it, in bytes."""

Run = Callable[[Tensor], Tensor]
"""Computes class logits (N, K) from maps (N, C, h, w), as the tail does."""


class DensePlan(Plan):
    """Evaluates the definition: exact for any tail, at the cost of h * w passes through it."""

    def __init__(self, tail: nn.Module, kernel: Kernel, why: str, budget_bytes: int = DEFAULT_BUDGET_BYTES) -> None:
        """Create the plan.

        Args:
            tail: the part of the network after the layer, maps (N, C, h, w) to logits (N, K).
            kernel: the shape of the masks.
            why: the reason why no cheaper plan applies, for ``info``.
            budget_bytes: memory for one chunk, in bytes.
        """
        super().__init__()
        self.tail = tail
        self.kernel: Kernel = kernel
        self.budget_bytes = budget_bytes
        self.info = PlanInfo("dense", why, one_module=False)
        self.chunks: dict[tuple[int, ...], int] = {}
        """Number of maps per chunk, by the shape (C, h, w) of a map."""

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's logits (N, K) and the logits of the cells (N, h * w, K)."""
        scores = self.tail(features)
        cell_count = features.shape[2] * features.shape[3]
        chunk = self.chunk(features)
        cells = torch.arange(cell_count, device=features.device)
        cell_logits = [
            torch.cat(
                [
                    reference_scores(self.tail, image, self.kernel, cells[i : i + chunk])
                    for i in range(0, cell_count, chunk)
                ],
                dim=1,
            )
            for image in torch.split(features, 1)
        ]
        return scores, torch.cat(cell_logits)

    def probe(self, features: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's logits and the logits of ``cells`` only; the cost is proportional to ``len(cells)``."""
        parts = torch.split(cells.to(features.device), self.chunk(features))
        logits = [reference_scores(self.tail, features, self.kernel, part) for part in parts]
        return self.tail(features), torch.cat(logits, dim=1)

    def chunk(self, features: Tensor) -> int:
        """Return how many masked maps fit the budget in one pass, at least 1."""
        shape = tuple(features.shape[1:])
        if shape not in self.chunks:
            most = max(1, int(self.budget_bytes // bytes_per_map(self.tail, features[:1])))
            cells = features.shape[2] * features.shape[3]
            # As few chunks as the budget allows, of equal size, so that a compiled chunk needs little padding.
            self.chunks[shape] = math.ceil(cells / math.ceil(cells / most))
        return self.chunks[shape]

    def compiled(self, features: Tensor, compile_tail: Callable[[nn.Module, Tensor], Run]) -> DensePlan:
        """Return this plan with a tail compiled for two batch sizes: that of ``features`` and one chunk.

        Args:
            features: the head's output, (N, C, h, w).
            compile_tail: compiles a module for inputs with the shape of an example.
        """
        chunk = self.chunk(features)
        maps = torch.zeros(chunk, *features.shape[1:], dtype=features.dtype, device=features.device)
        runs = {len(features): compile_tail(self.tail, features), chunk: compile_tail(self.tail, maps)}
        plan = DensePlan(CompiledTail(runs), self.kernel, self.info.reason, self.budget_bytes)
        plan.info, plan.chunks = self.info, self.chunks
        return plan


class CompiledTail(nn.Module):
    """A tail compiled for some batch sizes: larger batches are split, smaller ones are padded with zeros."""

    def __init__(self, runs: Mapping[int, Run]) -> None:
        """Create the tail from compiled tails by batch size."""
        super().__init__()
        self._runs = dict(runs)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the class logits (N, K) of maps (N, C, h, w)."""
        size = min((count for count in self._runs if count >= len(maps)), default=max(self._runs))
        run = self._runs[size]
        if size == len(maps):
            return run(maps)
        logits = []
        for part in torch.split(maps, size):
            padded = functional.pad(part, (0, 0, 0, 0, 0, 0, 0, size - len(part)))
            logits.append(run(padded)[: len(part)])
        return torch.cat(logits)


def bytes_per_map(tail: nn.Module, features: Tensor) -> int:
    """Return the memory in bytes that one map needs in the tail: the sum of the leaf modules' outputs.

    This is an upper bound of the simultaneous memory of a tail that runs its modules in sequence. The map itself
    counts four times, to cover operations between modules.
    """
    leaves = [module for module in tail.modules() if not any(module.children())]
    return 4 * features[0].numel() * features.element_size() + output_bytes(leaves, lambda: tail(features))


def output_bytes(modules: Iterable[nn.Module], call: Callable[[], object]) -> int:
    """Run ``call``; return the size in bytes of all tensors that the modules output."""
    total = 0

    def add(_module: nn.Module, _inputs: object, output: object) -> None:
        nonlocal total
        for part in output if isinstance(output, tuple) else (output,):
            total += part.numel() * part.element_size() if isinstance(part, Tensor) else 0

    handles = [module.register_forward_hook(add) for module in modules]
    try:
        with torch.inference_mode():
            call()
    finally:
        for handle in handles:
            handle.remove()
    return total
