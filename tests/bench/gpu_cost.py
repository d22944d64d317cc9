"""What an explained image costs on a GPU beside the plain one: models, backends, batches; last and inner layers."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from engine.backends.table import BACKENDS, first_line
from engine.build import Build, Runner
from engine.methods.dense import DensePlan
from engine.methods.recipro import ExplainedNetwork, Target
from engine.models import MODELS
from engine.networks import build_untrained
from engine.split import split_network
from tests.bench.explain_cost import Plain
from tests.bench.gpu_clock import Settings, captured, rotated, timed

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
"""How far softmax scores of the two ways may be apart: else they are not the same network."""


def cases(told: Settings) -> list[tuple[str, str]]:
    """Return (network, backend) in order of importance: what comes late may fall to the budget."""
    if told.small:
        return [("squeezenet1_1", "eager")]
    first = [("resnet50", "eager"), ("resnet50", "tensorrt"), ("resnet18", "eager"), ("mobilenet_v3_large", "eager")]
    rest = [("efficientnet_b0", "eager"), ("convnext_tiny", "eager"), ("resnet18", "tensorrt")]
    late = [("mobilenet_v3_large", "tensorrt"), ("efficientnet_b0", "tensorrt"), ("convnext_tiny", "tensorrt")]
    return [*first, *rest, ("resnet50", "inductor"), *late]


def network(name: str) -> tuple[Any, tuple[int, int]]:
    """Return an untrained network and its input size: the cost does not depend on weights."""
    torch.manual_seed(0)
    return build_untrained(MODELS[name]), MODELS[name].input_size if name != "squeezenet1_1" else (64, 64)


def measure(told: Settings, until: float) -> Iterator[dict[str, object]]:
    """Give one record for each network, backend and batch, for as long as the time lasts."""
    for name, backend in cases(told):
        case: dict[str, object] = {"model": name, "backend": backend, "precision": told.precision}
        if time.monotonic() > until:
            yield {**case, "skipped": "out of time"}
            continue
        if lacking := BACKENDS[backend].load().missing(told.device.type):
            yield {**case, "skipped": lacking}
            continue
        try:
            yield from _batches(name, backend, told, until)
        except Exception as reason:  # noqa: BLE001 - one case must not cost the others
            yield {**case, "error": f"{type(reason).__name__}: {first_line(reason)}"}


def _batches(name: str, backend: str, told: Settings, until: float) -> Iterator[dict[str, object]]:
    net, size = network(name)
    split = split_network(net, MODELS[name].layer, size)
    batches = (1, 2) if told.small else BATCHES if backend == "eager" or name == "resnet50" else BATCHES[:2]
    if backend == "inductor":
        batches = BATCHES[:2]
    placed = Plain(copy.deepcopy(net)).to(told.device).to(memory_format=torch.channels_last).eval()
    placed.net.to(told.dtype)
    begun = time.perf_counter()
    build = Build(Target(), "point", backend, told.precision, told.device, 1 << 30, told.cache, buckets=tuple(batches))
    runner = Runner(split, build)
    about = {"build_seconds": round(time.perf_counter() - begun, 1), "plan": runner.plan.facts.name}
    for batch in batches:
        case = {"model": name, "backend": backend, "precision": told.precision, "batch": batch, "layer": split.layer}
        if time.monotonic() > until:
            yield {**case, "skipped": "out of time"}
            continue
        inputs = rotated((batch, 3, *size), told)
        with torch.inference_mode():
            plain = BACKENDS[backend].load().compile(placed, inputs[0], told.precision, told.cache)
            apart = float((plain(inputs[0]) - runner(inputs[0])[0]).abs().max())
        if not apart <= SLACK:
            yield {**case, "error": f"scores of the two ways differ by {apart:.3g}: not the same network"}
            continue
        case |= about
        ways: list[tuple[str, Callable[[Tensor], object], Callable[[Tensor], object]]] = [(backend, plain, runner)]
        ways.append((f"{backend}, graph", captured(plain, inputs[0], told), captured(runner, inputs[0], told)))
        for way, plainly, explained in ways:
            yield {**case, "way": way, **pair(plainly, explained, inputs, told), **_against_ceiling(name)}


def pair(
    plain: Callable[[Tensor], object], explained: Callable[[Tensor], object], inputs: list[Tensor], told: Settings
) -> dict[str, object]:
    """Time the two in turn."""
    calls = {
        "plain": lambda k: plain(inputs[k % len(inputs)]),
        "explained": lambda k: explained(inputs[k % len(inputs)]),
    }
    times = timed(calls, told, len(inputs[0]))
    ratio = times["explained"]["p50_ms"] / max(times["plain"]["p50_ms"], 1e-9)
    rates = times["plain"]["images_per_second"] / max(times["explained"]["images_per_second"], 1e-9)
    return {**times, "ratio_of_medians": round(ratio, 4), "ratio_of_rates": round(rates, 4)}


def _against_ceiling(name: str) -> dict[str, object]:
    return {"ceiling_images_per_second": CEILING[name]} if name in CEILING else {}


def inner_layer(told: Settings) -> Iterator[dict[str, object]]:
    """Give the cost of an inner layer: by the plan that is chosen, and by the definition in chunks."""
    name, layer = ("squeezenet1_1", "features.9") if told.small else ("resnet50", "layer3")
    net, size = network(name)
    split = split_network(net, layer, size)
    build = Build(Target(), "point", "eager", told.precision, told.device, (1 << 28) if told.small else (8 << 30))
    runner = Runner(split, build)
    tail = copy.deepcopy(split.tail).to(told.device, told.dtype)
    head = copy.deepcopy(split.head).to(told.device, told.dtype)
    defined = ExplainedNetwork(head, DensePlan(tail, "point", "asked for", build.budget_bytes), Target(), split.grid)
    for batch in (1,) if told.small else (1, 8):
        inputs = rotated((batch, 3, *size), told)
        case = {"model": name, "layer": layer, "grid": list(split.grid), "batch": batch, "plan": runner.plan.facts.name}
        for way, call in ((runner.plan.facts.name, runner), ("dense, forced", defined)):
            try:
                yield {
                    **case,
                    "way": way,
                    **timed({"explained": lambda k, c=call, i=inputs: c(i[k % len(i)])}, told, batch),
                }
                if told.device.type == "cuda":
                    graph = captured(call, inputs[0], told)
                    one = {"explained": lambda k, c=graph, i=inputs: c(i[k % len(i)])}
                    yield {**case, "way": f"{way}, graph", **timed(one, told, batch)}
            except Exception as reason:  # noqa: BLE001 - one way must not cost the others
                yield {**case, "way": way, "error": f"{type(reason).__name__}: {first_line(reason)}"}
