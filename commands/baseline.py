"""`run.py baseline`: records the distributions of scores and heat map statistics in normal operation."""

from __future__ import annotations

import json
import os
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from commands import options
from commands.console import exit_with_outcome, print_line, read_text, relative_path, write_text
from commands.options import CAMERA, RUN, drop_none, option
from commands.wiring.kinds import load_config
from commands.wiring.run import run_from_config
from pipeline.config_loader import read_yaml
from pipeline.errors import ConfigError, WireError
from pipeline.guards.drift import MIN_SAMPLES, BaselineRecorder
from pipeline.guards.monitor import ExplanationMonitor
from pipeline.ports import Explainer


def baseline(
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="[CONFIG|LOG]", help="A configuration of `stream`, or a log that --sink FILE.jsonl wrote."
        ),
    ] = None,
    output: Annotated[Path, option(RUN, "The file to write. [default: baseline.json]", "--output", "-o")] = Path(
        "baseline.json"
    ),
    source: Annotated[list[str] | None, option(CAMERA, "A source, as for `stream`. Repeatable.")] = None,
    model: Annotated[str | None, option(options.NETWORK, "A network, as for `stream`.")] = None,
    frames: options.Frames = None,
    seconds: options.Seconds = None,
) -> None:
    """Record scores and heat-map statistics in normal operation; `stream --baseline` reports drift from them."""
    recorder = BaselineRecorder()
    home = output.absolute().parent
    if output.is_dir() or not home.is_dir() or not os.access(output if output.exists() else home, os.W_OK):
        raise ConfigError(f"--output {str(output)!r}: cannot be written; name a file in a folder that you may write to")
    if config is not None and config.suffix.lower() in {".jsonl", ".parquet"}:
        origin, stream = f"the log {config.name}", "..."
        _read_log(config, recorder)
    else:
        origin, stream = (
            ("the command line", "...") if config is None else (config.name, shlex.quote(relative_path(config)))
        )
        _run(config, recorder, {
            "sources": source, "frames": frames, "seconds": seconds, "engine": drop_none({"model": model}) or None,
        })  # fmt: skip
    recorded = recorder.baseline()
    if not recorded["cameras"]:
        raise ConfigError(
            f"{origin}: no frame was explained, so the baseline is empty; give a source that delivers frames"
        )
    recorded |= {"of": origin, "made": datetime.now(UTC).isoformat(timespec="seconds")}
    write_text(output, json.dumps(recorded, indent=1))
    for camera, labels in recorded["cameras"].items():
        for label, spread in labels.items():
            few = "" if spread["samples"] >= MIN_SAMPLES else f"  (fewer than {MIN_SAMPLES}: its drift is not reported)"
            print_line(f"{camera}  {label}: {spread['samples']} samples, one per second{few}")
    print_line(
        f"written: {relative_path(output)}\nuse it:  uv run run.py stream {stream} "
        f"--baseline {shlex.quote(relative_path(output))}"
    )


def _run(config: Path | None, recorder: BaselineRecorder, options: dict[str, Any]) -> None:
    settings: dict[str, Any] = {} if config is None else read_yaml(read_text(config), config.name)
    settings |= {"sinks": []}
    if not settings.get("sources") and not options["sources"]:
        raise ConfigError("no source; give a YAML configuration, a log, or --source URI")
    validated = load_config(settings, config.name if config else "command line", drop_none(options))
    exit_with_outcome(run_from_config(validated, recorder=recorder))


def _read_log(path: Path, recorder: BaselineRecorder) -> None:
    from overlays.records.reader import open_log
    from overlays.wire.message import as_overlay

    # Statistics are computed only for records without them; a box without a map never has statistics.
    heatmap_stats, damaged = ExplanationMonitor(_NoExplainer()), 0
    with open_log(path) as opened:
        for key in opened.iter_keys():
            if isinstance(key, WireError):
                damaged += 1
                continue
            header = opened.read_header(key.offset)
            black = np.broadcast_to(np.zeros(1, np.uint8), (header.height, header.width, 3))
            explanation = as_overlay(header, black, now_unix=0.0, now_monotonic=0.0).explanation
            has_stats = all(
                finding.heatmap_stats is not None or finding.box is not None for finding in explanation.findings
            )
            recorder.add(explanation if has_stats else heatmap_stats.process(explanation))
    if damaged:
        print_line(f"damaged lines skipped: {damaged}")


class _NoExplainer(Explainer):
    """An explainer without a network, because the log already contains the explanations."""

    def explain(self, frames: object) -> list[Any]:  # noqa: ARG002 - there are none
        return []
