"""Compiles a detector's forward pass with the fastest backend whose outputs match eager PyTorch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from engine.backends.registry import AUTOMATIC, BACKENDS, check_backend
from engine.runtime.choice import fastest
from engine.runtime.compile_cache import CompileCache
from pipeline.errors import BackendError

TOLERANCE: Final = 1e-3
"""Maximum difference of an output from eager float32, as a fraction of the output's largest value."""
_ROUNDS: Final = 5

Compiled = Callable[[Tensor], Sequence[Tensor]]


def compile_plain_pass(module: nn.Module, example: Tensor, backend: str, cache: CompileCache | None) -> Compiled:
    """Return the compiled module; it accepts any number of images.

    Args:
        module: computes a tuple of maps from images (N, 3, H, W) float32.
        example: one image.
        backend: a backend's name, or ``auto`` for the fastest on this machine.
        cache: cache of compiled results.

    Raises:
        ConfigError: the backend is unknown.
        BackendError: the backend is not available here, or its outputs differ from eager PyTorch's.
    """
    names = AUTOMATIC["cpu"] if check_backend(backend) == "auto" else (backend,)
    images = torch.rand(example.shape, generator=torch.Generator().manual_seed(0)) * 255.0
    with torch.inference_mode():
        expected = module(images)

    def build(name: str) -> Compiled:
        compiled = _compiled(module, example, name, cache)
        _verify(name, expected, compiled(images))
        return compiled

    return fastest(names, build, lambda compiled: _seconds(compiled, images), "plain pass")


def _compiled(module: nn.Module, example: Tensor, name: str, cache: CompileCache | None) -> Compiled:
    entry = BACKENDS[name]
    backend = entry.load()
    missing = backend.missing("cpu")
    if missing:
        raise BackendError(f"backend {name!r}: {missing}")
    compiled: Callable[[Tensor], Any] = backend.compile(module, example, "fp32", cache)
    if entry.any_batch:
        return lambda images: tuple(compiled(images))
    return lambda images: _image_by_image(compiled, images)


def _image_by_image(compiled: Callable[[Tensor], Any], images: Tensor) -> tuple[Tensor, ...]:
    """Run a batch image by image in a module that is compiled for one image."""
    if len(images) == 1:
        return tuple(compiled(images))
    # A backend may return its own buffers, which the next call overwrites.
    outputs = [[output.clone() for output in compiled(images[n : n + 1])] for n in range(len(images))]
    return tuple(torch.cat(parts) for parts in zip(*outputs, strict=True))


def _verify(name: str, expected: Sequence[Tensor], found: Sequence[Tensor]) -> None:
    for number, (a, b) in enumerate(zip(expected, found, strict=True)):
        difference, scale = float((a - b).abs().max()), float(a.abs().max())
        if not difference <= TOLERANCE * scale + 1e-9:
            raise BackendError(
                f"backend {name!r}: output {number} of the detector differs from eager PyTorch by up to "
                f"{difference:.2g} (largest value {scale:.2g}); use --backend eager"
            )


def _seconds(compiled: Compiled, images: Tensor) -> float:
    """Return the seconds per image: the minimum of some runs, which other load affects least."""
    seconds = []
    with torch.inference_mode():
        for _ in range(_ROUNDS):
            started_at = time.perf_counter()
            compiled(images)
            seconds.append(time.perf_counter() - started_at)
    return min(seconds)
