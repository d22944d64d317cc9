"""Measures the cost of an explained frame: explained / plain forward, same network, backend and precision, interleaved.

    uv run python -m tests.bench.explain_cost --models resnet18 resnet50 --backends eager inductor --rounds 40

Weights are random (the cost does not depend on them), inputs rotate, both answers are checked against each other.
Prints one JSON line per case. The plain network is traced, so that eager joins its layers, too; ``--unfused`` also
times both without joined layers.
"""

from __future__ import annotations

import argparse
import logging

import torch
from torch import Tensor, fx, nn

from engine.backends import eager
from engine.backends.registry import BACKENDS
from engine.methods.recipro import Target
from engine.models.loader import build_untrained, randomize_zero_layers
from engine.models.registry import MODELS
from engine.runtime.runner import CompileConfig, Runner
from engine.split.network import SplitModel, split_network
from tests.bench.figures import environment, interleaved, paired_ratio, print_line, quantiles


class Plain(nn.Module):
    """The plain network: images to softmax scores."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """Return scores (N, K), float32."""
        return torch.softmax(self.net(images).float(), dim=1)


def traced_plain(net: nn.Module) -> nn.Module:
    """Return ``Plain(net)`` as a graph, so that eager joins its layers, too; untraced where it cannot be traced."""
    plain = Plain(net).eval()
    try:
        return fx.symbolic_trace(plain)
    except Exception:  # noqa: BLE001 - tracing runs the network's own code
        return plain


def measure(
    name: str, backend: str, precision: str, batch: int, rounds: int, *, unfused: bool = False
) -> dict[str, object]:
    """Time one case; raise when the explained network's scores are not the plain one's."""
    entry = MODELS[name]
    torch.manual_seed(0)
    net = randomize_zero_layers(build_untrained(entry))
    size = entry.input_size
    build = CompileConfig(Target(), "point", backend, precision, torch.device("cpu"), 1 << 30, batch_size=batch)
    inputs = [
        torch.randn(batch, 3, *size).to(build.dtype).contiguous(memory_format=torch.channels_last) for _ in range(8)
    ]
    split = split_network(net, entry.layer, size)
    runner = Runner(split, build)
    net = net.to(build.dtype).to(memory_format=torch.channels_last)
    plain = BACKENDS[backend].load().compile(traced_plain(net), inputs[0], precision)
    with torch.inference_mode():
        apart = float((plain(inputs[0]) - runner(inputs[0])[0]).abs().max())
        if apart > (1e-3 if precision == "fp32" else 5e-2):
            message = f"{name} {backend} {precision}: scores differ by {apart:.3g}; not the same network"
            raise RuntimeError(message)
        cases = {"plain": plain, "explained": runner}
        if unfused:
            cases |= {"plain, unfused": Plain(net), "explained, unfused": _unfused(split, build)}
        calls = {case: lambda k, run=run: run(inputs[k % 8]) for case, run in cases.items()}
        seconds = interleaved(calls, rounds)
        fused = {
            f"fused_by_unfused_{case}": paired_ratio(seconds[case], seconds[f"{case}, unfused"])
            for case in ("plain", "explained")
            if unfused
        }
    return {
        "bench": "explain_cost", "model": name, "backend": backend, "precision": precision, "batch": batch,
        "layer": split.layer, "grid": list(split.grid), "plan": runner.plan.info.name,
        "threads": torch.get_num_threads(), "rounds": rounds,
        "plain": quantiles(seconds["plain"]), "explained": quantiles(seconds["explained"]),
        **paired_ratio(seconds["explained"], seconds["plain"]), **fused,
    }  # fmt: skip


def _unfused(split: SplitModel, build: CompileConfig) -> Runner:
    """Return the explained network as eager runs it without joined layers."""
    joined = eager.fold_batch_norms, eager.fuse_convolutions
    eager.fold_batch_norms, eager.fuse_convolutions = (lambda *_: 0,) * 2
    try:
        return Runner(split, build)
    finally:
        eager.fold_batch_norms, eager.fuse_convolutions = joined


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50", "densenet121", "mobilenet_v3_large"])
    parser.add_argument("--backends", nargs="+", default=["eager", "inductor"])
    parser.add_argument("--precisions", nargs="+", default=["fp32"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--unfused", action="store_true", help="compare with eager without joined layers")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for backend in arguments.backends:
        for precision in arguments.precisions:
            for name in arguments.models:
                for batch in arguments.batches:
                    figures = measure(name, backend, precision, batch, arguments.rounds, unfused=arguments.unfused)
                    print_line(**figures, **environment())


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main()
