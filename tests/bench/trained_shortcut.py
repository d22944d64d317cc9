"""The guards of ``configs/line-detector.yaml`` on a detector that was trained on a mark, or on the honest one.

    uv run run.py train-line --detector --shortcut
    uv run python -m tests.bench.trained_shortcut configs/models/line-detector-shortcut.safetensors
    uv run python -m tests.bench.trained_shortcut configs/models/line-detector.safetensors --mark none --frames 1204

Frames of the simulated line, four a second, get the mark of a defect in their corner after the first second; ``none``
marks no frame. For each mark one JSON line: the fraction of the boxes that have its label, ``heat_inside(box)`` of the
defects before and after the mark with the number of their maps, and the seconds from the first marked frame until the
guard fires (null = it does not).
"""

from __future__ import annotations

import argparse
import statistics
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from commands.wiring.kinds import load_config
from engine.detectors.detector import Detector
from engine.detectors.loader import load_detector
from engine.explainers.detector import DetectorExplainer
from pipeline.config_loader import read_yaml
from pipeline.frames import Explanation
from pipeline.guards.monitor import ExplanationMonitor
from stream.simulated.schedule import DEFECTS
from stream.simulated.shortcut import add_shortcut
from stream.simulated.source import SimulatedLineSource
from tests.bench.figures import ROOT, environment, print_line

CONFIG = ROOT / "configs" / "line-detector.yaml"
FPS = 4.0
NO_MARK = "none"
UNMARKED = 4
"""Frames before the mark."""


def watched(detector: Detector, label: str, frames: int, seed: int) -> list[Explanation]:
    """Return the explanations of frames, marked from ``UNMARKED`` on, under the guards of the configuration."""
    config = load_config(read_yaml(CONFIG.read_text(encoding="utf-8"), CONFIG.name), CONFIG.name)
    boxes = config.engine.boxes.model_copy(update={"budget": None, "when": "label != ok"})
    engine = config.engine.model_copy(update={"backend": "eager", "cache": "off", "boxes": boxes})
    monitor = ExplanationMonitor(DetectorExplainer(detector, engine), config.guards)
    source = SimulatedLineSource(fps=FPS, seed=seed, paced=False, frames=frames)
    found = []
    for frame in source.frames(threading.Event()):
        image = add_shortcut(frame.image, label) if frame.index >= UNMARKED else frame.image
        found.append(monitor.explain([replace(frame, pixels=image)])[0])
    return found


def summary(explained: Sequence[Explanation], label: str) -> dict[str, object]:
    """Return the figures of a run."""
    marked = explained[UNMARKED:]
    labels = [finding.label for explanation in marked for finding in explanation.findings]
    firing = next((e.frame.pts_seconds for e in marked if e.firing), None)
    first = marked[0].frame.pts_seconds
    return {
        "mark": label,
        "boxes": len(labels),
        "with_its_label": round(labels.count(label) / max(1, len(labels)), 3),
        "heat_inside_before": _insides(explained[:UNMARKED]),
        "heat_inside_marked": _insides(marked),
        "fires_after_seconds": None if firing is None or first is None else round(firing - first, 2),
        "fires_before_the_mark": any(explanation.firing for explanation in explained[:UNMARKED]),
    }


def _insides(explained: Sequence[Explanation]) -> dict[str, float] | None:
    """Return the lowest, median and highest ``heat_inside(box)`` of the defects; None without one."""
    values = [
        finding.heatmap_stats.heat_inside["box"]
        for explanation in explained
        for finding in explanation.findings
        if finding.heatmap_stats is not None
    ]
    if not values:
        return None
    return {
        "maps": len(values), "least": round(min(values), 3), "median": round(statistics.median(values), 3),
        "most": round(max(values), 3),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="a file of train-line --detector")
    parser.add_argument("--frames", type=int, default=12, help="of each defect; the first four have no mark")
    parser.add_argument("--seed", type=int, default=7, help="of the line")
    parser.add_argument("--mark", nargs="+", choices=(*DEFECTS, NO_MARK), default=DEFECTS)
    options = parser.parse_args(arguments)
    detector = load_detector("line_detector", weights=options.weights)
    if not isinstance(detector, Detector) or options.frames <= UNMARKED:
        parser.error(f"give a one-stage detector, and more than {UNMARKED} frames")
    with torch.inference_mode():
        for label in options.mark:
            figures = summary(watched(detector, label, options.frames, options.seed), label)
            print_line(bench="trained_shortcut", weights=options.weights.name, **figures, **environment())


if __name__ == "__main__":
    main()
