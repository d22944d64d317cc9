"""Measures cost and correctness of guards: ``python tests/bench/guards.py [--frames N ...]``.

Prints one JSON line. ``cost``: on one frame after the other, explaining alone and explaining behind a guardian take
turns, and what the guardian adds is timed itself; every answer is compared. ``shortcut``: the stamped line before the
network that goes by the stamp; ``honest``: five minutes of the plain line before the shipped network, as seeds.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402 - after the path
import torch  # noqa: E402

from engine.explainers.network import NetworkExplainer  # noqa: E402
from engine.models.loader import load_network  # noqa: E402
from pipeline.config import Config  # noqa: E402
from pipeline.config_loader import read_yaml, validate_config  # noqa: E402
from pipeline.frames import Explanation, Frame  # noqa: E402
from pipeline.guards.monitor import ExplanationMonitor  # noqa: E402
from stream.simulated.scene import Scene, draw_frame  # noqa: E402
from stream.simulated.shortcut import add_shortcut  # noqa: E402

GUARDED = ROOT / "configs" / "guards.yaml"
SHIPPED = ROOT / "configs" / "models" / "line.safetensors"
SHORTCUT = ROOT / "configs" / "models" / "line-shortcut.safetensors"
RATE = 30.0


def configured(backend: str, threads: int | None) -> Config:
    """The configuration that ships, on a backend."""
    options = read_yaml(GUARDED.read_text(encoding="utf-8"), GUARDED.name)
    return validate_config(options, GUARDED.name, {"engine": {"backend": backend, "threads": threads}})


def explainer_of(weights: Path, config: Config) -> NetworkExplainer:
    """The line's network with some weights."""
    return NetworkExplainer(load_network("line_net", weights=weights, labels=None), config.engine)


def images(seed: int, count: int, *, stamp: bool) -> Iterator[Frame]:
    """Frames of one belt, with the times of a file."""
    scene = Scene(seed=seed, fps=RATE)
    for index in range(count):
        image, truth = draw_frame(scene, index)
        if stamp and truth is not None:
            image = add_shortcut(image, truth.label)
        yield Frame(image, f"line{seed}", index, index / RATE, index / RATE, truth)


def same(first: Explanation, other: Explanation) -> bool:
    """Return whether two explanations of a frame are equal."""
    return first.first.label == other.first.label and bool(np.array_equal(first.first.heat, other.first.heat))


def cost(config: Config, frames: int) -> dict[str, float]:
    """Return milliseconds of a frame, explained alone and behind a guardian, and the share that guards add."""
    plain = explainer_of(SHIPPED, config)
    rules = [rule for rule in config.guards.rules if not rule.parsed.needs_deletion]
    unchecked = config.guards.model_copy(update={"rules": rules})
    guardian = ExplanationMonitor(plain, unchecked)
    options = list(images(7, min(frames, 120), stamp=False))
    spent: dict[str, list[float]] = {"alone": [], "guarded": [], "added": []}
    for turn in range(frames + 20):
        frame = options[turn % len(options)]
        times = {}
        for name in ("alone", "guarded") if turn % 2 else ("guarded", "alone"):
            started_at = time.perf_counter()
            (explanations,) = (plain if name == "alone" else guardian).explain([frame])
            times[name] = time.perf_counter() - started_at
            if name == "alone":
                alone = explanations
            else:
                guarded = explanations
        assert same(alone, guarded)
        assert guarded.first.heatmap_stats is not None
        started_at = time.perf_counter()
        guardian.process(alone)
        times["added"] = time.perf_counter() - started_at
        if turn >= 20:
            for name, durations in times.items():
                spent[name].append(1e3 * durations)
    middle = {name: statistics.median(times) for name, times in spent.items()}
    line = {f"{name}_ms_p50": round(value, 4) for name, value in middle.items()}
    line |= {f"{name}_ms_p95": round(float(np.percentile(times, 95)), 4) for name, times in spent.items()}
    # Ratios of medians: the time of a frame varies by about 30 times the guardian's own time. "added" times
    # the guardian by itself after both turns, with warm caches; the difference of both turns includes its cache misses.
    line |= {"share": round(middle["added"] / middle["alone"], 5)}
    return line | {"share_by_difference": round(middle["guarded"] / middle["alone"] - 1.0, 5)}


@dataclass
class Stretch:
    """A defect passing under the camera, seen whole and stamped."""

    begun: float
    last: float
    fired: float | None = None


def stretches_of(
    guardian: ExplanationMonitor, frames: Iterator[Frame], arguments: dict[str, list[float]]
) -> list[Stretch]:
    """Explain stamped frames; return the periods in which the heat is in the wrong place, and the first alarm in
    each.
    """
    stretches: list[Stretch] = []
    for frame in frames:
        (seen,) = guardian.explain([frame])
        guardian.after_batch()
        now = frame.pts_seconds or 0.0
        if frame.truth is None or frame.truth.label == "ok":
            continue
        if not stretches or now - stretches[-1].last > 1.5 / RATE:
            stretches.append(Stretch(now, now))
        stretches[-1].last = now
        if stretches[-1].fired is None and any(item.name == "on-the-belt" for item in seen.firing):
            stretches[-1].fired = now
        arguments["right"].append(float(seen.first.label == frame.truth.label))
        assert seen.first.heatmap_stats is not None
        arguments["inside"].append(seen.first.heatmap_stats.heat_inside["belt"])
    return stretches


def shortcut(config: Config, seeds: list[int], frames: int) -> dict[str, Any]:
    """Return how soon guards fire on stamped pictures: seconds of video from a defect's first wrongly grounded frame.

    A defect that is seen for less than the guard holds its fire (one that leaves as the video begins) is no alarm.
    """
    guardian = ExplanationMonitor(explainer_of(SHORTCUT, config), config.guards)
    hold = next(rule.hold_seconds for rule in config.guards.rules if rule.name == "on-the-belt")
    line: dict[str, list[float]] = {"right": [], "inside": []}
    stretches = [
        stretch for seed in seeds for stretch in stretches_of(guardian, images(seed, frames, stamp=True), line)
    ]
    long = [stretch for stretch in stretches if stretch.last - stretch.begun >= hold]
    delays = [stretch.fired - stretch.begun for stretch in long if stretch.fired is not None]
    return {
        "seeds": seeds,
        "video_seconds": round(len(seeds) * frames / RATE, 1),
        "defects": len(long),
        "too_short_to_judge": len(stretches) - len(long),
        "alarmed": len(delays),
        "latest_after_seconds": round(max(delays, default=0.0), 3),
        "frames_named_right": round(statistics.fmean(line["right"] or [0.0]), 4),
        "heat_inside_belt_p50": round(float(np.median(line["inside"] or [0.0])), 4),
        **_checks(guardian),
    }


def honest(config: Config, seeds: list[int], seconds: float) -> dict[str, Any]:
    """Return the number of alarms of the shipped network on the line without stamps, over some time."""
    guardian = ExplanationMonitor(explainer_of(SHIPPED, config), config.guards)
    count = round(seconds * RATE / len(seeds))
    shares, verdicts = [], 0
    for seed in seeds:
        for frame in images(seed, count, stamp=False):
            (explanation,) = guardian.explain([frame])
            guardian.after_batch()
            if (
                explanation.first.label != "ok"
                and explanation.first.score > 0.6
                and explanation.first.heatmap_stats is not None
            ):
                verdicts += 1
                shares.append(explanation.first.heatmap_stats.heat_inside["belt"])
    return {
        "seeds": seeds,
        "video_seconds": round(count * len(seeds) / RATE, 1),
        "defect_verdicts": verdicts,
        "heat_inside_belt_least": round(min(shares), 4) if shares else None,
        "fired": {f"{camera} {name}": count for (camera, name), count in guardian.fire_counts().items() if count},
        **_checks(guardian),
    }


def _checks(guardian: ExplanationMonitor) -> dict[str, Any]:
    budget = guardian.overhead_budget
    return {} if budget is None else {"deletion_checks": budget.checks, "deletion_share": round(budget.fraction, 5)}


def commit() -> str:
    """The commit, with a plus where the tree differs from it."""
    completed = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return completed.stdout.strip() or "unknown"


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print one JSON line, and return it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--frames", type=int, default=600, help="for the cost")
    parser.add_argument("--shortcut-frames", type=int, default=300, help="of each belt")
    parser.add_argument("--honest-seconds", type=float, default=300.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 11, 23, 41, 59])
    options = parser.parse_args(arguments)
    config = configured(options.backend, options.threads)
    line = {
        "benchmark": "guards",
        "scope": "grounds and guards of configs/guards.yaml on line_net, frames of 640x480",
        "cost": cost(config, options.frames),
        "shortcut": shortcut(config, options.seeds, options.shortcut_frames),
        "honest": honest(config, options.seeds, options.honest_seconds),
        "backend": options.backend,
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()} {platform.processor() or ''}".strip(),
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__},
        "commit": commit(),
    }
    print(json.dumps(line))
    return line


if __name__ == "__main__":
    main()
