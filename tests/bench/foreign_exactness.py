"""Compares exported classifiers, explained as foreign files, with the definition in PyTorch.

    python -m tests.bench.foreign_exactness resnet18 vit_b_16

exports each network of torchvision with random weights by both exporters, with a batch of 1 and a free batch, and
prints one line of JSON for each file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.foreign.classifier import ForeignClassifier
from engine.methods.plan import reference_scores
from engine.models.loader import find_entry, load_network
from engine.runtime.verification import probe_images
from engine.split.network import split_network
from pipeline.errors import ReciproStreamError


def compared(name: str, folder: Path, exporters: Sequence[str] = ("torchscript", "dynamo")) -> Iterator[dict[str, Any]]:
    """Yield the plan and the largest differences of each export of a network, or why it is refused."""
    net, size = load_network(name, weights="random").module, find_entry(name).input_size
    images = probe_images(1, size)
    for exporter in exporters:
        for free in (False, True):
            path = folder / f"{name}-{exporter}-{'free' if free else '1'}.onnx"
            _export(net, path, size, dynamo=exporter == "dynamo", free=free)
            yield {"bench": "foreign_exactness", "file": path.name, **_differences(net, path, images)}


def _differences(net: nn.Module, path: Path, images: Tensor) -> dict[str, Any]:
    try:
        network = ForeignClassifier(path)
    except ReciproStreamError as reason:
        return {"refused": str(reason)}
    split = split_network(net, image_size=network.graph.image_size)
    with torch.inference_mode():
        features = split.head(images)
        cells = torch.arange(features.shape[2] * features.shape[3]).split(7)
        expected = torch.cat([reference_scores(split.tail, features, "point", part) for part in cells], 1)
        plain, cell_logits = network.plan(network.head(images))
        scores = net(images)
    return {
        "layer": network.graph.layer, "grid": network.graph.grid, "plan": network.plan.info.name,
        "logits": float((plain - scores).abs().max() / scores.abs().max()),
        "cell_logits": float((cell_logits - expected).abs().max() / expected.abs().max()),
    }  # fmt: skip


def _export(net: nn.Module, path: Path, size: tuple[int, int], *, dynamo: bool, free: bool) -> None:
    shapes: dict[str, Any] = {}
    if free:
        batch = torch.export.Dim("n")
        shapes = {"dynamic_shapes": ({0: batch},)} if dynamo else {"dynamic_axes": {"images": {0: "n"}}}
    images = torch.randn(2 if free and dynamo else 1, 3, *size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (images,), str(path), dynamo=dynamo, input_names=["images"], output_names=["logits"], verbose=False,
            external_data=False, **shapes,
        )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the comparison of the named networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", help="networks of torchvision")
    for name in parser.parse_args(arguments).networks:
        with tempfile.TemporaryDirectory() as folder:
            for line in compared(name, Path(folder)):
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
