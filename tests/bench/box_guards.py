"""Measures the time of guards on a detector's boxes: ``python -m tests.bench.box_guards [--boxes N] [--frames N]``.

Prints one JSON line. The detector is replaced by a script of explanations, so only the guards are timed: three rules
and a region on maps of 20 by 20 cells (640 pixels, cells of 32). ``older``: no map is new. ``fresh``: all are new.
``firing``: none is new, and every box violates every rule. ``finite`` is the check for numbers that are not finite,
which is made without guards too. Milliseconds per frame; the minimum is the least disturbed by other programs.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from typing import Any

import numpy as np

from pipeline.config_loader import validate_config
from pipeline.finite import find_non_finite
from pipeline.frames import Box, BoxMap, Explanation, Finding, Frame
from pipeline.guards.monitor import ExplanationMonitor
from tests.bench.guards import commit
from tests.support.probes import NullExplainer

RATE = 25.0
SIDE = 640
WHOLE = Box(0.0, 0.0, SIDE, SIDE)
GUARDS = {
    "regions": [{"name": "road", "polygon": [[0, 0.4], [1, 0.4], [1, 1], [0, 1]]}],
    "rules": [
        {"name": "in-the-box", "rule": "heat_inside(box) >= {bound} when label=car and score>0.5"},
        {"name": "outside", "rule": "evidence_outside_box <= {rest} when label=car or label=truck"},
        {"name": "road", "rule": "heat_inside(road) >= {bound} and focus_area <= 0.9 when score>0.4", "margin": 0.01},
    ],
}
BOUNDS = {"older": 0.0001, "fresh": 0.0001, "firing": 0.9999}


def explained(index: int, boxes: int, *, fresh: bool) -> Explanation:
    """Return the explanation of a frame with ``boxes`` boxes, whose maps are of frame 0 or of this frame."""
    dice = np.random.default_rng(1)
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    findings = []
    for track in range(boxes):
        left, top = dice.uniform(0, SIDE - 100, 2)
        heat = dice.random((20, 20), np.float32)
        box_map = BoxMap("keep", "complete", WHOLE, 9.0, index=index if fresh else 0)
        box = Box(left, top, left + 90.0, top + 60.0)
        findings.append(Finding("car", 0.9, heat, 2, box=box, track=track, box_map=box_map))
    return Explanation(Frame(image, "road", index, index / RATE, index / RATE), tuple(findings), "m", "l")


def times(case: str, boxes: int, frames: int) -> dict[str, float]:
    """Return the time of the guards of a frame, least and median."""
    bound = BOUNDS[case]
    rules = [each | {"rule": each["rule"].format(bound=bound, rest=1 - bound)} for each in GUARDS["rules"]]
    guards = validate_config({"guards": GUARDS | {"rules": rules}}, "bench").guards
    monitor = ExplanationMonitor(NullExplainer(), guards)
    spent = []
    for index in range(frames + 20):
        explanation = explained(index, boxes, fresh=case == "fresh")
        started_at = time.perf_counter()
        result = monitor.process(explanation)
        spent.append(1e3 * (time.perf_counter() - started_at))
        assert all(finding.heatmap_stats is not None for finding in result.findings)
        assert bool(result.firing) == (case == "firing" and index >= RATE / 2)
    return _summary(spent[20:])


def finite_times(boxes: int, frames: int) -> dict[str, float]:
    """Return the time of the check for numbers that are not finite."""
    explanation, spent = explained(0, boxes, fresh=False), []
    for _ in range(frames):
        started_at = time.perf_counter()
        assert find_non_finite(explanation) == ""
        spent.append(1e3 * (time.perf_counter() - started_at))
    return _summary(spent)


def _summary(spent: list[float]) -> dict[str, float]:
    return {"min_ms": round(min(spent), 4), "p50_ms": round(statistics.median(spent), 4)}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print the line and return it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--boxes", type=int, default=30, help="boxes per frame")
    parser.add_argument("--frames", type=int, default=300, help="frames per case")
    options = parser.parse_args(arguments)
    line: dict[str, Any] = {case: times(case, options.boxes, options.frames) for case in BOUNDS}
    line |= {"finite": finite_times(options.boxes, options.frames), "boxes": options.boxes, "rules": 3}
    line |= {"machine": platform.processor() or platform.machine(), "commit": commit()}
    print(json.dumps(line))
    return line


if __name__ == "__main__":
    main()
