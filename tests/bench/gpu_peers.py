"""Measures comparable packages on the same device in the same run, and the definition as one dense batch."""

from __future__ import annotations

import copy
import importlib.util
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from engine.backends.registry import first_line
from engine.methods.recipro import Target
from engine.runtime.runner import CompileConfig, Runner
from engine.split.network import split_network
from tests.bench.gpu_clock import Settings, captured, rotated, timed
from tests.bench.gpu_cost import network
from tests.bench.peers import Ask, grad_cam, torch_cam

PACKAGES = {"grad-cam, Grad-CAM": "pytorch_grad_cam", "torch-cam, Grad-CAM": "torchcam"}


def measure(settings: Settings) -> Iterator[dict[str, object]]:
    """Give one record for each way to explain one image, and each batch of 64 where it can."""
    name = "squeezenet1_1" if settings.small else "resnet50"
    net, size = network(name)
    split = split_network(copy.deepcopy(net), None, size)
    layer = split.layer
    net = net.to(settings.device).to(memory_format=torch.channels_last).eval()
    for batch in (1,) if settings.small else (1, 64):
        images = [record.float() for record in rotated((batch, 3, *size), settings, 2)]
        for way, call in _ways(net, layer, split, settings, batch, images[0]):
            case = {"model": name, "layer": layer, "batch": batch, "way": way}
            if isinstance(call, str):
                yield {**case, "skipped": call}
                continue
            try:
                yield {**case, **_timed(call, images, settings, with_gradients=way in PACKAGES)}
            except Exception as reason:  # noqa: BLE001 - one peer must not cost the others
                yield {**case, "error": f"{type(reason).__name__}: {first_line(reason)}"}


def _ways(net, layer, split, ways, batch, example) -> Iterator[tuple[str, Ask | str]]:
    build = CompileConfig(Target(), "point", "eager", ways.precision, ways.device, 1 << 30)
    runner = Runner(split, build)

    def ours(images: Tensor) -> object:
        return runner(images.to(build.dtype))

    yield "recipro-stream, eager", ours
    try:
        yield "recipro-stream, graph", captured(ours, example, ways)
    except RuntimeError as reason:
        yield "recipro-stream, graph", first_line(reason)
    yield "the definition, one dense batch", _definition(split, ways)
    for way, package in PACKAGES.items():
        if importlib.util.find_spec(package) is None:
            yield way, f"{package} is not here"
        elif batch > 1 and package == "torchcam":
            yield way, "one image at a time"
        else:
            try:
                call = grad_cam(net, layer) if package == "pytorch_grad_cam" else torch_cam(net, layer)
            except Exception as reason:  # noqa: BLE001 - a peer that does not load must not cost the other
                yield way, f"{package} does not load: {first_line(reason)}"
            else:
                yield way, call


def _definition(split, settings: Settings) -> Ask:
    """Return Recipro-CAM as it is written: every masked map of an image through the tail at once."""
    head, tail = (copy.deepcopy(part).to(settings.device, settings.dtype) for part in (split.head, split.tail))

    def call(images: Tensor) -> object:
        features = head(images.to(settings.dtype))
        rows, columns = features.shape[2:]
        masks = torch.eye(rows * columns, device=features.device, dtype=features.dtype).view(-1, 1, rows, columns)
        scores = torch.softmax(tail(features).float(), 1)
        all_values = [torch.softmax(tail(feature[None] * masks).float(), 1) for feature in features]
        return scores, torch.stack(all_values).gather(2, scores.argmax(1)[:, None, None].expand(-1, rows * columns, 1))

    return call


def _timed(call: Ask, images: list[Tensor], settings: Settings, *, with_gradients: bool) -> dict[str, object]:
    if not with_gradients:
        return dict(
            timed({"explained": lambda k: call(images[k % len(images)])}, settings, len(images[0]))["explained"]
        )
    durations = []
    for number in range(4 if settings.small else 33):
        # Peers hand back host arrays: the clock is the host's.
        started_at = time.perf_counter()
        call(images[number % len(images)])
        if settings.device.type == "cuda":
            torch.cuda.synchronize(settings.device)
        durations.append(time.perf_counter() - started_at)
    from tests.bench.figures import quantiles

    times = quantiles(durations[3:])
    return {
        **times,
        "images_per_second": round(1e3 * len(images[0]) / times["p50_ms"], 1),
        "rounds": len(durations) - 3,
    }
