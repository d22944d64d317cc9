"""`run.py export`: exports a network together with its explanation to one file."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

from commands import options
from commands.console import print_line, relative_path
from commands.options import NETWORK, RUN, drop_none, option
from commands.wiring.run import make_network
from pipeline.atomic import atomic_write
from pipeline.config import EngineConfig
from pipeline.config_loader import validate_config
from pipeline.errors import ConfigError, ModelError


def export(
    model: options.Model,
    output: Annotated[Path, option(RUN, "The file to write: NAME.onnx or NAME.pt2.")],
    file_format: Annotated[str | None, option(RUN, "onnx or torch. Default: by the file's suffix.", "--format")] = None,
    weights: options.Weights = None,
    labels: options.Labels = None,
    layer: options.Layer = None,
    target: options.Target = None,
    kernel: options.Kernel = None,
    input_size: options.InputSize = None,
    fit: options.Fit = None,
    mean: options.Mean = None,
    std: options.Std = None,
    memory_budget_mib: Annotated[
        int | None, option(NETWORK, "Memory budget for masked maps in MiB.", "--memory-budget-mib")
    ] = None,
) -> None:
    """Export a network with its explanation to one file, for `stream --model FILE` and other programs."""
    engine = {
        "model": model, "weights": weights, "labels": labels, "layer": layer, "target": target, "kernel": kernel,
        "input_size": input_size, "fit": fit, "mean": mean, "std": std, "memory_budget_mib": memory_budget_mib,
    }  # fmt: skip
    from overlays.sinks.paths import same_place

    config = validate_config({}, "command line", {"engine": drop_none(engine)})
    if any(path and same_place(output, Path(path)) for path in (weights, labels)):
        raise ConfigError(f"output {str(output)!r} would overwrite an input of this command; choose another file")
    from commands.wiring.detectors import is_detector
    from engine.export.exporter import check_format, export_network

    kind = check_format(file_format, output)
    if is_detector(config.engine.model):
        _export_detector(config.engine, output, kind)
        return
    with atomic_write(output, raises=ModelError) as temporary:
        exported = export_network(make_network(config), config.engine, temporary)
    print_line(
        f"written: {relative_path(output)} ({exported.bytes / 1e6:.1f} MB, "
        f"{exported.metadata.plan} plan; same results as the "
        f"engine in {' and '.join(exported.runtimes)})\n"
        f"run it:  uv run run.py stream --model {shlex.quote(relative_path(output))} --source camera:0"
    )


def _export_detector(config: EngineConfig, output: Path, kind: str) -> None:
    """Export a detector to ONNX, together with the heat maps of its best boxes."""
    from commands.wiring.detectors import load_configured_detector
    from engine.export.detectors import export_detector

    if kind != "onnx":
        raise ConfigError(f"output {str(output)!r}: a detector is exported to ONNX; name the file NAME.onnx")
    unfit = ("layer", "mean", "std", "fit")
    for key in unfit:
        if getattr(config, key) != EngineConfig.model_fields[key].default:
            raise ConfigError(f"--{key}: does not apply to a detector; omit it")
    detector = load_configured_detector(config)
    with atomic_write(output, raises=ModelError) as temporary:
        exported = export_detector(detector, temporary, image_size=config.input_size)
    share = exported.multiply_adds / exported.plain_multiply_adds
    print_line(
        f"written: {relative_path(output)} ({exported.bytes / 1e6:.1f} MB; the maps of {exported.max_boxes} boxes cost "
        f"{share:.0%} of the plain pass; same results as the engine in onnxruntime)\n"
        "run it:  in ONNX Runtime; docs/export.md describes its inputs and outputs"
    )
