"""Measures the cost of drawing a frame: ``python tests/bench/render_cost.py [--height H --width W --repeats N --threads
T]``.

Prints one JSON line. Every option's picture is checked once before it is timed; options are interleaved, so that a
disturbance of the machine falls on all alike. Each round draws another frame and another heat map.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import cv2  # noqa: E402 - after the path
import numpy as np  # noqa: E402

from overlays.render.renderer import HeatRenderer  # noqa: E402
from pipeline.frames import Box, Explanation, Finding, Frame  # noqa: E402

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "no legend": {"legend": False},
    "smoothing": {"smoothing_seconds": 0.5},
    "contour": {"contour": True},
    "hottest box": {"hottest_box": True},
}
FRAMES = 8


def explanations(height: int, width: int, grid: int, *, crop: bool) -> list[Explanation]:
    """Noise with a hot spot that moves."""
    dice = np.random.default_rng(0)
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    region = Box(left, top, left + side, top + side) if crop else None
    explanations = []
    for index in range(FRAMES):
        rows, columns = np.mgrid[:grid, :grid]
        heat = np.exp(-((rows - grid / 2) ** 2 + (columns - index * grid / FRAMES) ** 2) / (grid * grid / 16))
        heat = ((heat - heat.min()) / np.ptp(heat)).astype(np.float32)
        image = dice.integers(0, 256, (height, width, 3), np.uint8)
        frame = Frame(image, "bench", index, time.monotonic())
        findings = (Finding("water bottle", 0.9 - index / 100, heat), Finding("beer bottle", 0.01 * index, heat))
        explanations.append(Explanation(frame, findings, "recipro-cam/point", "layer4", heat_region=region))
    return explanations


def check(explanation: Explanation, renderer: HeatRenderer) -> None:
    """Check that a timed image has heat drawn on it, and is a new array."""
    before = explanation.frame.image.copy()
    drawn = renderer.render(explanation).image
    assert drawn.shape == before.shape
    assert (drawn != before).mean() > 0.2
    assert (explanation.frame.image == before).all()


def measure(height: int, width: int, grid: int, repeats: int) -> dict[str, dict[str, float]]:
    """Return p50, p95 and p99 in milliseconds of each option."""
    whole = explanations(height, width, grid, crop=False)
    cases = {name: (HeatRenderer(**options), whole) for name, options in OPTIONS.items()}
    cases["crop"] = (HeatRenderer(), explanations(height, width, grid, crop=True))
    spent: dict[str, list[float]] = {name: [] for name in cases}
    for renderer, inputs in cases.values():
        check(inputs[0], renderer)
    for turn in range(repeats + FRAMES):
        for name, (renderer, inputs) in cases.items():
            started_at = time.perf_counter()
            overlay = renderer.render(inputs[turn % FRAMES])
            took = time.perf_counter() - started_at
            assert overlay.image.shape == (height, width, 3)
            if turn >= FRAMES:
                spent[name].append(took * 1e3)
    return {
        name: {f"p{q}_ms": round(float(np.percentile(times, q)), 3) for q in (50, 95, 99)}
        for name, times in spent.items()
    }


def commit() -> str:
    """The commit, with a plus where the tree differs from it."""
    completed = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return completed.stdout.strip() or "unknown"


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print one JSON line, and return it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--grid", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    cv2.setNumThreads(options.threads)
    line = {
        "benchmark": "render_cost",
        "scope": "HeatRenderer.render: frame and heat in, new picture with legend out",
        "size": f"{options.width}x{options.height}",
        "grid": options.grid,
        "repeats": options.repeats,
        "opencv_threads": options.threads,
        "options": measure(options.height, options.width, options.grid, options.repeats),
        "machine": f"{platform.machine()} {platform.processor() or ''}".strip(),
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "opencv": cv2.__version__},
        "commit": commit(),
    }
    print(json.dumps(line))
    return line


if __name__ == "__main__":
    main()
