"""PyTorch as it is: every operation when it is called, channels last. The reference for all other backends.

One thing is done to it on a CPU: wide linear layers in float32 get their weights packed once for oneDNN, as
torch.compile packs them. The sums are the same; a product with fifty cells' vectors takes two thirds of the time.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from engine.backends.registry import Compiled
from engine.runtime.compile_cache import CompileCache

_PACKED_WEIGHTS = range(1 << 16, 1 << 24)
"""Which linear layers are packed, by their number of weights: a packed copy stands beside the original."""


def missing(device: str) -> str:  # noqa: ARG001 - the protocol's signature
    """Return "": it runs wherever torch does."""
    return ""


def compile(  # noqa: A001 - the protocol's name
    module: nn.Module,
    example: Tensor,
    precision: str,  # noqa: ARG001 - the protocol's signature
    cache: CompileCache | None = None,  # noqa: ARG001 - the same
) -> Compiled:
    """Return the module, its linear layers packed where that is possible; ``module`` itself is left as it was."""
    if example.device.type != "cpu" or not _can_pack():
        return module
    # A copy of the structure alone: weights are shared with the module.
    shared = {id(part): part for part in (*module.parameters(), *module.buffers())}
    packed: nn.Module = copy.deepcopy(module, shared)
    for parent in list(packed.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and _worth_packing(child.weight):
                setattr(parent, name, PackedLinear(child))
    return packed


def _worth_packing(weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.numel() in _PACKED_WEIGHTS


def _can_pack() -> bool:
    names = ("_reorder_linear_weight", "_linear_pointwise")
    return torch._C._has_mkldnn and all(hasattr(torch.ops.mkldnn, name) for name in names)  # noqa: SLF001


class PackedLinear(nn.Module):
    """A linear layer whose float32 weights lie in the order oneDNN reads them."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())  # noqa: SLF001
        self._bias = None if layer.bias is None else layer.bias.detach()

    def forward(self, vectors: Tensor) -> Tensor:
        """Return (..., K) for vectors (..., C)."""
        answer: Tensor = torch.ops.mkldnn._linear_pointwise(vectors, self._weight, self._bias, "none", [], "")  # noqa: SLF001
        return answer
