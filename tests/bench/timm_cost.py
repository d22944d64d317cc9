"""Measures the cost of an explained frame with timm's networks: explained / plain forward, eager, interleaved.

    uv run python -m tests.bench.timm_cost --rounds 20

Weights are random (the cost does not depend on them). Prints one JSON line per network, with its plan and
``macs_ratio``: multiply-adds of the explained network / those of the plain one. A cell's score is a softmax over all
classes, so the definition demands the layers after the pooling for each cell.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from engine.backends.registry import BACKENDS
from engine.methods.recipro import Target, plan_for
from engine.models.loader import build_untrained, find_entry, randomize_zero_layers
from engine.runtime.runner import CompileConfig, Runner
from engine.split.network import SplitModel, split_network
from pipeline.errors import ReciproStreamError
from tests.bench.explain_cost import traced_plain
from tests.bench.figures import environment, interleaved, paired_ratio, print_line, quantiles

NETWORKS = (
    "tf_efficientnetv2_b0", "tf_efficientnet_lite0", "efficientnet_lite0", "nfnet_l0", "nf_resnet50", "mobilevit_s",
    "mobilevitv2_050", "efficientvit_b0", "efficientvit_m0", "swin_tiny_patch4_window7_224", "swinv2_cr_tiny_224",
    "mobilenetv3_small_050", "mobilenetv4_conv_small", "resnetv2_50", "regnetx_002", "hgnetv2_b0", "ghostnet_050",
    "edgenext_xx_small", "convnext_atto", "convnextv2_atto", "fastvit_t8", "repvit_m0_9", "poolformer_s12",
    "mobileone_s0", "resnet10t", "seresnet50", "res2net50_14w_8s", "hrnet_w18_small", "repvgg_a0",
    "inception_next_atto",
)  # fmt: skip


def measure(name: str, rounds: int) -> dict[str, object]:
    """Time one network; raise when the explained network's scores are not the plain one's."""
    entry = find_entry(f"timm/{name}" if "." in name else name)
    torch.manual_seed(0)
    net: nn.Module = randomize_zero_layers(build_untrained(entry))
    inputs = [torch.randn(1, 3, *entry.input_size).contiguous(memory_format=torch.channels_last) for _ in range(4)]
    split = split_network(net, entry.layer, entry.input_size)
    runner = Runner(split, CompileConfig(Target(), "point", "eager", "fp32", torch.device("cpu"), 1 << 30))
    plain = BACKENDS["eager"].load().compile(traced_plain(net), inputs[0], "fp32")
    with torch.inference_mode():
        apart = float((plain(inputs[0]) - runner(inputs[0])[0]).abs().max())
        if apart > 1e-3:
            message = f"{name}: scores differ by {apart:.3g}; not the same network"
            raise RuntimeError(message)
        macs_ratio = _macs_ratio(net, split, inputs[0])
        seconds = interleaved(
            {"plain": lambda k: plain(inputs[k % 4]), "explained": lambda k: runner(inputs[k % 4])}, rounds
        )
    return {
        "bench": "timm_cost", "model": name, "layer": split.layer, "grid": list(split.grid),
        "plan": runner.plan.info.name, "macs_ratio": round(macs_ratio, 3),
        "threads": torch.get_num_threads(), "rounds": rounds,
        "plain": quantiles(seconds["plain"]), "explained": quantiles(seconds["explained"]),
        **paired_ratio(seconds["explained"], seconds["plain"]),
    }  # fmt: skip


def _macs_ratio(net: nn.Module, split: SplitModel, images: Tensor) -> float:
    """Count both networks before a backend changes them: its own operations are not counted."""
    plan = plan_for(split, split.head(images), "point")

    def count(call: Callable[[], object]) -> int:
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    return count(lambda: plan(split.head(images))) / count(lambda: net(images))


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.models:
        try:
            print_line(**measure(name, arguments.rounds), **environment())
        except ReciproStreamError as reason:
            print_line(bench="timm_cost", model=name, refused=str(reason))


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main()
