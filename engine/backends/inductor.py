"""torch.compile with frozen weights: operations fused into compiled loops, weights packed for the machine.

The first build takes tens of seconds (and a C++ compiler on a CPU); torch keeps its own cache in the guarded cache
folder, so the next one takes a few.
"""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from engine.backends.registry import Compiled, first_line
from engine.runtime.compile_cache import CompileCache
from engine.vendors import guard_compiled
from pipeline.errors import BackendError

_numbers = itertools.count()


def missing(device: str) -> str:
    """Return why torch.compile cannot run here, or ""."""
    if device == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        return "it needs a C++ compiler: install one (Debian: apt-get install g++), or use --backend eager"
    return ""


def compile(  # noqa: A001 - the protocol's name
    module: nn.Module,
    example: Tensor,
    precision: str,  # noqa: ARG001 - the protocol's signature
    cache: CompileCache | None = None,
) -> Compiled:
    """Return the compiled module, for the example's shape alone."""
    lacking = missing(example.device.type)
    if lacking:
        raise BackendError(f"backend 'inductor': {lacking}")
    guard_compiled(None if cache is None else cache.folder)
    # torch warns of a missing CUDA toolkit on every machine without a GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    compiled = torch.compile(_alone(module), dynamic=False, options={"freezing": True})

    def run(images: Tensor) -> Any:  # noqa: ANN401 - one tensor or several, as the module
        # torch compiles anew for a tensor made outside inference mode: all are of one kind here.
        return compiled(images if images.is_inference() else images.clone())

    try:
        with torch.inference_mode():
            run(example)
    except Exception as reason:  # torch raises whatever its many stages raise
        raise BackendError(
            f"backend 'inductor': this network does not compile ({first_line(reason)}); use --backend eager"
        ) from reason
    return run


def _alone(module: nn.Module) -> Callable[[Tensor], Any]:
    """Return the module as a function with code of its own.

    torch keeps what it compiled with the code: frozen weights of one network must not be taken for another's, and a
    second batch size must not push the first one out.
    """

    def forward(images: Tensor) -> Any:  # noqa: ANN401 - the same
        return module(images)

    forward.__code__ = forward.__code__.replace(co_name=f"forward_{next(_numbers)}")
    return forward
