"""PyTorch as it is: every operation when it is called, channels last. The reference for all other backends."""

from __future__ import annotations

from torch import Tensor, nn

from engine.backends.table import Compiled


def missing(device: str) -> str:  # noqa: ARG001 - the protocol's signature
    """Return "": it runs wherever torch does."""
    return ""


def compile(module: nn.Module, example: Tensor, precision: str) -> Compiled:  # noqa: A001, ARG001 - the protocol's signature
    """Return the module itself."""
    return module
