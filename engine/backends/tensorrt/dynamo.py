"""The ``dynamo`` route: torch-tensorrt's dynamo front end, for networks that ONNX cannot represent."""

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
    """Return which package is missing, with the remedy; "" if none. Imports nothing."""
    if "torch_tensorrt" in sys.modules or importlib.util.find_spec("torch_tensorrt") is not None:
        return ""
    return "torch-tensorrt is missing: uv sync --inexact --extra tensorrt"


def _package() -> Any:  # noqa: ANN401 - the vendor's own module
    """Import torch-tensorrt, which takes ten seconds.

    Raises:
        BackendError: it cannot be imported, for example because there is no GPU.
    """
    try:
        return importlib.import_module("torch_tensorrt")
    except Exception as reason:  # without a GPU it raises Exception, RuntimeError or ImportError
        raise BackendError(
            f"backend 'tensorrt': torch-tensorrt cannot be loaded ({first_line(reason)}); use another --backend"
        ) from reason


def build(module: nn.Module, example: Tensor) -> bytes:
    """Return the compiled module for the example's shape and dtype, as bytes for ``load``.

    The engine has the module's own precision, because some versions ignore the argument that lowers it.

    Raises:
        BackendError: torch-tensorrt cannot be imported, or cannot compile the whole module.
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
    except Exception as reason:  # torch-tensorrt has many kinds of exceptions
        raise BackendError(
            f"backend 'tensorrt': torch-tensorrt cannot compile this network ({first_line(reason)}); use another "
            "--backend"
        ) from reason


def load(payload: bytes, example: Tensor) -> Compiled:
    """Return the compiled module of ``build``; it runs on its own CUDA stream.

    Raises:
        BackendError: the bytes cannot be loaded on this machine.
    """
    vendor = _package()
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "module.ep"
            path.write_bytes(payload)
            module = vendor.load(str(path)).module()
    except Exception as reason:  # torch and torch-tensorrt have many kinds of exceptions
        raise BackendError(
            f"backend 'tensorrt': a module saved by torch-tensorrt is not readable ({first_line(reason)}); use "
            "another --backend"
        ) from (reason)

    def run(images: Tensor) -> Any:  # noqa: ANN401 - one tensor or several, as the module
        return module(images.to(example.dtype).contiguous())

    with torch.inference_mode():
        run(example)
    return run
