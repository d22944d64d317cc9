"""Counters and latency histograms: how a run does, as numbers. No threads, no output."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from pipeline.frames import Explanation

EDGES = tuple(1e-4 * 10 ** (k / 20) for k in range(121))
"""Bucket edges from 0.1 ms to 100 s, 12 % apart."""


_MAX_INTERVAL_SECONDS: Final = 10.0


def update_mean_interval(usual_seconds: float, passed_seconds: float) -> float:
    """Return the usual time between two frames once another has passed: a running mean over about the last twenty.

    0 is none yet. A pause is none of the usual ones: it counts as ten seconds at the most.
    """
    passed = min(passed_seconds, _MAX_INTERVAL_SECONDS)
    return usual_seconds + (passed - usual_seconds) * (0.05 if usual_seconds else 1.0)


class Histogram:
    """Durations in buckets 12 % apart: quantiles of any number of them in constant memory."""

    def __init__(self) -> None:
        self.counts = [0] * (len(EDGES) + 1)
        self.count = 0
        self.total_seconds = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(EDGES, seconds)] += 1
        self.count += 1
        self.total_seconds += seconds

    def quantile(self, fraction: float) -> float:
        """Return the duration in seconds that ``fraction`` of all stay below, to within a bucket; 0 when empty."""
        if not self.count:
            return 0.0
        below = 0
        for bucket, count in enumerate(self.counts):
            below += count
            if below >= fraction * self.count:
                return EDGES[min(bucket, len(EDGES) - 1)]
        return EDGES[-1]


@dataclass
class CameraStats:
    """What happened to one camera's frames."""

    explained: int = 0
    expired: int = 0
    """Explained, but too old by then to be worth showing."""
    age: Histogram = field(default_factory=Histogram)
    """Seconds from decode to the explained frame's leaving."""
    arrivals: deque[float] = field(default_factory=lambda: deque(maxlen=30))
    label: str = ""
    score: float = 0.0
    judged: int = 0
    """Frames of known truth."""
    right: int = 0
    """Those whose verdict is the true class."""
    pointed: int = 0
    """Right ones that have a true box and an explanation that says something."""
    hits: int = 0
    """Those whose hottest cell's centre lies inside a true box: the pointing game (Zhang et al. 2016)."""

    def rate(self, now: float) -> float:
        """Return frames per second over the last arrivals; 0 once nothing has come for 2 s and three intervals."""
        if len(self.arrivals) < 2:
            return 0.0
        interval = max(self.arrivals[-1] - self.arrivals[0], 1e-9) / (len(self.arrivals) - 1)
        return 0.0 if now - self.arrivals[-1] > max(2.0, 3 * interval) else 1.0 / interval


class RunStats:
    """Counts for a whole run; one writer per method, any readers."""

    def __init__(self, cameras: list[str]) -> None:
        # Guards the histograms, which are read by the progress display while frames leave.
        self._lock = threading.Lock()
        self.cameras = {name: CameraStats() for name in cameras}
        self.stages: dict[str, Histogram] = {}
        self.batches: dict[int, int] = {}
        """How often the engine was given so many frames at once."""
        self.started = time.monotonic()

    def count_batch(self, frames: int) -> None:
        """Count one batch the engine was given."""
        with self._lock:
            self.batches[frames] = self.batches.get(frames, 0) + 1

    def count_explained(self, explanation: Explanation) -> None:
        """Count one explained frame and score it where its truth is known."""
        camera = self.cameras[explanation.frame.camera]
        with self._lock:
            camera.explained += 1
            camera.arrivals.append(time.monotonic())
            if (verdict := explanation.top_scoring) is not None:
                camera.label, camera.score = verdict.label, verdict.score
            for stage, seconds in explanation.timings.items():
                self.stages.setdefault(stage, Histogram()).add(seconds)
        _judge(camera, explanation)

    def count_delivered(self, explanation: Explanation) -> None:
        """Count one frame that has been drawn and handed to the sinks."""
        with self._lock:
            self.cameras[explanation.frame.camera].age.add(explanation.frame.age_seconds())

    def count_expired(self, camera: str) -> None:
        """Count one frame that was too old to be shown when it had been explained."""
        with self._lock:
            self.cameras[camera].expired += 1

    def observe_stage(self, name: str, seconds: float) -> None:
        """Count one duration of a stage."""
        with self._lock:
            self.stages.setdefault(name, Histogram()).add(seconds)


def _judge(camera: CameraStats, explanation: Explanation) -> None:
    truth = explanation.frame.truth
    if truth is None:
        return
    camera.judged += 1
    verdict = explanation.top_scoring
    if verdict is None or verdict.label != truth.label:
        return
    camera.right += 1
    if truth.boxes:
        camera.pointed += 1
        peak = verdict.peak(explanation.region)
        camera.hits += peak is not None and any(box.holds(*peak) for box in truth.boxes)
