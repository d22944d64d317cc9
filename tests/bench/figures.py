"""Shared by all benchmarks: interleaved timing, and one JSON line per case with its environment."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def interleaved(
    cases: Mapping[str, Callable[[int], object]],
    rounds: int,
    warmup: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Run the cases in turn, A B C A B C, so that a machine that slows down slows all; seconds by case.

    Each case is called with the round's number, to rotate its inputs. ``time.process_time`` as the clock counts the
    processor time of all threads, which other programs hardly change.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for k in range(warmup + rounds):
        for name, call in cases.items():
            started_at = clock()
            call(k)
            if k >= warmup:
                seconds[name].append(clock() - started_at)
    return seconds


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Return p50, p95, p99 and the least, in milliseconds."""
    ordered = sorted(seconds)

    def at(fraction: float) -> float:
        return round(1e3 * ordered[min(len(ordered) - 1, round(fraction * (len(ordered) - 1)))], 3)

    return {"p50_ms": at(0.5), "p95_ms": at(0.95), "p99_ms": at(0.99), "min_ms": at(0.0)}


def paired_ratio(first: list[float], other: list[float]) -> dict[str, float]:
    """Return the ratio of the medians, and the quartiles of the ratios round by round."""
    rounds = [a / b for a, b in zip(first, other, strict=True)]
    low, middle, high = statistics.quantiles(rounds, n=4)
    return {
        "ratio_of_medians": round(statistics.median(first) / statistics.median(other), 4),
        "ratio_median": round(middle, 4),
        "ratio_quartiles": [round(low, 4), round(high, 4)],
    }


def resident_mib() -> float:
    """Return what this process holds in memory now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return round(pages * resource.getpagesize() / (1 << 20), 1)


def environment() -> dict[str, Any]:
    """Return where and when: machine, versions, commit, date."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for name in ("torch", "torchvision", "numpy", "opencv-python", "av", "pyzmq", "openvino", "onnxruntime"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def print_line(**figures: object) -> None:
    """Print one JSON line."""
    print(json.dumps(figures), flush=True)
