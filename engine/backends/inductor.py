"""torch.compile with frozen weights: operations fused into compiled loops, weights packed for the machine.

The first build takes tens of seconds (and a C++ compiler on a CPU); torch keeps its own cache on disk, so the next one
takes a few.
"""

from __future__ import annotations

import logging
import shutil

import torch
from torch import Tensor, nn

from engine.backends.table import Compiled, first_line
from engine.cache import Cache
from pipeline.errors import BackendError


def missing(device: str) -> str:
    """Return why torch.compile cannot run here, or ""."""
    if device == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        return "it needs a C++ compiler: install one (Debian: apt-get install g++), or use --backend eager"
    return ""


def compile(  # noqa: A001 - the protocol's name
    module: nn.Module,
    example: Tensor,
    precision: str,  # noqa: ARG001 - the protocol's signature
    cache: Cache | None = None,  # noqa: ARG001 - the same
) -> Compiled:
    """Return the compiled module, for the example's shape alone."""
    lacking = missing(example.device.type)
    if lacking:
        raise BackendError(f"backend 'inductor': {lacking}")
    # torch warns of a missing CUDA toolkit on every machine without a GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    # Each build stands alone: frozen weights of one network must not be taken for another's.
    torch.compiler.reset()
    compiled = torch.compile(module, dynamic=False, options={"freezing": True})
    try:
        with torch.inference_mode():
            compiled(example)
    except Exception as reason:  # torch raises whatever its many stages raise
        raise BackendError(
            f"backend 'inductor': this network does not compile ({first_line(reason)}); use --backend eager"
        ) from reason
    return compiled
