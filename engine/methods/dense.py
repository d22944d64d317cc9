"""Plan 3, the definition itself: every masked map through the whole tail, in chunks that fit a memory budget."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.methods.kernels import Kernel
from engine.methods.plan import Plan, PlanFacts, definition

DEFAULT_BUDGET_BYTES = 1 << 30
"""Memory for one chunk of masked maps and everything the tail makes of them."""


class DensePlan(Plan):
    """Always right and never out of memory; its price is rows times columns passes through the tail."""

    def __init__(self, tail: nn.Module, kernel: Kernel, why: str, budget_bytes: int = DEFAULT_BUDGET_BYTES) -> None:
        super().__init__()
        self.tail = tail
        self.kernel: Kernel = kernel
        self.budget_bytes = budget_bytes
        self.facts = PlanFacts("dense", why, one_module=False)
        self._chunks: dict[tuple[int, ...], int] = {}

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the plain network's scores (N, K) and every cell's (N, h * w, K), before the softmax."""
        scores = self.tail(features)
        everything = features.shape[2] * features.shape[3]
        chunk = self.chunk(features)
        cells = torch.arange(everything, device=features.device)
        every = [
            torch.cat(
                [definition(self.tail, image, self.kernel, cells[i : i + chunk]) for i in range(0, everything, chunk)],
                dim=1,
            )
            for image in torch.split(features, 1)
        ]
        return scores, torch.cat(every)

    def chunk(self, features: Tensor) -> int:
        """Return how many masked maps go through the tail at once within the budget, at least one."""
        shape = tuple(features.shape[1:])
        if shape not in self._chunks:
            self._chunks[shape] = max(1, int(self.budget_bytes // bytes_per_map(self.tail, features[:1])))
        return self._chunks[shape]


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
