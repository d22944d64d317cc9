"""The other route: torch-tensorrt's dynamo front end, for networks that ONNX cannot say."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.backends.registry import Compiled, first_line
from pipeline.errors import BackendError


def lacking() -> str:
    """Return which package the route needs that is not here, or ""; imports nothing."""
    if "torch_tensorrt" in sys.modules or importlib.util.find_spec("torch_tensorrt") is not None:
        return ""
    return "torch-tensorrt is missing: uv sync --extra tensorrt"


def _package() -> Any:  # noqa: ANN401 - the vendor's own module
    """Import torch-tensorrt: it raises what it likes where there is no GPU, and takes ten seconds."""
    try:
        return importlib.import_module("torch_tensorrt")
    except Exception as reason:  # Exception itself, RuntimeError, ImportError: all were seen
        raise BackendError(f"backend 'tensorrt': torch-tensorrt cannot be loaded ({first_line(reason)})") from reason


def build(module: nn.Module, example: Tensor) -> bytes:
    """Return the compiled module as bytes that ``load`` reads, for the example's shape and dtype.

    Half precision is the module's own: the keyword that once lowered it is ignored by some versions.

    Raises:
        BackendError: torch-tensorrt is not here, or does not compile the whole module.
    """
    vendor = _package()
    example = example.contiguous()
    exact = all(parameter.dtype == torch.float32 for parameter in module.parameters())
    try:
        compiled = vendor.compile(
            module.eval(), ir="dynamo", arg_inputs=[example], min_block_size=1, require_full_compilation=True,
            disable_tf32=exact,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "module.ep"
            vendor.save(compiled, str(path), output_format="exported_program", arg_inputs=[example])
            return path.read_bytes()
    except Exception as reason:  # it raises whatever its many stages raise
        raise BackendError(
            f"backend 'tensorrt': torch-tensorrt does not compile this ({first_line(reason)})"
        ) from reason


def load(payload: bytes, example: Tensor) -> Compiled:
    """Return the callable that ``build`` made; it runs on a stream of its own beside torch's current one.

    Raises:
        BackendError: it cannot be read here.
    """
    vendor = _package()
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "module.ep"
            path.write_bytes(payload)
            module = vendor.load(str(path)).module()
    except Exception as reason:  # torch and the vendor raise whatever their many stages raise
        raise BackendError(
            f"backend 'tensorrt': what torch-tensorrt saved is not readable ({first_line(reason)})"
        ) from (reason)

    def run(images: Tensor) -> Any:  # noqa: ANN401 - one tensor or several, as the module
        return module(images.to(example.dtype).contiguous())

    with torch.inference_mode():
        run(example)
    return run
