"""Eager PyTorch with channels-last memory format, without a compiler.

Batch norms are folded into convolutions. On a CPU, float32 convolutions and wide linear layers are packed for oneDNN,
and activations and sums are fused into the convolutions before them, as in torch.compile. The result is compared with
the unfused network: the scores must agree within ``FUSED_TOLERANCE``.
"""

from __future__ import annotations

import copy
import logging
import math
from typing import Final

import torch
from torch import Tensor, fx, nn

from engine.backends.fusion import can_fuse_on_cpu, fold_batch_norms, fuse_convolutions, trace_blocks
from engine.backends.registry import Compiled, first_line
from engine.runtime.compile_cache import CompileCache

log = logging.getLogger(__name__)

FUSED_TOLERANCE: Final = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Maximum change of a score or of a feature map by fusion, as a fraction of the largest value."""
_PACKED_WEIGHTS = range(1 << 16, 1 << 24)
"""Number of weights of the linear layers that are packed; packing copies the weights."""


def missing(device: str) -> str:  # noqa: ARG001 - the protocol's signature
    """Return "", because eager PyTorch runs on every device."""
    return ""


def compile(  # noqa: A001 - the protocol's name
    module: nn.Module,
    example: Tensor,
    precision: str,  # noqa: ARG001 - the protocol's signature
    cache: CompileCache | None = None,  # noqa: ARG001 - the same
) -> Compiled:
    """Return a copy of ``module``, with fused and packed layers where possible."""
    on_cpu = example.device.type == "cpu"
    if not on_cpu and not any(isinstance(part, fx.GraphModule) for part in module.modules()):
        return module
    try:
        fused = _fused(module, example)
    except Exception as reason:  # noqa: BLE001 - tracing runs the network's own code, which may raise anything
        log.info("layers of this network cannot be fused (%s)", first_line(reason))
        fused = _structure_copy(module)
    if on_cpu and _can_pack():
        _pack_linear_layers(fused)
    return fused


def _fused(module: nn.Module, example: Tensor) -> nn.Module:
    """Return a copy with fused layers; an unfused copy if fusion changes the output too much."""
    fused = _structure_copy(module)
    trace_blocks(fused)
    folded = fold_batch_norms(fused)
    replaced = fuse_convolutions(fused, example) if example.device.type == "cpu" and can_fuse_on_cpu() else 0
    if not folded and not replaced:
        return fused
    differs, allowed = _difference(module, fused, example), FUSED_TOLERANCE[example.dtype]
    if differs <= allowed:
        log.debug("eager: %d batch norms folded, %d convolutions fused", folded, replaced)
        return fused
    log.warning("fused layers change the output by %.3g (limit: %g), so they run unfused", differs, allowed)
    return _structure_copy(module)


def _structure_copy(module: nn.Module) -> nn.Module:
    """Return a copy of a module; parameters and buffers are shared."""
    shared = {id(part): part for part in (*module.parameters(), *module.buffers())}
    copied: nn.Module = copy.deepcopy(module, shared)
    return copied


def _difference(module: nn.Module, fused: nn.Module, example: Tensor) -> float:
    """Return the largest difference of the first outputs, as a fraction of the largest value; infinite for NaN.

    The first output contains the scores, or the feature map of a head.
    """
    with torch.inference_mode():
        first, second = (
            part[0] if isinstance(part, tuple | list) else part for part in (module(example), fused(example))
        )
    scale = float(first.abs().max())
    differs = float((first.float() - second.float()).abs().max()) / (scale or 1.0)
    return differs if differs == differs else math.inf  # noqa: PLR0124 - NaN


def _pack_linear_layers(module: nn.Module) -> None:
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and _worth_packing(child.weight):
                setattr(parent, name, PackedLinear(child))


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
