"""Eager PyTorch with channels-last memory format: the reference for all other backends.

On a CPU the weights of wide float32 linear layers are packed for oneDNN once, as torch.compile does. The results are
the same; a product with the vectors of fifty cells takes two thirds of the time.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from engine.backends.registry import Compiled
from engine.runtime.compile_cache import CompileCache

_PACKED_WEIGHTS = range(1 << 16, 1 << 24)
"""Numbers of weights of linear layers to pack; a packed layer needs memory for a copy of its weights."""


def missing(device: str) -> str:  # noqa: ARG001 - the protocol's signature
    """Return "", because eager PyTorch runs on every device."""
    return ""


def compile(  # noqa: A001 - the protocol's name
    module: nn.Module,
    example: Tensor,
    precision: str,  # noqa: ARG001 - the protocol's signature
    cache: CompileCache | None = None,  # noqa: ARG001 - the same
) -> Compiled:
    """Return the module with packed linear layers where possible; ``module`` itself is not changed."""
    if example.device.type != "cpu" or not _can_pack():
        return module
    # Copies only the structure; the weights are shared with the module.
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
    """A linear layer with float32 weights in oneDNN's memory layout."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())  # noqa: SLF001
        self._bias = None if layer.bias is None else layer.bias.detach()

    def forward(self, vectors: Tensor) -> Tensor:
        """Return (..., K) for vectors (..., C)."""
        output: Tensor = torch.ops.mkldnn._linear_pointwise(vectors, self._weight, self._bias, "none", [], "")  # noqa: SLF001
        return output
