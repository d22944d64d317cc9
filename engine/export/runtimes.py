"""Registry of runtimes for exported files. Vendor packages are imported inside functions.

An ``.onnx`` file contains no code. A ``.pt2`` file is a program that torch executes: run only trusted files.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from engine.backends.openvino import hints_for
from engine.backends.registry import first_line
from engine.runtime.signal_stack import preserve_signal_stack
from engine.runtime.verification import ModelOutputs
from engine.vendors import stop_telemetry
from pipeline.errors import ModelError

Program = Callable[[Tensor], ModelOutputs]
"""Computes the outputs for normalised images (N, 3, H, W), float32, any N; not thread-safe."""

INPUT: Final = "images"
OUTPUTS: Final = ("scores", "classes", "heat")


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime of the registry."""

    suffix: str
    """Suffix of the files that the runtime can run."""
    package: str
    load: Callable[[Path, str], Program]
    """Loads a file at a precision. Raises ``ModelError`` for a damaged file."""
    precisions: tuple[str, ...] = ("fp32",)

    def missing(self) -> str:
        """Return why the runtime is not available, with the remedy; "" if it is."""
        if importlib.util.find_spec(self.package) is None:
            return f"the package is missing: pip install {self.package}"
        return ""


class _OpenVino:
    """Runs the graph in OpenVINO, compiled for one image: a fixed shape runs faster."""

    def __init__(self, path: Path, precision: str) -> None:
        stop_telemetry()
        import openvino

        core = openvino.Core()
        model = core.read_model(str(path))
        channels, height, width = (side.get_length() for side in list(model.input(0).partial_shape)[1:])
        model.reshape([1, channels, height, width])
        with preserve_signal_stack():
            self._request = core.compile_model(model, "CPU", hints_for(precision)).create_infer_request()

    def __call__(self, images: Tensor) -> ModelOutputs:
        parts: list[list[Tensor]] = [[], [], []]
        for image in images.contiguous():
            results = self._request.infer([image[None].numpy()])
            for column, name in zip(parts, OUTPUTS, strict=True):
                column.append(torch.from_numpy(results[name].copy()))
        scores, classes, heat = (torch.cat(part) for part in parts)
        return scores, classes, heat


class _OnnxRuntime:
    """Runs the graph in ONNX Runtime, at any batch size."""

    def __init__(self, path: Path, precision: str) -> None:  # noqa: ARG002 - the table's signature
        stop_telemetry()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, images: Tensor) -> ModelOutputs:
        outputs = self._session.run(list(OUTPUTS), {INPUT: images.contiguous().numpy()})
        scores, classes, heat = (torch.from_numpy(part) for part in outputs)
        return scores, classes, heat


class _Torch:
    """Runs the program with torch, operation by operation."""

    def __init__(self, path: Path, precision: str) -> None:  # noqa: ARG002 - the table's signature
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # silences torch's warnings about its own formats
            self._module = torch.export.load(str(path)).module()

    def __call__(self, images: Tensor) -> ModelOutputs:
        with torch.inference_mode():
            scores, classes, heat = self._module(images)
        return scores, classes, heat


def _reading(kind: Callable[[Path, str], Program]) -> Callable[[Path, str], Program]:
    """Convert any exception of a runtime's loader to a ``ModelError``."""

    def load(path: Path, precision: str) -> Program:
        try:
            return kind(path, precision)
        except Exception as reason:  # vendors raise many types of exception
            raise ModelError(
                f"{path}: is damaged and cannot be loaded ({first_line(reason)}); export the network again"
            ) from reason

    return load


RUNTIMES: Final[dict[str, Runtime]] = {
    "openvino": Runtime(".onnx", "openvino", _reading(_OpenVino), ("fp32", "bf16", "fp16")),
    "onnxruntime": Runtime(".onnx", "onnxruntime", _reading(_OnnxRuntime)),
    "eager": Runtime(".pt2", "torch", _reading(_Torch)),
}
"""Runtimes by name in ``--backend``; the first available runtime of a file kind is preferred."""
