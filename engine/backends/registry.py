"""Registry of the backends.

A backend compiles a module (in inference mode, on its device and in its precision) to a callable with the same
outputs. A vendor's package is imported only in the backend's own module.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

from torch import Tensor, nn

from engine.runtime.compile_cache import CompileCache
from pipeline.errors import ConfigError, did_you_mean

Compiled = Callable[[Tensor], Any]
"""A compiled module, called like the original module."""


class Backend(Protocol):
    """The functions of a backend's module."""

    def missing(self, device: str) -> str:
        """Return why the backend cannot run on ``device``, with the remedy; "" if it can."""
        ...

    def compile(
        self, module: nn.Module, example: Tensor, precision: str, cache: CompileCache | None = None
    ) -> Compiled:
        """Compile a module for inputs of the example's shape and dtype.

        Args:
            module: the module, in inference mode.
            example: an example input.
            precision: the precision, for backends that lower it themselves; other backends use the module's dtype.
            cache: cache for compiled results; ignored by backends without cache support.

        Returns:
            A callable with the same outputs as the module.

        Raises:
            BackendError: the module cannot be compiled on this machine.
        """
        ...


@dataclass(frozen=True, slots=True)
class BackendEntry:
    """The registry's entry of a backend."""

    member: str
    """Qualified name of its module."""
    any_batch: bool
    """True if a compiled module accepts any batch size; otherwise batches are split into compiled sizes."""
    description: str
    """One-line description."""
    lowers_precision: bool = False
    """True if the backend takes the float32 network and lowers the precision itself."""
    keeps_order: bool = False
    """True if verification also compares the ranking of classes and cells (see ``verification.Similarity``)."""

    def load(self) -> Backend:
        """Import and return the backend's module."""
        return cast("Backend", importlib.import_module(self.member))


BACKENDS: Final[dict[str, BackendEntry]] = {
    "eager": BackendEntry("engine.backends.eager", any_batch=True, description="eager PyTorch, fused layers"),
    "inductor": BackendEntry(
        "engine.backends.inductor", any_batch=False, description="torch.compile; needs a C++ compiler"
    ),
    "openvino": BackendEntry(
        "engine.backends.openvino", any_batch=False, description="OpenVINO, for processors", lowers_precision=True
    ),
    "tensorrt": BackendEntry(
        "engine.backends.tensorrt.backend", any_batch=False, description="TensorRT, for NVIDIA GPUs", keeps_order=True
    ),
}
"""All backends by name."""

AUTOMATIC: Final = {"cpu": ("openvino", "eager"), "cuda": ("tensorrt", "eager")}
"""Candidates of ``auto`` by type of device. On a CPU the fastest candidate is used, on a GPU the first that works.
Inductor is no candidate, because it compiles for minutes."""


def check_backend(name: str) -> str:
    """Return ``name`` if it is a backend or ``auto``.

    Raises:
        ConfigError: the backend is unknown.
    """
    if name != "auto" and name not in BACKENDS:
        raise ConfigError(
            f"backend {name!r} is unknown; choose auto, {', '.join(BACKENDS)}.{did_you_mean(name, BACKENDS)}"
        )
    return name


def first_line(reason: BaseException) -> str:
    """Return the first line of an error's message, or its type if the message is empty."""
    lines = str(reason).strip().splitlines()
    return lines[0][:200] if lines else type(reason).__name__
