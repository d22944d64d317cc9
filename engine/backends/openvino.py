"""OpenVINO: compiles the network with its explanation for Intel and AMD processors.

The module is exported by torch and converted. OpenVINO itself lowers the precision (``bf16`` if the processor supports
it); softmax and normalisation after the last matrix product stay in float32.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from typing import Any

import torch
from torch import Tensor, nn

from engine.backends.registry import Compiled, first_line
from engine.runtime.compile_cache import CompileCache, key_of
from engine.runtime.signal_stack import preserve_signal_stack
from engine.vendors import stop_telemetry
from pipeline.errors import BackendError

log = logging.getLogger(__name__)

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


def hints_for(precision: str) -> dict[str, Any]:
    """Return OpenVINO's settings for low latency in this precision."""
    return {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": min(torch.get_num_threads(), os.cpu_count() or 1),
    }


def missing(device: str) -> str:
    """Return why OpenVINO cannot run on this machine, or ""."""
    if device != "cpu":
        return f"it runs on the CPU, not on {device}: use --device cpu, or another --backend"
    if importlib.util.find_spec("openvino") is None:
        return "the package is missing: uv sync, or pip install openvino"
    return ""


def compile(  # noqa: A001 - the protocol's name
    module: nn.Module, example: Tensor, precision: str, cache: CompileCache | None = None
) -> Compiled:
    """Return the module compiled for the example's shape.

    Raises:
        BackendError: torch cannot export the module, or OpenVINO cannot convert it.
    """
    with preserve_signal_stack():
        return _compiled(module, example, precision, cache)


def _compiled(module: nn.Module, example: Tensor, precision: str, cache: CompileCache | None) -> Compiled:
    stop_telemetry()
    import openvino

    core = openvino.Core()
    hints = hints_for(precision)
    key: dict[str, str] = {}
    if cache is not None:
        processor = (
            f"{core.get_property('CPU', 'FULL_DEVICE_NAME')} {core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES')}"
        )
        key = key_of(module, example, backend=f"openvino {openvino.__version__}", hints=str(hints), processor=processor)
        compiled = _from_cache(core, cache.get(key), hints)
        if compiled is not None:
            return Request(compiled.create_infer_request())
    try:
        with torch.no_grad():
            exported = torch.export.export(module.eval(), (example.contiguous(),))
        compiled = core.compile_model(openvino.convert_model(exported), "CPU", hints)
        request = compiled.create_infer_request()
    except Exception as reason:  # both libraries have many kinds of exceptions
        raise BackendError(
            f"backend 'openvino': this network cannot be converted ({first_line(reason)}); use --backend eager"
        ) from reason
    if cache is not None:
        cache.put(key, compiled.export_model().getvalue())
    return Request(request)


def _from_cache(core: Any, payload: bytes | None, hints: dict[str, Any]) -> Any:  # noqa: ANN401 - OpenVINO's own types
    """Load the compiled model from a cache entry; None if OpenVINO cannot read it."""
    if payload is None:
        return None
    try:
        return core.import_model(payload, "CPU", hints)
    except Exception as reason:  # noqa: BLE001 - OpenVINO has many kinds of exceptions; the model is compiled again
        log.warning("a cached model cannot be loaded (%s); the network is compiled again", first_line(reason))
        return None


class Request:
    """Calls a compiled model with torch tensors; not thread-safe."""

    def __init__(self, request: Any) -> None:  # noqa: ANN401 - OpenVINO's own type
        self._request = request

    def __call__(self, images: Tensor) -> Any:  # noqa: ANN401 - one tensor or several, as the module
        """Return the module's outputs as new tensors."""
        results = self._request.infer([images.contiguous().numpy()])
        tensors = tuple(torch.from_numpy(results[k].copy()) for k in range(len(results)))
        return tensors if len(tensors) > 1 else tensors[0]
