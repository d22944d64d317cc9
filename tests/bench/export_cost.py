"""Measures the cost of the explanation in an exported network: file size and latency, explained / plain, in other
runtimes.

    uv run python -m tests.bench.export_cost --models resnet50 --rounds 40

Both files are written by the same exporter with random weights (the cost does not depend on them); the explained one
is also checked against the engine when it is written. ONNX Runtime and OpenVINO run them in turn; inputs rotate, and
the scores must be each other's. Prints one JSON line per case.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from engine.export.exporter import export_network
from engine.export.runtimes import INPUT
from engine.models.loader import load_network
from engine.models.registry import MODELS
from engine.runtime.signal_stack import preserve_signal_stack
from pipeline.config import EngineConfig
from tests.bench.explain_cost import Plain
from tests.bench.figures import environment, interleaved, paired_ratio, print_line, quantiles

Run = Callable[[np.ndarray], np.ndarray]
"""Images to scores."""


def with_onnxruntime(path: Path, _shape: tuple[int, ...]) -> Run:
    """Load a file into ONNX Runtime as its manual says."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {INPUT: images})[0]


def with_openvino(path: Path, shape: tuple[int, ...]) -> Run:
    """Load a file into OpenVINO, float32, for one batch size."""
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    model.reshape(list(shape))
    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    hints = {**hints, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    with preserve_signal_stack():
        request = core.compile_model(model, "CPU", hints).create_infer_request()
    return lambda images: request.infer([images])[0]


RUNTIMES = {"onnxruntime": with_onnxruntime, "openvino": with_openvino}


def write_plain(net: nn.Module, size: tuple[int, int], path: Path) -> None:
    """Write the network alone, softmax included."""
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(Plain(net), (torch.randn(2, 3, *size),), dynamic_shapes=({0: batch},))
        torch.onnx.export(program, dynamo=True, verbose=False, input_names=[INPUT]).save(str(path))


def measure(name: str, runtimes: list[str], batch: int, rounds: int, folder: Path) -> list[dict[str, object]]:
    """Export once and time in each runtime; raise when the explained network's scores are not the plain one's."""
    network = load_network(name, weights="random")
    size = MODELS[name].input_size
    plain, explained = folder / f"{name}.onnx", folder / f"{name}-explained.onnx"
    exported = export_network(network, EngineConfig(model=name), explained)
    write_plain(network.module, size, plain)
    inputs = [np.random.default_rng(k).standard_normal((batch, 3, *size), np.float32) for k in range(8)]
    lines = []
    for runtime in runtimes:
        cases = {file.stem: RUNTIMES[runtime](file, inputs[0].shape) for file in (plain, explained)}
        first, other = (run(inputs[0]) for run in cases.values())
        apart = float(np.abs(first - other).max())
        if apart > 1e-4:
            message = f"{name} in {runtime}: scores differ by {apart:.3g}; not the same network"
            raise RuntimeError(message)
        seconds = interleaved({key: lambda k, run=run: run(inputs[k % 8]) for key, run in cases.items()}, rounds)
        lines.append({
            "bench": "export_cost", "model": name, "runtime": runtime, "batch": batch, "plan": exported.metadata.plan,
            "grid": list(exported.metadata.grid), "threads": torch.get_num_threads(), "rounds": rounds,
            "plain_bytes": plain.stat().st_size, "explained_bytes": explained.stat().st_size,
            "ratio_of_bytes": round(explained.stat().st_size / plain.stat().st_size, 4),
            "plain": quantiles(seconds[plain.stem]), "explained": quantiles(seconds[explained.stem]),
            **paired_ratio(seconds[explained.stem], seconds[plain.stem]),
        })  # fmt: skip
    return lines


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet50"])
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES), choices=list(RUNTIMES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.models:
        for batch in arguments.batches:
            with tempfile.TemporaryDirectory() as folder:
                for line in measure(name, arguments.runtimes, batch, arguments.rounds, Path(folder)):
                    print_line(**line, **environment())


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main()
