"""Counters and latency histograms of a run. No threads, no output."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Final

from pipeline.drops import FrameCounts
from pipeline.frame_rate import FrameRate
from pipeline.frames import Explanation

EDGES = tuple(1e-4 * 10 ** (k / 20) for k in range(121))
"""Bucket edges from 0.1 ms to 100 s, 12 % apart."""


_SILENT_SECONDS: Final = 2.0
"""Minimum time without an explained frame that counts as silence; frames come in batches, so it is not shorter."""


class Histogram:
    """A histogram of durations with buckets 12 % apart; it estimates quantiles in constant memory."""

    def __init__(self) -> None:
        self.counts = [0] * (len(EDGES) + 1)
        self.count = 0
        self.total_seconds = 0.0

    def add(self, seconds: float) -> None:
        """Count a duration in seconds; a negative one, from two clocks that differ, as 0."""
        self.counts[bisect_left(EDGES, seconds)] += 1
        self.count += 1
        if seconds > 0.0:
            self.total_seconds += seconds

    def quantile(self, fraction: float) -> float:
        """Return a quantile in seconds with an error of at most one bucket; 0 if the histogram is empty.

        Args:
            fraction: 0 to 1, such as 0.95.
        """
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
    """Counters of the explained frames of one camera."""

    explained: int = 0
    age: Histogram = field(default_factory=Histogram)
    """Seconds from decoding to the sinks' queues."""
    frame_rate: FrameRate = field(default_factory=FrameRate)
    label: str = ""
    score: float = 0.0
    judged: int = 0
    """Frames with ground truth."""
    right: int = 0
    """Frames with ground truth whose top class is the true class."""
    pointed: int = 0
    """Frames of ``right`` that have a true box."""
    hits: int = 0
    """Frames of ``pointed`` whose hottest cell has its centre in a true box: the pointing game (Zhang et al. 2016)."""

    def rate(self, now: float) -> float:
        """Return the rate of the last frames; 0 if none came for 2 s, or for three mean intervals if longer."""
        return self.frame_rate.frames_per_second(now, _SILENT_SECONDS)


class RunStats:
    """Counters of a run. Thread-safe."""

    def __init__(self, cameras: list[str]) -> None:
        # Guards the histograms: the progress display reads them while other threads count.
        self._lock = threading.Lock()
        self.cameras = {name: CameraStats() for name in cameras}
        self.frames = FrameCounts()
        """Delivered and dropped frames."""
        self.stages: dict[str, Histogram] = {}
        self.batches: dict[int, int] = {}
        """Number of batches by their number of frames."""
        self.started = time.monotonic()

    def add_camera(self, name: str) -> None:
        """Add a camera; a camera that was added before keeps its counts."""
        # Replaced as a whole: other threads iterate over it.
        self.cameras = {**self.cameras, name: self.cameras.get(name) or CameraStats()}

    def count_batch(self, frames: int) -> None:
        """Count a batch of ``frames`` frames that was passed to the engine."""
        with self._lock:
            self.batches[frames] = self.batches.get(frames, 0) + 1

    def count_explained(self, explanation: Explanation) -> None:
        """Count an explained frame, and compare it with the ground truth where the frame has one."""
        camera = self.cameras[explanation.frame.camera]
        with self._lock:
            camera.explained += 1
            camera.frame_rate.record(time.monotonic())
            if (verdict := explanation.top_scoring) is not None:
                camera.label, camera.score = verdict.label, verdict.score
            for stage, seconds in explanation.timings.items():
                self.stages.setdefault(stage, Histogram()).add(seconds)
        _judge(camera, explanation)

    def observe_age(self, explanation: Explanation) -> None:
        """Count the age of a frame that has been drawn and put into the sinks' queues."""
        with self._lock:
            self.cameras[explanation.frame.camera].age.add(explanation.frame.age_seconds())

    def observe_stage(self, name: str, seconds: float) -> None:
        """Count a duration of a stage."""
        with self._lock:
            self.stages.setdefault(name, Histogram()).add(seconds)


def _judge(camera: CameraStats, explanation: Explanation) -> None:
    truth, verdict = explanation.frame.truth, explanation.top_scoring
    if truth is None or verdict is None or verdict.box is not None:
        return  # the ground truth is a class of the whole image; a detector classifies boxes
    camera.judged += 1
    if verdict.label != truth.label:
        return
    camera.right += 1
    if truth.boxes:
        camera.pointed += 1
        peak = verdict.peak(explanation.region)
        camera.hits += peak is not None and any(box.holds(*peak) for box in truth.boxes)
