"""Compares an explained frame with comparable packages: grad-cam, torchcam and openvino-xai.

    uv run --group bench python -m tests.bench.peers --rounds 30

The same ResNet-50, images and threads for all, interleaved. Each peer answers in its own form (grad-cam and torchcam
enlarge theirs or not, as they always do; openvino-xai explains all classes at once, in uint8, by their logits instead
of their softmax scores); ours gives scores, class and float32 heat. openvino-xai names a module that OpenVINO has
removed since: the name is lent to it. One JSON line.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.util
import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.backends.registry import BACKENDS
from engine.methods.recipro import Target, plan_for
from engine.models.loader import build_untrained
from engine.models.registry import MODELS
from engine.runtime.runner import CompileConfig, Runner
from engine.runtime.signal_stack import preserve_signal_stack
from engine.split.network import split_network
from tests.bench.explain_cost import traced_plain
from tests.bench.figures import environment, interleaved, print_line, quantiles

PEERS = ("pytorch_grad_cam", "torchcam", "openvino_xai")
Ask = Callable[[Tensor], Any]


def ours(net: nn.Module, layer: str, backend: str, precision: str) -> Ask:
    """Return our explained network on one backend."""
    split = split_network(net, layer, (224, 224))
    runner = Runner(split, CompileConfig(Target(), "point", backend, precision, torch.device("cpu"), 1 << 30))
    return lambda images: runner(images.to(runner.config.dtype))


def grad_cam(net: nn.Module, layer: str) -> Ask:
    """Return pytorch-grad-cam's Grad-CAM."""
    cams = importlib.import_module("pytorch_grad_cam")
    cam = cams.GradCAM(model=net, target_layers=[net.get_submodule(layer)])
    return lambda images: cam(input_tensor=images, targets=None)


def torch_cam(net: nn.Module, layer: str) -> Ask:
    """Return torch-cam's Grad-CAM."""
    cam = importlib.import_module("torchcam.methods").GradCAM(net, target_layer=layer)

    def explain(images: Tensor) -> Any:
        with torch.enable_grad():
            scores = net(images.clone().requires_grad_())
            return scores.detach(), cam(int(scores[0].argmax()), scores)

    return explain


def openvino_xai(net: nn.Module) -> Ask:
    """Return openvino-xai's Recipro-CAM inside the network's graph, on the OpenVINO that is here."""
    import openvino

    openvino.runtime = openvino
    sys.modules["openvino.runtime"] = openvino
    for part in ("opset13", "opset14", "op", "utils", "passes"):
        sys.modules[f"openvino.runtime.{part}"] = importlib.import_module(f"openvino.{part}")
    xai = importlib.import_module("openvino_xai")
    method = importlib.import_module("openvino_xai.common.parameters").Method.RECIPROCAM
    plain = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
    model = openvino.convert_model(torch.export.export(plain, (torch.zeros(1, 3, 224, 224),)))
    model.reshape([1, 3, 224, 224])
    model = xai.insert_xai(model, task=xai.Task.CLASSIFICATION, explain_method=method)
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    with preserve_signal_stack():
        request = openvino.Core().compile_model(model, "CPU", hints).create_infer_request()
    return lambda images: request.infer([images.contiguous().numpy()])


def cases(net: nn.Module, layer: str | None) -> dict[str, Ask]:
    """Return every method by its name in the table."""
    layer = split_network(net, layer, (224, 224)).layer
    example = torch.zeros(1, 3, 224, 224).contiguous(memory_format=torch.channels_last)

    def plain(backend: str, precision: str = "fp32") -> Ask:
        compiled = BACKENDS[backend].load().compile(traced_plain(net), example, precision)
        return torch.inference_mode()(compiled)

    return {
        "plain, eager": plain("eager"),
        "plain, openvino": plain("openvino"),
        "plain, openvino bf16": plain("openvino", "bf16"),
        "recipro-stream, openvino bf16": ours(net, layer, "openvino", "bf16"),
        "recipro-stream, openvino": ours(net, layer, "openvino", "fp32"),
        "recipro-stream, eager": ours(net, layer, "eager", "fp32"),
        "openvino-xai, Recipro-CAM in the graph": openvino_xai(net),
        "torch-cam, Grad-CAM": torch_cam(net, layer),
        "grad-cam, Grad-CAM": grad_cam(net, layer),
    }


def measure(name: str, rounds: int) -> dict[str, object]:
    """Time all cases in turn."""
    images = [torch.randn(1, 3, 224, 224).contiguous(memory_format=torch.channels_last) for _ in range(8)]
    torch.manual_seed(0)
    net = build_untrained(MODELS[name]).to(memory_format=torch.channels_last)
    methods = cases(net, MODELS[name].layer)
    _check(methods, images[0], net)

    calls = {way: _turning(method, images) for way, method in methods.items()}
    seconds = interleaved(calls, rounds)
    times = {way: quantiles(durations) for way, durations in seconds.items()}
    return {
        "bench": "peers", "model": name, "threads": torch.get_num_threads(), "rounds": rounds, "times": times,
        "frames_per_second": {way: round(1e3 / result["p50_ms"], 1) for way, result in times.items()},
    }  # fmt: skip


def _turning(method: Ask, images: list[Tensor]) -> Callable[[int], object]:
    return lambda k: method(images[k % len(images)])


def _check(methods: dict[str, Ask], images: Tensor, net: nn.Module) -> None:
    """Check that all methods explain the same network and the same cells."""
    scores = methods["plain, eager"](images)[0]
    outputs = methods["recipro-stream, openvino"](images)
    best = int(outputs[1][0, 0])
    if int(scores.argmax()) != best or not np.isfinite(outputs[2].numpy()).all():
        message = "ours explains another class than the plain network's best"
        raise RuntimeError(message)
    split = split_network(net, None, (224, 224))
    with torch.inference_mode():
        features = split.head(images)
        logits = plan_for(split, features, "point")(features)[1][0, :, best]
    expected = (logits - logits.min()) / (logits.max() - logits.min())
    theirs = methods["openvino-xai, Recipro-CAM in the graph"](images)
    saliency = next(value for key, value in theirs.items() if "saliency_map" in key.get_names())
    apart = float(np.abs(saliency[0, best].flatten().astype(np.float32) / 255.0 - expected.numpy()).max())
    if apart > 0.02:
        message = f"openvino-xai's map of logits differs from ours by {apart:.3f}"
        raise RuntimeError(message)


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if lacking := [peer for peer in PEERS if importlib.util.find_spec(peer) is None]:
        sys.exit(f"peers are missing ({', '.join(lacking)}): uv run --group bench python -m tests.bench.peers")
    torch.set_num_threads(arguments.threads)
    print_line(**measure(arguments.model, arguments.rounds), **environment())


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    main()
