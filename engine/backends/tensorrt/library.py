"""TensorRT 10 and 11 and TensorRT for RTX as one library: which one is here, and an ONNX graph to an engine.

They share their Python interface; what differs (flags that newer ones dropped, the targets of RTX) is asked of the
package, never told by its version. TensorRT for RTX builds without a GPU; the others want one.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import logging
import sys
from dataclasses import dataclass
from typing import Any, Final

from engine.backends.registry import first_line
from pipeline.errors import BackendError

log = logging.getLogger(__name__)

NAMES: Final = ("tensorrt", "tensorrt_rtx")
"""Packages that hold it, the one that knows more GPUs first."""

HINT: Final = (
    "install one: uv sync --extra tensorrt (NVIDIA's index must be reachable), or pip install tensorrt-rtx-cu13; "
    "or use --backend inductor"
)

_TARGETS: Final = ("CURRENT", "SM80", "")
"""Compute capabilities that RTX is asked for, in this order; the last is what it builds for by itself."""


@dataclass(frozen=True, slots=True, eq=False)
class Library:
    """One of the packages, imported."""

    name: str
    version: str
    api: Any
    """The package itself."""
    logger: Any
    """The one logger that all builders and runtimes of a process must share; its ``errors`` are what went wrong."""

    @property
    def targets(self) -> tuple[str, ...]:
        """What an engine can be built for, the preferred first."""
        known = getattr(self.api, "ComputeCapability", None)
        return ("",) if known is None else tuple(name for name in _TARGETS if not name or hasattr(known, name))


def installed() -> str:
    """Return the package that would be used, by its name alone, or ""; imports nothing."""
    return next((name for name in NAMES if name in sys.modules or importlib.util.find_spec(name) is not None), "")


@functools.cache
def library() -> Library:
    """Import TensorRT.

    Raises:
        BackendError: there is none, or none that can be loaded.
    """
    refused = []
    for name in NAMES:
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            continue
        try:
            api = importlib.import_module(name)
            return Library(str(getattr(api, "_package_name", name)), str(api.__version__), api, _logger(api))
        except Exception as reason:  # noqa: BLE001 - stubs and half installations raise whatever they like
            refused.append(f"{name}: {first_line(reason)}")
    why = f"it cannot be loaded ({'; '.join(refused)})" if refused else "no TensorRT is installed"
    raise BackendError(f"backend 'tensorrt': {why}; {HINT}")


def _logger(api: Any) -> Any:  # noqa: ANN401 - the vendor's own type
    """Return a logger that hands the library's words to ours, and remembers the errors for the one that is raised."""
    grave = {api.ILogger.INTERNAL_ERROR, api.ILogger.ERROR}

    def note(self: Any, level: Any, text: str) -> None:  # noqa: ANN401 - the vendor's own types
        if level in grave:
            self.errors.append(text)
        log.debug("%s", text)

    # Its base is known at run time alone.
    made = type("Logger", (api.ILogger,), {"log": note})()
    made.errors = []
    return made


def build_engine(graph: bytes, *, target: str = "", half: bool = False, using: Library | None = None) -> bytes:
    """Build a strongly typed engine: every tensor keeps the type the graph gives it.

    Args:
        graph: an ONNX model of fixed shapes.
        target: of ``Library.targets``.
        half: whether its convolutions must run in half precision: an engine that would not is refused. Without it
            float32 means float32, and its factors are not rounded (TF32), which these libraries do unasked.
        using: the library; None = the one that is here.

    Raises:
        BackendError: the graph cannot be read or built.
    """
    here = using or library()
    api, here.logger.errors[:] = here.api, []
    builder = made(api.Builder, here)
    network = builder.create_network(_flags(api))
    parser = api.OnnxParser(network, here.logger)
    if not parser.parse(graph):
        told = "; ".join(first_line(Exception(str(parser.get_error(k)))) for k in range(parser.num_errors))
        raise BackendError(f"backend 'tensorrt': {here.name} {here.version} cannot read this network ({told})")
    if half and (wide := wide_convolutions(api, network)):
        raise BackendError(f"backend 'tensorrt': {wide} convolutions would run in float32, not in half precision")
    settings = builder.create_builder_config()
    if not half:
        keep_float32(api, settings)
    if target:
        settings.num_compute_capabilities = 1
        settings.set_compute_capability(getattr(api.ComputeCapability, target), 0)
    blob = builder.build_serialized_network(network, settings)
    if blob is None:
        raise BackendError(
            f"backend 'tensorrt': {here.name} {here.version} cannot build this network"
            f"{f' for {target}' if target else ''} ({_why(here)})"
        )
    return bytes(blob)


def made(kind: Any, here: Library) -> Any:  # noqa: ANN401 - the vendor's own types
    """Return a builder or a runtime; without a GPU the library gives none, in one way or another.

    Raises:
        BackendError: there is none to be had here.
    """
    try:
        told = kind(here.logger)
    except (TypeError, RuntimeError) as reason:
        why = here.logger.errors[0] if here.logger.errors else first_line(reason)
        words = f"{here.name} {here.version} does not work here ({why[:200]})"
        raise BackendError(f"backend 'tensorrt': {words}") from reason
    if told is None:
        raise BackendError(f"backend 'tensorrt': {here.name} {here.version} does not work here ({_why(here)})")
    return told


def keep_float32(api: Any, settings: Any) -> None:  # noqa: ANN401 - the vendor's own types
    """Turn off the rounding of float32 factors."""
    if hasattr(api.BuilderFlag, "TF32"):
        settings.clear_flag(api.BuilderFlag.TF32)


def wide_convolutions(api: Any, network: Any) -> int:  # noqa: ANN401 - the vendor's own types
    """Return how many convolutions of a network give float32."""
    layers = (network.get_layer(k) for k in range(network.num_layers))
    return sum(
        layer.type == api.LayerType.CONVOLUTION and layer.get_output(0).dtype == api.DataType.FLOAT for layer in layers
    )


def _flags(api: Any) -> int:  # noqa: ANN401 - the vendor's own type
    """Ask for strong typing and explicit batches where they still have to be asked for."""
    known = api.NetworkDefinitionCreationFlag
    return sum(1 << int(getattr(known, name)) for name in ("STRONGLY_TYPED", "EXPLICIT_BATCH") if hasattr(known, name))


def _why(here: Library) -> str:
    return first_line(Exception(here.logger.errors[0])) if here.logger.errors else "it does not say why"


def wrapped(outputs: list[str], blob: bytes) -> bytes:
    """Return an engine with the names of its outputs, in the order the module gives them."""
    return json.dumps(outputs).encode() + b"\n" + blob


def unwrapped(payload: bytes) -> tuple[list[str], bytes]:
    """Return the names of the outputs and the engine."""
    line, _, blob = payload.partition(b"\n")
    return [str(name) for name in json.loads(line)], blob
