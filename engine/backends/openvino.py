"""OpenVINO: the whole explained network as one graph for Intel and AMD processors.

The module is exported by torch and converted; OpenVINO lowers the precision itself (``bf16`` where the processor has
it), keeping what follows the last matrix product, softmax and normalising, in float32.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
from torch import Tensor, nn

from engine.backends.table import Compiled, first_line
from pipeline.errors import BackendError

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


def missing(device: str) -> str:
    """Return why OpenVINO cannot run here, or ""."""
    if device != "cpu":
        return f"it runs on the CPU, not on {device}: use --device cpu, or another --backend"
    if importlib.util.find_spec("openvino") is None:
        return "the package is missing: uv sync, or pip install openvino"
    return ""


def compile(module: nn.Module, example: Tensor, precision: str) -> Compiled:  # noqa: A001 - the protocol's signature
    """Return the compiled module, for the example's shape alone.

    Raises:
        BackendError: torch cannot export the module, or OpenVINO cannot convert it.
    """
    import openvino

    try:
        with torch.no_grad():
            exported = torch.export.export(module.eval(), (example.contiguous(),))
        model = openvino.convert_model(exported)
        hints = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": min(torch.get_num_threads(), os.cpu_count() or 1),
        }
        request = openvino.Core().compile_model(model, "CPU", hints).create_infer_request()
    except Exception as reason:  # both libraries raise whatever their many stages raise
        raise BackendError(f"backend 'openvino': this network does not convert ({first_line(reason)})") from reason
    return _Request(request)


class _Request:
    """Calls a compiled model with torch's tensors; one thread at a time."""

    def __init__(self, request: Any) -> None:  # noqa: ANN401 - OpenVINO's own type
        self._request = request

    def __call__(self, images: Tensor) -> Any:  # noqa: ANN401 - one tensor or several, as the module
        """Return what the module returns, as new tensors."""
        results = self._request.infer([images.contiguous().numpy()])
        tensors = tuple(torch.from_numpy(results[k].copy()) for k in range(len(results)))
        return tensors if len(tensors) > 1 else tensors[0]
