"""TensorRT 10, TensorRT 11 and TensorRT for RTX behind one interface; builds engines from ONNX graphs.

The packages share their Python interface. Differences (removed flags, the targets of RTX) are detected
by attributes, not by version. TensorRT for RTX builds engines without a GPU; the others need one.
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
"""Package names; the package that supports more GPUs comes first."""

HINT: Final = (
    "install one: uv sync --inexact --extra tensorrt (NVIDIA's index must be reachable), or pip install "
    "tensorrt-rtx-cu13; or use --backend inductor"
)

_TARGETS: Final = ("CURRENT", "SM80", "")
"""Compute capabilities to build for with TensorRT for RTX, in this order; "" = its default."""


@dataclass(frozen=True, slots=True, eq=False)
class Library:
    """An imported TensorRT package."""

    name: str
    version: str
    api: Any
    """The package itself."""
    logger: Any
    """The logger that all builders and runtimes of a process share; ``errors`` lists its error messages."""

    @property
    def targets(self) -> tuple[str, ...]:
        """The supported targets, in order of preference."""
        known = getattr(self.api, "ComputeCapability", None)
        return ("",) if known is None else tuple(name for name in _TARGETS if not name or hasattr(known, name))


def installed() -> str:
    """Return the name of the installed package, "" if there is none; imports nothing."""
    return next((name for name in NAMES if name in sys.modules or importlib.util.find_spec(name) is not None), "")


@functools.cache
def library() -> Library:
    """Import TensorRT.

    Raises:
        BackendError: no package is installed, or none can be imported.
    """
    refused = []
    for name in NAMES:
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            continue
        try:
            api = importlib.import_module(name)
            return Library(str(getattr(api, "_package_name", name)), str(api.__version__), api, _logger(api))
        except Exception as reason:  # noqa: BLE001 - stubs and incomplete installations raise any kind of exception
            refused.append(f"{name}: {first_line(reason)}")
    why = f"it cannot be loaded ({'; '.join(refused)})" if refused else "no TensorRT is installed"
    raise BackendError(f"backend 'tensorrt': {why}; {HINT}")


def _logger(api: Any) -> Any:  # noqa: ANN401 - the vendor's own type
    """Return a logger that writes to Python's log and collects error messages."""
    error_levels = {api.ILogger.INTERNAL_ERROR, api.ILogger.ERROR}

    def write(self: Any, level: Any, text: str) -> None:  # noqa: ANN401 - the vendor's own types
        if level in error_levels:
            self.errors.append(text)
        log.debug("%s", text)

    # The base class is known only at run time.
    logger = type("Logger", (api.ILogger,), {"log": write})()
    logger.errors = []
    return logger


def build_engine(
    graph: bytes, *, target: str = "", half: bool = False, float32: int = 0, using: Library | None = None
) -> bytes:
    """Build a strongly typed engine: every tensor has the type that the graph defines.

    Args:
        graph: an ONNX model with fixed shapes.
        target: one of ``Library.targets``.
        half: True: a convolution that would not run in half precision is an error. False: float32 without TF32, which
            TensorRT uses by default.
        float32: with ``half``, the number of convolutions that the module itself has in float32.
        using: the library; None = the installed one.

    Returns:
        The serialized engine.

    Raises:
        BackendError: the graph cannot be parsed or built.
    """
    tensorrt = using or library()
    api, tensorrt.logger.errors[:] = tensorrt.api, []
    builder = create(api.Builder, tensorrt)
    network = builder.create_network(_flags(api))
    parser = api.OnnxParser(network, tensorrt.logger)
    if not parser.parse(graph):
        errors = "; ".join(first_line(Exception(str(parser.get_error(k)))) for k in range(parser.num_errors))
        raise BackendError(
            f"backend 'tensorrt': {tensorrt.name} {tensorrt.version} cannot read this network ({errors}); use another "
            "--backend"
        )
    if half:
        check_half(api, network, float32)
    settings = builder.create_builder_config()
    if not half:
        keep_float32(api, settings)
    if target:
        settings.num_compute_capabilities = 1
        settings.set_compute_capability(getattr(api.ComputeCapability, target), 0)
    blob = builder.build_serialized_network(network, settings)
    if blob is None:
        raise BackendError(
            f"backend 'tensorrt': {tensorrt.name} {tensorrt.version} cannot build this network"
            f"{f' for {target}' if target else ''} ({_why(tensorrt)}); use another --backend"
        )
    return bytes(blob)


def create(kind: Any, tensorrt: Library) -> Any:  # noqa: ANN401 - the vendor's own types
    """Return a builder or runtime; without a GPU the library raises an exception or returns None.

    Raises:
        BackendError: the library cannot be used on this machine.
    """
    try:
        instance = kind(tensorrt.logger)
    except (TypeError, RuntimeError) as reason:
        why = tensorrt.logger.errors[0] if tensorrt.logger.errors else first_line(reason)
        raise BackendError(
            f"backend 'tensorrt': {tensorrt.name} {tensorrt.version} does not work on this machine ({why[:200]}); use "
            "another --backend"
        ) from reason
    if instance is None:
        raise BackendError(
            f"backend 'tensorrt': {tensorrt.name} {tensorrt.version} does not work on this machine "
            f"({_why(tensorrt)}); use another --backend"
        )
    return instance


def keep_float32(api: Any, settings: Any) -> None:  # noqa: ANN401 - the vendor's own types
    """Disable TF32, the rounding of float32 factors to 10 bits."""
    if hasattr(api.BuilderFlag, "TF32"):
        settings.clear_flag(api.BuilderFlag.TF32)


def check_half(api: Any, network: Any, float32: int) -> None:  # noqa: ANN401 - the vendor's own types
    """Raise BackendError if convolutions other than ``float32`` ones have float32 output."""
    if (wide := wide_convolutions(api, network) - float32) > 0:
        raise BackendError(
            f"backend 'tensorrt': {wide} convolutions would run in float32, not in half precision; use --precision "
            "fp32 or another --backend"
        )


def wide_convolutions(api: Any, network: Any) -> int:  # noqa: ANN401 - the vendor's own types
    """Return the number of convolutions of a network with float32 output."""
    layers = (network.get_layer(k) for k in range(network.num_layers))
    return sum(
        layer.type == api.LayerType.CONVOLUTION and layer.get_output(0).dtype == api.DataType.FLOAT for layer in layers
    )


def _flags(api: Any) -> int:  # noqa: ANN401 - the vendor's own type
    """Return the flags for strong typing and explicit batch that this version supports."""
    known = api.NetworkDefinitionCreationFlag
    return sum(1 << int(getattr(known, name)) for name in ("STRONGLY_TYPED", "EXPLICIT_BATCH") if hasattr(known, name))


def _why(tensorrt: Library) -> str:
    return first_line(Exception(tensorrt.logger.errors[0])) if tensorrt.logger.errors else "no error message"


def pack(outputs: list[str], blob: bytes) -> bytes:
    """Serialize an engine and its output names, in the module's order, to one byte string."""
    return json.dumps(outputs).encode() + b"\n" + blob


def unpack(payload: bytes) -> tuple[list[str], bytes]:
    """Return the output names and the engine from the bytes that ``pack`` returned."""
    line, _, blob = payload.partition(b"\n")
    return [str(name) for name in json.loads(line)], blob
