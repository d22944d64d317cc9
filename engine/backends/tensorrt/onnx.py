"""The direct route: module -> ONNX graph -> TensorRT engine, with nothing between torch's memory and the engine's."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from engine.backends.registry import first_line
from engine.backends.tensorrt.library import Library, build_engine, library, made, unwrapped, wrapped
from pipeline.errors import BackendError

log = logging.getLogger(__name__)

_DTYPES = {
    "FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT32": torch.int32, "INT64": torch.int64,
    "BOOL": torch.bool,
}  # fmt: skip
_new_stream: Callable[[torch.device], torch.cuda.Stream] = torch.cuda.Stream
_HALVES = {torch.float16, torch.bfloat16}


def lacking() -> str:
    """Return which packages the route needs that are not here, or ""."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} missing: uv sync --extra export, or pip install onnx onnxscript" if missing else ""


def graph_of(module: nn.Module, example: Tensor) -> tuple[bytes, list[str]]:
    """Return the module as an ONNX model of fixed shapes, and the names of its outputs in order.

    Raises:
        BackendError: torch cannot export it.
    """
    for name in ("onnx_ir", "onnxscript", "torch.onnx"):
        logging.getLogger(name).setLevel(logging.ERROR)  # they tell of every constant they fold
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch and onnxscript speak of their own inner affairs
        try:
            with torch.no_grad():
                program = torch.export.export(module.eval(), (example.contiguous(),))
            written = torch.onnx.export(program, dynamo=True, verbose=False)
            graph: Any = getattr(written, "model", None)
            names = [str(value.name) for value in graph.graph.outputs]
            packed: bytes = getattr(written, "model_proto", graph).SerializeToString()
        except Exception as reason:  # torch, onnxscript and protobuf raise whatever their many stages raise
            raise BackendError(
                f"backend 'tensorrt': this network cannot be written as ONNX ({first_line(reason)})"
            ) from reason
    return packed, names


def build(module: nn.Module, example: Tensor, using: Library | None = None) -> bytes:
    """Return an engine for the example's shape and dtype, with its outputs' names.

    It needs a GPU only where the library does.

    Raises:
        BackendError: no way to build it is left.
    """
    here = using or library()
    graph, names = graph_of(module, example)
    half = any(parameter.dtype in _HALVES for parameter in module.parameters())
    refused: list[str] = []
    for target in here.targets if example.is_cuda else here.targets[-1:]:
        try:
            blob = build_engine(graph, target=target, half=half, using=here)
            if example.is_cuda:
                _deserialized(blob, here)  # what this GPU refuses shows here
        except BackendError as reason:
            refused.append(str(reason))
        else:
            return wrapped(names, blob)
    raise BackendError("; ".join(dict.fromkeys(refused)))


class Program:
    """Runs an engine on torch's tensors, on torch's current stream; one thread at a time."""

    def __init__(self, payload: bytes, example: Tensor, using: Library | None = None) -> None:
        """Load an engine that ``build`` made.

        Raises:
            BackendError: this GPU, driver or library does not take it, or it is for other shapes.
        """
        here = using or library()
        self._names, blob = unwrapped(payload)
        self._engine = _deserialized(blob, here)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise BackendError(f"backend 'tensorrt': no execution context ({'; '.join(here.logger.errors)[:200]})")
        (self._input,) = (
            name
            for name in (self._engine.get_tensor_name(k) for k in range(self._engine.num_io_tensors))
            if self._engine.get_tensor_mode(name) == here.api.TensorIOMode.INPUT
        )
        self._shape = tuple(self._engine.get_tensor_shape(self._input))
        self._dtype = example.dtype
        if self._shape != tuple(example.shape):
            raise BackendError(f"backend 'tensorrt': the engine takes {self._shape}, not {tuple(example.shape)}")
        # The addresses stay for life: a captured graph replays them.
        self._outputs = [
            torch.empty(
                tuple(self._engine.get_tensor_shape(name)),
                dtype=_dtype(here.api, self._engine.get_tensor_dtype(name)),
                device=example.device,
            )
            for name in self._names
        ]
        for name, output in zip(self._names, self._outputs, strict=True):
            self._context.set_tensor_address(name, output.data_ptr())
        self._side = _new_stream(example.device)

    def __call__(self, images: Tensor) -> Any:  # noqa: ANN401 - one tensor or several, as the module
        """Return what the module returns, as new tensors."""
        images = images.to(self._dtype).contiguous()
        if tuple(images.shape) != self._shape:
            message = f"an engine for {self._shape} was given {tuple(images.shape)}"
            raise ValueError(message)
        current = torch.cuda.current_stream(images.device)
        if current == torch.cuda.default_stream(images.device):
            # On the default stream TensorRT synchronises at every call.
            self._side.wait_stream(current)
            with torch.cuda.stream(self._side):
                self._run(images, self._side)
            current.wait_stream(self._side)
        else:
            self._run(images, current)
        told = tuple(output.clone() for output in self._outputs)
        return told if len(told) > 1 else told[0]

    def _run(self, images: Tensor, stream: torch.cuda.Stream) -> None:
        self._context.set_tensor_address(self._input, images.data_ptr())
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise BackendError("backend 'tensorrt': an engine failed to run")


def _deserialized(blob: bytes, here: Library) -> Any:  # noqa: ANN401 - the vendor's own type
    here.logger.errors[:] = []
    runtime = made(here.api.Runtime, here)
    engine = runtime.deserialize_cuda_engine(blob)
    if engine is None:
        why = here.logger.errors[0][:200] if here.logger.errors else "it does not say why"
        raise BackendError(f"backend 'tensorrt': {here.name} {here.version} does not load an engine here ({why})")
    return engine


def _dtype(api: Any, told: Any) -> torch.dtype:  # noqa: ANN401 - the vendor's own types
    for name, kind in _DTYPES.items():
        if told == getattr(api.DataType, name, None):
            return kind
    raise BackendError(f"backend 'tensorrt': an engine gives {told}, which torch does not have")
