"""torch.compile with frozen weights: fused loops, and weights packed for the processor.

The first compilation takes tens of seconds, and on a CPU needs a C++ compiler. Later compilations take a few seconds,
because torch stores compiled code in the folder of the compile cache.
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
    """Return why torch.compile cannot run on this machine, or ""."""
    if device == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        return "it needs a C++ compiler: install one (Debian: apt-get install g++), or use --backend eager"
    return ""


def compile(  # noqa: A001 - the protocol's name
    module: nn.Module,
    example: Tensor,
    precision: str,  # noqa: ARG001 - the protocol's signature
    cache: CompileCache | None = None,
) -> Compiled:
    """Return the module compiled for the example's shape.

    Raises:
        BackendError: there is no C++ compiler, or torch cannot compile the module.
    """
    reason_missing = missing(example.device.type)
    if reason_missing:
        raise BackendError(f"backend 'inductor': {reason_missing}")
    guard_compiled(None if cache is None else cache.folder)
    # Without a GPU, torch warns about a missing CUDA toolkit.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    compiled = torch.compile(_with_own_code(module), dynamic=False, options={"freezing": True})

    def run(images: Tensor) -> Any:  # noqa: ANN401 - one tensor or several, as the module
        # torch would compile again for a tensor created outside inference mode.
        return compiled(images if images.is_inference() else images.clone())

    try:
        with torch.inference_mode():
            run(example)
    except Exception as reason:  # torch.compile has many kinds of exceptions
        raise BackendError(
            f"backend 'inductor': this network cannot be compiled ({first_line(reason)}); use --backend eager"
        ) from reason
    return run


def _with_own_code(module: nn.Module) -> Callable[[Tensor], Any]:
    """Return a function with its own code object that calls the module.

    torch caches compiled results by code object. If networks shared one, the frozen weights of one network could be
    used for another, and a second batch size could evict the first.
    """

    def forward(images: Tensor) -> Any:  # noqa: ANN401 - the same
        return module(images)

    forward.__code__ = forward.__code__.replace(co_name=f"forward_{next(_numbers)}")
    return forward
