"""The ``onnx`` route: an engine, built from an ONNX graph, that uses torch's memory directly."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from engine.backends.registry import first_line
from engine.backends.tensorrt.library import Library, build_engine, create, library, pack, unpack
from pipeline.errors import BackendError

log = logging.getLogger(__name__)

_DTYPES = {
    "FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT32": torch.int32, "INT64": torch.int64,
    "BOOL": torch.bool,
}  # fmt: skip
_new_stream: Callable[[torch.device], torch.cuda.Stream] = torch.cuda.Stream
_HALVES = {torch.float16, torch.bfloat16}


def lacking() -> str:
    """Return which packages are missing, with the remedy; "" if none."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    remedy = "uv sync --inexact --extra export, or pip install onnx onnxscript"
    verb = "is" if len(missing) == 1 else "are"
    return f"{' and '.join(missing)} {verb} missing: {remedy}" if missing else ""


def graph_of(module: nn.Module, example: Tensor) -> tuple[bytes, list[str], int]:
    """Return the module as an ONNX model with fixed shapes.

    Returns:
        The model, the names of its outputs in order, and the number of float32 convolutions in the module (in half
        precision: those of a pooled tail, which stays in float32).

    Raises:
        BackendError: torch cannot export the module.
    """
    for name in ("onnx_ir", "onnxscript", "torch.onnx"):
        logging.getLogger(name).setLevel(logging.ERROR)  # they log every folded constant
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation warnings inside torch and onnxscript
        try:
            with torch.no_grad():
                program = torch.export.export(module.eval(), (example.contiguous(),))
            written = torch.onnx.export(program, dynamo=True, verbose=False)
            graph: Any = getattr(written, "model", None)
            names = [str(value.name) for value in graph.graph.outputs]
            packed: bytes = getattr(written, "model_proto", graph).SerializeToString()
        except Exception as reason:  # torch, onnxscript and protobuf have many kinds of exceptions
            raise BackendError(
                f"backend 'tensorrt': this network cannot be exported to ONNX ({first_line(reason)}); use another "
                "--backend"
            ) from reason
    return packed, names, _float32_convolutions(program)


def _float32_convolutions(program: torch.export.ExportedProgram) -> int:
    weights = [
        node.args[1].meta["val"]
        for node in program.graph.nodes
        if node.op == "call_function" and "conv" in str(node.target) and isinstance(node.args[1], torch.fx.Node)
    ]
    return sum(weight.dtype == torch.float32 for weight in weights)


def build(module: nn.Module, example: Tensor, using: Library | None = None) -> bytes:
    """Build an engine for the example's shape and dtype; return it packed with its output names.

    Raises:
        BackendError: the engine cannot be built for any target.
    """
    tensorrt = using or library()
    graph, names, float32 = graph_of(module, example)
    half = any(parameter.dtype in _HALVES for parameter in module.parameters())
    refused: list[str] = []
    for target in tensorrt.targets if example.is_cuda else tensorrt.targets[-1:]:
        try:
            with _current(example.device):
                blob = build_engine(graph, target=target, half=half, float32=float32, using=tensorrt)
                if example.is_cuda:
                    _deserialize(blob, tensorrt)  # raises BackendError if this GPU cannot run the engine
        except BackendError as reason:
            refused.append(str(reason))
        else:
            return pack(names, blob)
    raise BackendError("; ".join(dict.fromkeys(refused)))


class Program:
    """Runs an engine on torch tensors, on torch's current stream; not thread-safe."""

    def __init__(self, payload: bytes, example: Tensor, using: Library | None = None) -> None:
        """Load an engine from ``build``.

        Args:
            payload: the engine with its output names.
            example: an example input.
            using: the library; None = the installed one.

        Raises:
            BackendError: this GPU, driver or library cannot load the engine, or the engine has another input shape.
        """
        tensorrt = using or library()
        self._names, blob = unpack(payload)
        self._device = example.device
        with _current(self._device):
            self._engine = _deserialize(blob, tensorrt)
            self._context = self._engine.create_execution_context()
        if self._context is None:
            why = "; ".join(tensorrt.logger.errors)[:200] or "no error message"
            raise BackendError(
                f"backend 'tensorrt': {tensorrt.name} {tensorrt.version} cannot create an execution context for the "
                f"engine ({why}); use another --backend"
            )
        (self._input,) = (
            name
            for name in (self._engine.get_tensor_name(k) for k in range(self._engine.num_io_tensors))
            if self._engine.get_tensor_mode(name) == tensorrt.api.TensorIOMode.INPUT
        )
        self._shape = tuple(self._engine.get_tensor_shape(self._input))
        self._dtype = example.dtype
        if self._shape != tuple(example.shape):
            raise BackendError(
                f"backend 'tensorrt': the engine accepts images of shape {self._shape}, but the network gets "
                f"{tuple(example.shape)}; delete the compile cache"
            )
        # A captured CUDA graph reuses these addresses, so they must not change.
        self._outputs = [
            torch.empty(
                tuple(self._engine.get_tensor_shape(name)),
                dtype=_dtype(tensorrt.api, self._engine.get_tensor_dtype(name)),
                device=example.device,
            )
            for name in self._names
        ]
        for name, output in zip(self._names, self._outputs, strict=True):
            self._context.set_tensor_address(name, output.data_ptr())
        self._side = _new_stream(example.device)

    def __call__(self, images: Tensor) -> Any:  # noqa: ANN401 - one tensor or several, as the module
        """Return the module's outputs as new tensors."""
        images = images.to(self._dtype).contiguous()
        if tuple(images.shape) != self._shape:
            message = f"images have the shape {tuple(images.shape)}, but the engine was built for {self._shape}"
            raise ValueError(message)
        with _current(self._device):
            return self._outputs_for(images)

    def _outputs_for(self, images: Tensor) -> Any:  # noqa: ANN401 - the same
        current = torch.cuda.current_stream(images.device)
        if current == torch.cuda.default_stream(images.device):
            # On the default stream TensorRT synchronizes at every call.
            self._side.wait_stream(current)
            with torch.cuda.stream(self._side):
                self._run(images, self._side)
            current.wait_stream(self._side)
        else:
            self._run(images, current)
        outputs = tuple(output.clone() for output in self._outputs)
        return outputs if len(outputs) > 1 else outputs[0]

    def _run(self, images: Tensor, stream: torch.cuda.Stream) -> None:
        self._context.set_tensor_address(self._input, images.data_ptr())
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise BackendError("backend 'tensorrt': an engine failed to run; use another --backend")


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Make a GPU current, because TensorRT builds, loads and runs engines on the current GPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _deserialize(blob: bytes, tensorrt: Library) -> Any:  # noqa: ANN401 - the vendor's own type
    tensorrt.logger.errors[:] = []
    runtime = create(tensorrt.api.Runtime, tensorrt)
    engine = runtime.deserialize_cuda_engine(blob)
    if engine is None:
        why = tensorrt.logger.errors[0][:200] if tensorrt.logger.errors else "no error message"
        raise BackendError(
            f"backend 'tensorrt': {tensorrt.name} {tensorrt.version} cannot load the engine on this machine ({why}); "
            "use another --backend"
        )
    return engine


def _dtype(api: Any, data_type: Any) -> torch.dtype:  # noqa: ANN401 - the vendor's own types
    for name, dtype in _DTYPES.items():
        if data_type == getattr(api.DataType, name, None):
            return dtype
    raise BackendError(
        f"backend 'tensorrt': the engine has an output of type {data_type}, which torch does not support; use another "
        "--backend"
    )
