"""Plan 3, the definition itself: every masked map through the whole tail, in chunks that fit a memory budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.methods.kernels import Kernel
from engine.methods.plan import Plan, PlanInfo, reference_scores

DEFAULT_BUDGET_BYTES = 1 << 30
"""Memory for one chunk of masked maps and everything the tail makes of them."""

Run = Callable[[Tensor], Tensor]
"""Answers as a tail does: maps (N, C, h, w) to class scores (N, K)."""


class DensePlan(Plan):
    """Always right and never out of memory; its price is rows times columns passes through the tail."""

    def __init__(self, tail: nn.Module, kernel: Kernel, why: str, budget_bytes: int = DEFAULT_BUDGET_BYTES) -> None:
        """Take the tail, the masks, why there is no cheaper plan, and what a chunk may take."""
        super().__init__()
        self.tail = tail
        self.kernel: Kernel = kernel
        self.budget_bytes = budget_bytes
        self.info = PlanInfo("dense", why, one_module=False)
        self.chunks: dict[tuple[int, ...], int] = {}
        """How many maps go together, by what they are like: measured once for each kind."""

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the plain network's scores (N, K) and every cell's (N, h * w, K), before the softmax."""
        scores = self.tail(features)
        everything = features.shape[2] * features.shape[3]
        chunk = self.chunk(features)
        cells = torch.arange(everything, device=features.device)
        every = [
            torch.cat(
                [
                    reference_scores(self.tail, image, self.kernel, cells[i : i + chunk])
                    for i in range(0, everything, chunk)
                ],
                dim=1,
            )
            for image in torch.split(features, 1)
        ]
        return scores, torch.cat(every)

    def probe(self, features: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Return the plain scores and those of some cells only, at the price of these."""
        parts = torch.split(cells.to(features.device), self.chunk(features))
        told = [reference_scores(self.tail, features, self.kernel, part) for part in parts]
        return self.tail(features), torch.cat(told, dim=1)

    def chunk(self, features: Tensor) -> int:
        """Return how many masked maps go through the tail at once within the budget, at least one."""
        shape = tuple(features.shape[1:])
        if shape not in self.chunks:
            most = max(1, int(self.budget_bytes // bytes_per_map(self.tail, features[:1])))
            cells = features.shape[2] * features.shape[3]
            # As few chunks as the budget allows, and as even: one that is compiled for hardly has to be filled up.
            self.chunks[shape] = math.ceil(cells / math.ceil(cells / most))
        return self.chunks[shape]

    def compiled(self, features: Tensor, compile_tail: Callable[[nn.Module, Tensor], Run]) -> DensePlan:
        """Return this plan with its tail compiled for maps like these: as many as come, and as many as are masked.

        Args:
            features: what the head gives, (N, C, h, w).
            compile_tail: module and example to what answers as the module does, for inputs of the example's shape.
        """
        chunk = self.chunk(features)
        maps = torch.zeros(chunk, *features.shape[1:], dtype=features.dtype, device=features.device)
        runs = {len(features): compile_tail(self.tail, features), chunk: compile_tail(self.tail, maps)}
        plan = DensePlan(CompiledTail(runs), self.kernel, self.info.reason, self.budget_bytes)
        plan.info, plan.chunks = self.info, self.chunks
        return plan


class CompiledTail(nn.Module):
    """A tail that was compiled for some numbers of maps: more go through in turn, fewer are filled up."""

    def __init__(self, runs: Mapping[int, Run]) -> None:
        """Take what runs so many maps at once."""
        super().__init__()
        self._runs = dict(runs)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the class scores (N, K) of maps (N, C, h, w), before the softmax."""
        size = min((count for count in self._runs if count >= len(maps)), default=max(self._runs))
        run = self._runs[size]
        if size == len(maps):
            return run(maps)
        told = []
        for part in torch.split(maps, size):
            filled = functional.pad(part, (0, 0, 0, 0, 0, 0, 0, size - len(part)))
            told.append(run(filled)[: len(part)])
        return torch.cat(told)


def bytes_per_map(tail: nn.Module, features: Tensor) -> int:
    """Return the bytes one map needs on its way through the tail: all outputs of its leaf modules, counted once.

    An upper bound on what is alive at one time for a tail that runs its modules in turn; operations between modules
    are covered by counting the map itself four times.
    """
    total = 4 * features[0].numel() * features.element_size()

    def note(_module: nn.Module, _inputs: object, output: object) -> None:
        nonlocal total
        if isinstance(output, Tensor):
            total += output.numel() * output.element_size()

    handles = [module.register_forward_hook(note) for module in tail.modules() if not any(module.children())]
    try:
        with torch.inference_mode():
            tail(features)
    finally:
        for handle in handles:
            handle.remove()
    return total
