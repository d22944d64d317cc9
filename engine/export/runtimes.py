"""The table of runtimes: an exported file to something that answers batches of any size. Vendor imports stay inside.

An ``.onnx`` file carries no code. A ``.pt2`` file is a program that torch reads: run only those you trust.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from engine.backends.registry import first_line
from engine.runtime.signal_stack import preserve_signal_stack
from engine.runtime.verification import ModelOutputs
from engine.vendors import stop_telemetry
from pipeline.errors import ModelError

Program = Callable[[Tensor], ModelOutputs]
"""Normalised images (N, 3, H, W), float32, to answers; any N, one thread at a time."""

INPUT: Final = "images"
OUTPUTS: Final = ("scores", "classes", "heat")
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


@dataclass(frozen=True, slots=True)
class Runtime:
    """One member of the table."""

    suffix: str
    """The ending of the files it runs."""
    package: str
    load: Callable[[Path, str], Program]
    """File and precision to program. Raises ``ModelError`` where the file is damaged."""
    precisions: tuple[str, ...] = ("fp32",)

    def missing(self) -> str:
        """Return why it cannot run here and what to do, or ""."""
        if importlib.util.find_spec(self.package) is None:
            return f"the package is missing: pip install {self.package}"
        return ""


class _OpenVino:
    """Compiles the graph for one image: a fixed shape runs faster, and a stream never waits for a compiler."""

    def __init__(self, path: Path, precision: str) -> None:
        stop_telemetry()
        import openvino

        core = openvino.Core()
        model = core.read_model(str(path))
        hints = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": min(torch.get_num_threads(), os.cpu_count() or 1),
        }
        channels, height, width = (side.get_length() for side in list(model.input(0).partial_shape)[1:])
        model.reshape([1, channels, height, width])
        with preserve_signal_stack():
            self._request = core.compile_model(model, "CPU", hints).create_infer_request()

    def __call__(self, images: Tensor) -> ModelOutputs:
        parts: list[list[Tensor]] = [[], [], []]
        for image in images.contiguous():
            results = self._request.infer([image[None].numpy()])
            for kept, name in zip(parts, OUTPUTS, strict=True):
                kept.append(torch.from_numpy(results[name].copy()))
        scores, classes, heat = (torch.cat(part) for part in parts)
        return scores, classes, heat


class _OnnxRuntime:
    """Runs the graph as it is, at any batch size."""

    def __init__(self, path: Path, precision: str) -> None:  # noqa: ARG002 - the table's signature
        stop_telemetry()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, images: Tensor) -> ModelOutputs:
        told = self._session.run(list(OUTPUTS), {INPUT: images.contiguous().numpy()})
        scores, classes, heat = (torch.from_numpy(part) for part in told)
        return scores, classes, heat


class _Torch:
    """Runs the program with torch, operation by operation."""

    def __init__(self, path: Path, precision: str) -> None:  # noqa: ARG002 - the table's signature
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch speaks of its own formats
            self._module = torch.export.load(str(path)).module()

    def __call__(self, images: Tensor) -> ModelOutputs:
        with torch.inference_mode():
            scores, classes, heat = self._module(images)
        return scores, classes, heat


def _reading(kind: Callable[[Path, str], Program]) -> Callable[[Path, str], Program]:
    """Turn whatever a vendor raises at a file into a sentence."""

    def load(path: Path, precision: str) -> Program:
        try:
            return kind(path, precision)
        except Exception as reason:  # vendors raise whatever their many stages raise
            raise ModelError(
                f"{path}: is damaged, it cannot be loaded ({first_line(reason)}); export it again"
            ) from reason

    return load


RUNTIMES: Final[dict[str, Runtime]] = {
    "openvino": Runtime(".onnx", "openvino", _reading(_OpenVino), ("fp32", "bf16", "fp16")),
    "onnxruntime": Runtime(".onnx", "onnxruntime", _reading(_OnnxRuntime)),
    "eager": Runtime(".pt2", "torch", _reading(_Torch)),
}
"""Every runtime by the name ``--backend`` takes; of those for one kind of file the first that is here is preferred."""
