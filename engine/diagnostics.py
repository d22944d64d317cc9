"""Diagnostics of the engine for ``run.py doctor``: devices, precisions, backends, packages."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from engine.backends.registry import BACKENDS
from engine.backends.tensorrt.library import HINT, installed
from engine.runtime.devices import gpu_status
from pipeline.diagnostics import Diagnostic

_PACKAGES = ("torch", "torchvision", "timm", "torch-tensorrt", "onnxscript", "onnxruntime", "grad-cam")


def diagnostics() -> list[Diagnostic]:
    """Return the diagnostics of the processor, GPUs, backends and packages."""
    results = [_processor(), _gpu()]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, entry in BACKENDS.items():
        missing = entry.load().missing(device)
        results.append(
            Diagnostic(f"backend {name}", not missing, missing.partition(":")[0] or entry.description, missing)
        )
    results.extend(_package(name) for name in _PACKAGES)
    results.append(_tensorrt())
    return results


def _processor() -> Diagnostic:
    bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001 - torch has no public function for this
    details = [
        f"{os.cpu_count()} cores, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        f"torch uses {torch.get_num_threads()} threads",
        "bf16 in hardware" if bf16 else "no bf16 in hardware: --precision fp32 is the fastest",
    ]
    return Diagnostic("processor", present=True, detail="; ".join(details))


def _gpu() -> Diagnostic:
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        hint = "not needed; with an NVIDIA GPU, install its driver"
        return Diagnostic("GPU", present=False, detail=f"none (torch is {built})", hint=hint)
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties, gpu = torch.cuda.get_device_properties(index), gpu_status(torch.device("cuda", index))
        memory = f"{properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
        gpus.append(f"cuda:{index}: {properties.name}, {memory}" if gpu is None else f"cuda:{index}: {gpu}, {memory}")
    return Diagnostic("GPU", present=True, detail="; ".join(gpus))


def _tensorrt() -> Diagnostic:
    """Check which TensorRT package is installed, without the slow import, which needs a GPU."""
    package = installed()
    if not package:
        hint = f"only for TensorRT on a GPU: {HINT}"
        return Diagnostic("tensorrt", present=False, detail="not installed", hint=hint)
    return Diagnostic("tensorrt", present=True, detail=package)


def _package(name: str) -> Diagnostic:
    try:
        return Diagnostic(name, present=True, detail=version(name))
    except PackageNotFoundError:
        hints = {
            "timm": "only for timm's models: uv sync --inexact --extra timm",
            "onnxscript": "only for run.py export to .onnx: uv sync --inexact --extra export",
            "onnxruntime": "only to check ONNX files against a second runtime: pip install onnxruntime",
            "grad-cam": "only for run.py evaluate --method grad-cam and others: uv sync --inexact --extra evaluate",
            "torch-tensorrt": "only for TensorRT on a GPU: uv sync --inexact --extra tensorrt",
        }
        return Diagnostic(name, present=False, detail="not installed", hint=hints.get(name, "uv sync"))
