"""TensorRT: compiles the network with its explanation to one engine for NVIDIA GPUs.

There are two routes. ``onnx`` builds an engine from an ONNX graph; it copies nothing between torch and TensorRT and can
be captured by a CUDA graph. ``dynamo`` uses torch-tensorrt, for networks that ONNX cannot represent. Engines are cached
on disk; each is for one batch size.
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
    """A way to compile a module with TensorRT."""

    lacking: Callable[[], str]
    """Returns which packages are missing, with the remedy; "" if none."""
    build: Callable[[nn.Module, Tensor], bytes]
    load: Callable[[bytes, Tensor], Compiled]


ROUTES: Final = MappingProxyType(
    {
        "onnx": Route(onnx.lacking, onnx.build, onnx.Program),
        "dynamo": Route(dynamo.lacking, dynamo.build, dynamo.load),
    }
)
"""The routes by name, in order of preference."""


def missing(device: str) -> str:
    """Return why TensorRT cannot run on this machine, or ""."""
    if device != "cuda":
        return f"it runs on NVIDIA GPUs, not on {device}: use --device cuda if there is a GPU, or another --backend"
    if not library.installed():
        return f"no TensorRT is installed: {library.HINT}"
    lacking = [route.lacking() for route in ROUTES.values()]
    return lacking[0] if all(lacking) else ""


def compile(  # noqa: A001 - the protocol's name
    module: nn.Module, example: Tensor, precision: str, cache: CompileCache | None = None
) -> Compiled:
    """Return the module compiled for the example's shape by the first route that works.

    Raises:
        BackendError: no route works.
    """
    refused = []
    for name, route in ROUTES.items():
        if objection := route.lacking():
            refused.append(f"by {name}: {objection}")
            continue
        try:
            return compile_by(name, module, example, precision, cache)
        except BackendError as reason:
            log.info("TensorRT through %s: %s", name, reason)
            refused.append(f"by {name}: {first_line(reason)}")
    raise BackendError(
        f"backend 'tensorrt': cannot compile this network {'; '.join(refused)}; use --backend inductor or eager"
    )


def compile_by(
    name: str, module: nn.Module, example: Tensor, precision: str, cache: CompileCache | None = None
) -> Compiled:
    """Return the module compiled by one route, from the cache if possible.

    Raises:
        BackendError: the engine cannot be built or loaded.
    """
    route = ROUTES[name]
    key: dict[str, str] = {}
    if cache is not None:
        key = key_of(module, example, route=name, precision=precision, backend=_library_versions(name), **_gpu(example))
        payload = cache.get(key)
        if payload is not None:
            try:
                return route.load(payload, example)
            except BackendError as reason:
                log.warning("a cached engine cannot be loaded (%s); the network is compiled again", first_line(reason))
    payload = route.build(module, example)
    compiled = route.load(payload, example)
    if cache is not None:
        cache.put(key, payload)
    return compiled


def _library_versions(route: str) -> str:
    """Return the versions of the packages that a route uses, as text."""
    from importlib.metadata import PackageNotFoundError, version

    tensorrt = library.library()
    versions = f"{tensorrt.name} {tensorrt.version}"
    for package in ("torch-tensorrt", "torch-tensorrt-rtx") if route == "dynamo" else ("onnx", "onnxscript"):
        try:
            versions += f", {package} {version(package)}"
        except PackageNotFoundError:
            continue
    return versions


def _gpu(example: Tensor) -> dict[str, str]:
    """Return the properties of the GPU, its driver and CUDA, on which a cached engine depends."""
    if not example.is_cuda:
        return {"gpu": "none"}
    properties = torch.cuda.get_device_properties(example.device)
    gpu = gpu_status(example.device)
    return {
        "gpu": f"{properties.name}, {properties.major}.{properties.minor}, {properties.multi_processor_count}",
        "driver": "unknown" if gpu is None else gpu.driver,
        "cuda": str(torch.version.cuda),
    }
