"""The table of backends: module and example input to a callable, one file each.

A backend gets a module in inference mode on its device and precision, and gives back something that answers as the
module does. Vendor imports stay inside the member's file.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from torch import Tensor, nn

from engine.runtime.compile_cache import CompileCache
from pipeline.errors import ConfigError, did_you_mean

Compiled = Callable[[Tensor], Any]
"""What a backend gives back: called as the module is."""


class Backend(Protocol):
    """What each member's file holds as module-level functions."""

    def missing(self, device: str) -> str:
        """Return why it cannot run on ``device`` here and what to do, or "" when it can."""
        ...

    def compile(
        self, module: nn.Module, example: Tensor, precision: str, cache: CompileCache | None = None
    ) -> Compiled:
        """Return a callable that answers as ``module`` does, for inputs of the example's shape and dtype.

        ``precision`` tells those that lower it themselves; for the others the module already has it. What was compiled
        before is taken from ``cache``, and what is compiled now is kept there, by those that can.

        Raises ``BackendError`` when this module cannot be compiled here.
        """
        ...


@dataclass(frozen=True, slots=True)
class BackendEntry:
    """One member of the table."""

    member: str
    """The file that holds it."""
    any_batch: bool
    """Whether what it compiles takes any batch size; otherwise batches are filled up to a compiled one."""
    description: str
    """What it is, in one line."""
    lowers_precision: bool = False
    """Whether it is given the float32 network and lowers the precision itself."""
    keeps_order: bool = False
    """Whether it is also held to the order of classes and cells: cosine, first class, heat rank correlation."""

    def load(self) -> Any:  # noqa: ANN401 - a module that keeps the Backend protocol
        """Import the member."""
        return importlib.import_module(self.member)


BACKENDS: Final[dict[str, BackendEntry]] = {
    "eager": BackendEntry("engine.backends.eager", any_batch=True, description="PyTorch as it is, channels last"),
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
"""Every backend by name."""

AUTOMATIC: Final = {"cpu": ("openvino", "eager"), "cuda": ("tensorrt", "inductor", "eager")}
"""What ``auto`` considers, by kind of device. On a CPU all are timed against each other, and inductor is asked for by
name: it compiles for minutes. On a GPU the first that runs is taken."""


def check_backend(name: str) -> str:
    """Return the backend's name, or ``auto``.

    Raises:
        ConfigError: there is no such backend.
    """
    if name != "auto" and name not in BACKENDS:
        raise ConfigError(
            f"backend {name!r} is unknown; choose auto, {', '.join(BACKENDS)}.{did_you_mean(name, BACKENDS)}"
        )
    return name


def first_line(reason: BaseException) -> str:
    """Return an error's first line, or its kind where it says nothing."""
    lines = str(reason).strip().splitlines()
    return lines[0][:200] if lines else type(reason).__name__
