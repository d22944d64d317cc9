"""Measures the cost of inner layers: ``python tests/bench/inner_layers.py [--models ... --sizes ... --rounds N
--threads T]``.

Times plan 2 (local: only what masks change) against plan 3 (dense: the definition) and prints one JSON line per case.
Both go in turn, round after round, so that a disturbance of the machine falls on both alike. Where the dense plan
would take long it is timed on a sample of cells and scaled to all of them; the line says so. Before a case is timed its
local answers are compared with the definition's on that sample.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - after the path
import torchvision  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from engine.methods.dense import DensePlan  # noqa: E402
from engine.methods.local.builder import find_local  # noqa: E402
from engine.methods.plan import probe_cells, reference_scores  # noqa: E402
from engine.split.network import split_network  # noqa: E402


def network(name: str) -> nn.Module:
    """Return a network with random weights whose batch norms have seen random images."""
    torch.manual_seed(0)
    net = torchvision.models.get_model(name, weights=None)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    net.train()
    with torch.no_grad():
        net(torch.randn(4, 3, 128, 128))
    return net.eval()


def spread(times: list[float]) -> dict[str, float]:
    """Return the median and the extremes, in seconds."""
    return {"median": round(statistics.median(times), 4), "low": round(min(times), 4), "high": round(max(times), 4)}


def error_of(heat: Tensor, true: Tensor, blank: Tensor) -> float:
    """Return the largest difference as a share of what masking changes at all."""
    return float((heat - true).abs().max() / (true - blank).abs().max())


def measure(name: str, layer: str, size: tuple[int, int], options: argparse.Namespace) -> dict[str, Any]:
    """Time one case."""
    split = split_network(network(name), layer, size)
    with torch.inference_mode():
        features = split.head(torch.randn(1, 3, *size))
        started_at = time.perf_counter()
        plan = find_local(split.tail, features, options.kernel, options.budget_mib << 20)
        built = time.perf_counter() - started_at
        assert plan is not None, f"{name} {layer}: no local plan"
        count = plan.grid[0] * plan.grid[1]
        cells = probe_cells(plan.grid)[: options.sample]
        blank = split.tail(torch.zeros_like(features))[:, None]
        error = error_of(
            plan.cell_logits(features, cells), reference_scores(split.tail, features, options.kernel, cells), blank
        )
        assert error < 1e-3, f"{name} {layer}: local answers differ by {error:.3g} of the signal"
        chunk = DensePlan(split.tail, options.kernel, "", options.budget_mib << 20).chunk(features)
        local, dense = [], []
        for turn in range(options.rounds + 1):
            started_at = time.perf_counter()
            plan(features)
            between = time.perf_counter()
            for part in cells.split(chunk):
                reference_scores(split.tail, features, options.kernel, part)
            ended = time.perf_counter()
            if turn:  # the first round warms up
                local.append(between - started_at)
                dense.append((ended - between) * count / len(cells))
    facts = plan.info
    return {
        "model": name,
        "layer": layer,
        "size": list(size),
        "grid": list(plan.grid),
        "kernel": options.kernel,
        "local_seconds": spread(local),
        "dense_seconds": spread(dense),
        "dense_cells_timed": f"{len(cells)} of {count}, scaled",
        "times_faster": round(statistics.median(d / own for d, own in zip(dense, local, strict=True)), 2),
        "local_giga_multiply_adds": round((facts.multiply_adds or 0) / 1e9, 2),
        "dense_giga_multiply_adds": round((facts.dense_multiply_adds or 0) / 1e9, 2),
        "times_fewer_multiply_adds": round((facts.dense_multiply_adds or 0) / max(facts.multiply_adds or 1, 1), 2),
        "error_share_of_signal": float(f"{error:.2g}"),
        "build_seconds": round(built, 2),
        "plan_mib": (facts.bytes or 0) >> 20,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


def circumstances(threads: int) -> dict[str, Any]:
    """Print device and versions of the measurement."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "scope": "tail only, batch 1, eager, float32",
        "device": platform.processor() or platform.machine(),
        "threads": threads,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
    }


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure what was asked for, and print it."""
    parser = argparse.ArgumentParser(description="Time local plans against dense ones.")
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--layer", default="layer3")
    parser.add_argument("--sizes", nargs="+", type=_size, default=[(224, 224), (384, 672)])
    parser.add_argument("--kernel", default="point", choices=["point", "gaussian"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sample", type=int, default=32, help="cells the dense plan is timed on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget-mib", type=int, default=1024)
    options = parser.parse_args(arguments)
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    lines = []
    try:
        for name in options.models:
            for size in options.sizes:
                lines.append(measure(name, options.layer, size, options) | circumstances(options.threads))
                print(json.dumps(lines[-1]), flush=True)
    finally:
        torch.set_num_threads(before)
    return lines


if __name__ == "__main__":
    main()
