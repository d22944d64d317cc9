"""Measures the cost of an explained image on a GPU: models, backends, batches; last and inner layers."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from engine.backends.registry import BACKENDS, first_line
from engine.methods.dense import DensePlan
from engine.methods.recipro import ExplainedNetwork, Target
from engine.models.loader import build_untrained
from engine.models.registry import MODELS
from engine.runtime.runner import CompileConfig, Runner
from engine.split.network import split_network
from tests.bench.explain_cost import traced_plain
from tests.bench.gpu_clock import Settings, captured, rotated, timed
from tests.engine.reference import lively

NETWORKS = ("resnet50", "resnet18", "mobilenet_v3_large", "efficientnet_b0", "convnext_tiny")
BATCHES = (1, 64, 8, 256)
CEILING = {
    "resnet18": 218e3,
    "resnet50": 97e3,
    "mobilenet_v3_large": 239e3,
    "efficientnet_b0": 157e3,
    "convnext_tiny": 78e3,
}
"""Images a second that the card's measured ceilings of arithmetic and memory allow, fp16, 224x224."""
SLACK = 5e-2
"""Maximal difference of softmax scores between both ways: more means different networks."""


def cases(settings: Settings, *, late: bool = False) -> list[tuple[str, str]]:
    """Return (network, backend) in order of importance; ``late``: those that compile for long, or matter less."""
    if settings.small:
        return [] if late else [("squeezenet1_1", "eager")]
    others = ("resnet18", "mobilenet_v3_large", "efficientnet_b0", "convnext_tiny")
    if late:
        return [*((name, "tensorrt") for name in others), ("resnet50", "inductor")]
    return [("resnet50", "eager"), ("resnet50", "tensorrt"), *((name, "eager") for name in others)]


def network(name: str) -> tuple[Any, tuple[int, int]]:
    """Return an untrained network and its input size: the cost does not depend on weights.

    It is given something to say: where all classes score alike, no two precisions agree on the first.
    """
    torch.manual_seed(0)
    size = MODELS[name].input_size if name != "squeezenet1_1" else (64, 64)
    return lively(build_untrained(MODELS[name]), size), size


def measure(settings: Settings, deadline: float, *, late: bool = False) -> Iterator[dict[str, object]]:
    """Give one record for each network, backend and batch, for as long as the time lasts."""
    for name, backend in cases(settings, late=late):
        case: dict[str, object] = {"model": name, "backend": backend, "precision": settings.precision}
        if time.monotonic() > deadline:
            yield {**case, "skipped": "out of time"}
            continue
        if lacking := settings.lacking(backend):
            yield {**case, "skipped": lacking}
            continue
        try:
            yield from _batches(name, backend, settings, deadline)
        except Exception as reason:  # noqa: BLE001 - one case must not cost the others
            yield {**case, "error": f"{type(reason).__name__}: {first_line(reason)}"}


def _batches(name: str, backend: str, settings: Settings, deadline: float) -> Iterator[dict[str, object]]:
    net, size = network(name)
    split = split_network(net, MODELS[name].layer, size)
    batches = (1, 2) if settings.small else BATCHES if backend == "eager" or name == "resnet50" else BATCHES[:2]
    if backend == "inductor":
        batches = BATCHES[:2]
    placed = traced_plain(copy.deepcopy(net)).to(settings.device).to(memory_format=torch.channels_last).eval()
    placed.net.to(settings.dtype)
    started_at = time.perf_counter()
    build = CompileConfig(
        Target(),
        "point",
        backend,
        settings.precision,
        settings.device,
        1 << 30,
        settings.cache,
        batch_sizes=tuple(batches),
    )
    runner = Runner(split, build)
    about = {"build_seconds": round(time.perf_counter() - started_at, 1), "plan": runner.plan.info.name}
    for batch in batches:
        case = {
            "model": name,
            "backend": backend,
            "precision": settings.precision,
            "batch": batch,
            "layer": split.layer,
        }
        if time.monotonic() > deadline:
            yield {**case, "skipped": "out of time"}
            continue
        inputs = rotated((batch, 3, *size), settings)
        with torch.inference_mode():
            plain = BACKENDS[backend].load().compile(placed, inputs[0], settings.precision, settings.cache)
            apart = float((plain(inputs[0]) - runner(inputs[0])[0]).abs().max())
        if not apart <= SLACK:
            yield {**case, "error": f"scores of the two ways differ by {apart:.3g}: not the same network"}
            continue
        case |= about
        ways: list[tuple[str, Callable[[Tensor], object], Callable[[Tensor], object]]] = [(backend, plain, runner)]
        ways.append((f"{backend}, graph", captured(plain, inputs[0], settings), captured(runner, inputs[0], settings)))
        for way, plainly, explained in ways:
            yield {**case, "way": way, **pair(plainly, explained, inputs, settings), **_against_ceiling(name)}


def pair(
    plain: Callable[[Tensor], object], explained: Callable[[Tensor], object], inputs: list[Tensor], settings: Settings
) -> dict[str, object]:
    """Time the two in turn."""
    calls = {
        "plain": lambda k: plain(inputs[k % len(inputs)]),
        "explained": lambda k: explained(inputs[k % len(inputs)]),
    }
    times = timed(calls, settings, len(inputs[0]))
    ratio = times["explained"]["p50_ms"] / max(times["plain"]["p50_ms"], 1e-9)
    rates = times["plain"]["images_per_second"] / max(times["explained"]["images_per_second"], 1e-9)
    return {**times, "ratio_of_medians": round(ratio, 4), "ratio_of_rates": round(rates, 4)}


def _against_ceiling(name: str) -> dict[str, object]:
    return {"ceiling_images_per_second": CEILING[name]} if name in CEILING else {}


def inner_layer(settings: Settings) -> Iterator[dict[str, object]]:
    """Give the cost of an inner layer by each plan it has, call by call and as a graph, and which one is chosen."""
    name, layer = ("squeezenet1_1", "features.9") if settings.small else ("resnet50", "layer3")
    net, size = network(name)
    split = split_network(net, layer, size)
    build = CompileConfig(
        Target(), "point", "eager", settings.precision, settings.device, (1 << 28) if settings.small else (8 << 30)
    )
    runner = Runner(split, build)
    counted = next(iter(split.plans.values()))
    plans = [counted] if counted.info.name == "local" else []
    plans.append(DensePlan(split.tail, "point", "asked for", build.budget_bytes))
    head = copy.deepcopy(split.head).to(settings.device, settings.dtype).to(memory_format=torch.channels_last)
    case = {"model": name, "layer": layer, "grid": list(split.grid), "chosen": runner.plan.info.name}
    case["why"] = runner.plan.info.reason
    for plan in plans:
        placed = copy.deepcopy(plan).to(settings.device).to(memory_format=torch.channels_last).to(settings.dtype)
        network_of = ExplainedNetwork(head, placed, Target(), split.grid)
        for batch in (1,) if settings.small else (1, 8):
            inputs = rotated((batch, 3, *size), settings)
            for way in ("", ", graph"):
                about = {**case, "batch": batch, "way": f"{plan.info.name}{way}"}
                try:
                    call = captured(network_of, inputs[0], settings) if way else network_of
                    yield {
                        **about,
                        **timed({"explained": lambda k, c=call, i=inputs: c(i[k % len(i)])}, settings, batch),
                    }
                except Exception as reason:  # noqa: BLE001 - one way must not cost the others
                    yield {**about, "error": f"{type(reason).__name__}: {first_line(reason)}"}
