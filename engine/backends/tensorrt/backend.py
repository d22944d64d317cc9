"""TensorRT: the explained network as one engine for NVIDIA GPUs, in the types the module has: fp16, softmax in float32.

Two routes behind one interface. The direct one (ONNX graph, own engine) copies nothing between torch and the engine
and is captured by a CUDA graph as it is; torch-tensorrt's takes networks that ONNX cannot say. Engines are kept on
disk under a key that names all they depend on, and each is for one batch size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor, nn

from engine.backends.registry import Compiled, first_line
from engine.backends.tensorrt import dynamo, library, onnx
from engine.runtime.compile_cache import CompileCache, key_of
from engine.runtime.devices import gpu_status
from pipeline.errors import BackendError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Route:
    """One way from a module to an engine and back to a callable."""

    lacking: Callable[[], str]
    """Which package it needs that is not here, or ""."""
    build: Callable[[nn.Module, Tensor], bytes]
    load: Callable[[bytes, Tensor], Compiled]


ROUTES: Final = MappingProxyType(
    {
        "onnx": Route(onnx.lacking, onnx.build, onnx.Program),
        "dynamo": Route(dynamo.lacking, dynamo.build, dynamo.load),
    }
)
"""The routes by name, the preferred first."""


def missing(device: str) -> str:
    """Return why TensorRT cannot run here, or ""."""
    if device != "cuda":
        return f"it runs on NVIDIA GPUs, not on {device}: use --device cuda where there is one, or another --backend"
    if not library.installed():
        return f"no TensorRT is installed: {library.HINT}"
    lacking = [route.lacking() for route in ROUTES.values()]
    return "" if not all(lacking) else f"a package is missing: {lacking[0]}"


def compile(  # noqa: A001 - the protocol's name
    module: nn.Module, example: Tensor, precision: str, cache: CompileCache | None = None
) -> Compiled:
    """Return the compiled module, for the example's shape alone, by the first route that can.

    Raises:
        BackendError: no route can.
    """
    refused = []
    for name, route in ROUTES.items():
        if objection := route.lacking():
            refused.append(f"by {name}: {objection}")
            continue
        try:
            return compile_by(name, module, example, precision, cache)
        except BackendError as reason:
            log.info("TensorRT by way of %s: %s", name, reason)
            refused.append(f"by {name}: {first_line(reason)}")
    raise BackendError(f"backend 'tensorrt': {'; '.join(refused)}; use --backend inductor or eager")


def compile_by(
    name: str, module: nn.Module, example: Tensor, precision: str, cache: CompileCache | None = None
) -> Compiled:
    """Return the module compiled by one route: taken from the cache where that holds it and it still loads.

    Raises:
        BackendError: it cannot be built, or not be run here.
    """
    route = ROUTES[name]
    key: dict[str, str] = {}
    if cache is not None:
        key = key_of(module, example, route=name, precision=precision, backend=_library_told(name), **_gpu(example))
        payload = cache.get(key)
        if payload is not None:
            try:
                return route.load(payload, example)
            except BackendError as reason:
                log.warning("an engine of an earlier run does not load (%s); it is built anew", first_line(reason))
    payload = route.build(module, example)
    compiled = route.load(payload, example)
    if cache is not None:
        cache.put(key, payload)
    return compiled


def _library_told(route: str) -> str:
    """Name what compiles, with its version."""
    from importlib.metadata import PackageNotFoundError, version

    here = library.library()
    told = f"{here.name} {here.version}"
    for package in ("torch-tensorrt", "torch-tensorrt-rtx") if route == "dynamo" else ("onnx", "onnxscript"):
        try:
            told += f", {package} {version(package)}"
        except PackageNotFoundError:
            continue
    return told


def _gpu(example: Tensor) -> dict[str, str]:
    """Name the GPU an engine is for, and its driver."""
    if not example.is_cuda:
        return {"gpu": "none"}
    properties = torch.cuda.get_device_properties(example.device)
    gpu = gpu_status(example.device)
    return {
        "gpu": f"{properties.name}, {properties.major}.{properties.minor}, {properties.multi_processor_count}",
        "driver": "unknown" if gpu is None else gpu.driver,
        "cuda": str(torch.version.cuda),
    }
