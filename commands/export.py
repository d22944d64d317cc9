"""`run.py export`: a network and its explanation as one file."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

from commands import options
from commands.console import near, say
from commands.options import NETWORK, RUN, option, stated
from commands.wiring.run import make_network
from pipeline.config_loader import make_config
from pipeline.errors import ConfigError


def export(
    model: options.Model,
    output: Annotated[Path, option(RUN, "The file to write: NAME.onnx or NAME.pt2.")],
    file_format: Annotated[
        str | None, option(RUN, "onnx or torch. Default: the file's ending says.", "--format")
    ] = None,
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
        int | None, option(NETWORK, "MiB for masked maps, where they cannot be avoided.", "--memory-budget-mib")
    ] = None,
) -> None:
    """Write a network and its explanation as one file, which `stream --model FILE` and other programs run."""
    engine = {
        "model": model, "weights": weights, "labels": labels, "layer": layer, "target": target, "kernel": kernel,
        "input_size": input_size, "fit": fit, "mean": mean, "std": std, "memory_budget_mib": memory_budget_mib,
    }  # fmt: skip
    from overlays.sinks.paths import same_place

    config = make_config({}, "command line", {"engine": stated(engine)})
    if any(given and same_place(output, Path(given)) for given in (weights, labels)):
        raise ConfigError(f"output {str(output)!r} would overwrite what this command reads; choose another file")
    from engine.export.exporter import check_format, export_network
    from engine.io.atomic import whole_file

    check_format(file_format, output)
    with whole_file(output) as place:
        told = export_network(make_network(config), config.engine, place)
    say(
        f"written: {near(output)} ({told.bytes / 1e6:.1f} MB, {told.passport.plan} plan; the same answers as the "
        f"engine's in {' and '.join(told.runtimes)})\n"
        f"run it:  uv run run.py stream --model {shlex.quote(near(output))} --source camera:0"
    )
