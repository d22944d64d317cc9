"""Measures the difference of heat maps from the definition, at inner layers of common networks.

    uv run python -m tests.bench.exactness --sizes 96x128 224x224 250x190 --cells 64

For every network, layer, size and kernel: the plan that is chosen by itself explains the whole grid; the definition
(masked maps through the tail) is asked at the corners, the edges and at cells drawn at random. Heat is the softmax
score of the top class, min-max normalised over the whole grid. One JSON line per case, and the worst at the end.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import torch
from torch import nn
from torchvision import models

from engine.methods.kernels import Kernel
from engine.methods.plan import probe_cells, reference_scores
from engine.methods.recipro import choose_plan
from engine.split.network import split_network
from tests.bench.figures import environment, print_line

CUTS = {
    "resnet18": ("layer1", "layer2", "layer3", "layer4"),
    "resnet50": ("layer2", "layer3", "layer4.0", "layer4.1"),
    "densenet121": ("features.transition2", "features.transition3"),
    "mobilenet_v2": ("features.6", "features.13", "features.16"),
    "mobilenet_v3_large": ("features.6", "features.10", "features.15"),
    "regnet_x_400mf": ("trunk_output.block2", "trunk_output.block3"),
    "regnet_y_400mf": ("trunk_output.block2", "trunk_output.block3"),
    "vgg16": ("features.16", "features.23", "features.30"),
    "shufflenet_v2_x1_0": ("stage2", "stage3", "stage4"),
    "googlenet": ("inception4e",),
    "efficientnet_b0": ("features.4", "features.6"),
    "convnext_tiny": ("features.5",),
}
"""Layers by network, as they are called in it."""
KERNELS: tuple[Kernel, ...] = ("point", "gaussian")


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison."""

    name: str
    layer: str
    size: tuple[int, int]
    kernel: Kernel
    cells: int


def network(name: str) -> nn.Module:
    """Return an untrained network of 100 classes whose scores differ between images."""
    torch.manual_seed(0)
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    net: nn.Module = models.get_model(name, weights=None, num_classes=100, **options)
    net.train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        net(torch.randn(8, 3, 96, 96))
        net.eval()
        # Scores as far apart as a trained network's; with equal scores, softmax would be constant.
        scores = net(torch.randn(4, 3, 96, 96))
        last = [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
        last.weight *= 3.0 / float((scores - scores.mean(1, keepdim=True)).std())
    return net


def measure(net: nn.Module, case: Case) -> dict[str, object]:
    """Compare one case."""
    split = split_network(net, case.layer, case.size)
    torch.manual_seed(1)
    with torch.inference_mode():
        features = split.head(torch.randn(1, 3, *case.size)).clone()
        plan = choose_plan(split.tail, features, case.kernel)
        started_at = time.perf_counter()
        scores, cell_logits = plan(features)
        seconds = time.perf_counter() - started_at
        best = int(scores.argmax())
        reference = torch.softmax(cell_logits.float(), 2)[0, :, best]
        drawn = torch.randperm(len(reference))[: case.cells]
        cells = torch.cat((probe_cells(split.grid)[: case.cells // 2], drawn)).unique()
        parts = [reference_scores(split.tail, features, case.kernel, some) for some in cells.split(8)]
        true = torch.softmax(torch.cat(parts, 1).float(), 2)[0, :, best]
        plain = torch.softmax(split.tail(features).float(), 1)
    span = float(reference.max() - reference.min())
    return {
        "bench": "exactness", "model": case.name, "layer": case.layer, "size": list(case.size),
        "kernel": case.kernel, "grid": list(split.grid), "plan": plan.info.name, "cells_checked": len(cells),
        "heat_error": float((reference[cells] - true).abs().max()) / span if span else float("nan"),
        "score_error": float((torch.softmax(scores.float(), 1) - plain).abs().max()), "score_span": span,
        "seconds": round(seconds, 3),
    }  # fmt: skip


def main() -> None:
    """Compare what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(CUTS))
    parser.add_argument("--sizes", nargs="+", default=["96x128", "224x224", "250x190"])
    parser.add_argument("--cells", type=int, default=64)
    arguments = parser.parse_args()
    worst: dict[str, object] = {"heat_error": -1.0}
    count = 0
    for name in arguments.models:
        net = network(name)
        for layer in CUTS[name]:
            for size in arguments.sizes:
                height, width = (int(side) for side in size.split("x"))
                for kernel in KERNELS:
                    line = measure(net, Case(name, layer, (height, width), kernel, arguments.cells))
                    print_line(**line)
                    count += 1
                    worst = max(worst, line, key=lambda line: float(str(line["heat_error"])))
    print_line(bench="exactness", cases=count, worst=worst, **environment())


if __name__ == "__main__":
    main()
