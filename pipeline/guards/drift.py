"""Whether scores and their reasons are still what they were: slow statistics against a recorded baseline.

A baseline holds, for each camera and label, how each number was spread over a time that was good: its mean, its
standard deviation, and the edges of ``BINS`` bins that held about as many samples each. Live, the same numbers are
sampled as slowly (a part on a belt is seen in many frames, and says the same in all of them), older samples counting
less by exp(-age / time constant). Two figures are made of them:

    psi   = sum_b (q_b - p_b) ln(q_b / p_b)       p, q: shares of samples in bin b, baseline and now
    shift = (mean now - mean then) / std then

``psi`` is the population stability index of credit scoring (Siddiqi, *Credit Risk Scorecards*, Wiley 2006), which is
Jeffreys' divergence (1946) of the two histograms; below 0.1 is taken for no change there and above 0.25 for a great
one. By chance alone it comes to about (BINS - 1) (1/n + 1/m) for n samples then and m now, so nothing is reported of
fewer than ``MIN_SAMPLES``. ``shift`` has a direction. Pure, but for what is counted.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from pipeline.errors import ConfigError
from pipeline.frames import Explanation
from pipeline.guards.heatmap_stats import stream_time
from pipeline.guards.variables import NUMBERS, RuleContext

BINS: Final = 5
MIN_SAMPLES: Final = 30
SAMPLE_SECONDS: Final = 1.0
"""One frame of a camera and label counts in so many seconds."""
FORMAT: Final = "recipro-stream baseline 1"
_STATISTICS: Final = ("score", "focus_area", "entropy", "stability", "centre_x", "centre_y")
_MIN_STD: Final = 1e-6


def numbers_of(explanation: Explanation) -> dict[str, float]:
    """Return what is known of the verdict's score and reasons, by name."""
    verdict = explanation.top_scoring
    if verdict is None:
        return {}
    facts = RuleContext(explanation, verdict, explanation.deletion)
    numbers = {name: NUMBERS[name].read(facts) for name in _STATISTICS}
    if verdict.heatmap_stats is not None:
        numbers |= {f"heat_inside({name})": fraction for name, fraction in verdict.heatmap_stats.heat_inside.items()}
    return {name: value for name, value in numbers.items() if value is not None}


def psi(expected: Sequence[float], actual: Sequence[float]) -> float:
    """Return the population stability index of two lists of shares, none of them 0; the module's first lines tell."""
    return sum((q - p) * math.log(q / p) for p, q in zip(expected, actual, strict=True))


class Sampler:
    """Which frames count: one of each camera and label in ``SAMPLE_SECONDS``."""

    def __init__(self) -> None:
        self._accepted_at: dict[tuple[str, str], float] = {}

    def accepts(self, explanation: Explanation) -> bool:
        """Say whether this frame counts, and take note of it if so."""
        verdict = explanation.top_scoring
        if verdict is None:
            return False
        named, timestamp = (explanation.frame.camera, verdict.label), stream_time(explanation.frame)
        if 0.0 <= timestamp - self._accepted_at.get(named, -math.inf) < SAMPLE_SECONDS:
            return False
        self._accepted_at[named] = timestamp
        return True


class BaselineRecorder:
    """Collects what a baseline is made of."""

    def __init__(self) -> None:
        self._sampler = Sampler()
        self._samples: dict[str, dict[str, dict[str, list[float]]]] = {}
        self._counts: dict[tuple[str, str], int] = {}

    def add(self, explanation: Explanation) -> None:
        """Take one measured frame."""
        verdict = explanation.top_scoring
        if verdict is None or not self._sampler.accepts(explanation):
            return
        camera = explanation.frame.camera
        self._counts[camera, verdict.label] = self._counts.get((camera, verdict.label), 0) + 1
        kept = self._samples.setdefault(camera, {}).setdefault(verdict.label, {})
        for name, value in numbers_of(explanation).items():
            kept.setdefault(name, []).append(value)

    def baseline(self) -> dict[str, Any]:
        """Return what was collected, as plain JSON values."""
        cameras = {
            camera: {
                label: {
                    "samples": self._counts[camera, label],
                    "statistics": {name: _spread(values) for name, values in sorted(numbers.items())},
                }
                for label, numbers in sorted(labels.items())
            }
            for camera, labels in sorted(self._samples.items())
        }
        return {"format": FORMAT, "sample_seconds": SAMPLE_SECONDS, "cameras": cameras}


def _spread(values: Sequence[float]) -> dict[str, Any]:
    array = np.asarray(values, np.float64)
    quantiles = np.quantile(array, np.linspace(0.0, 1.0, 11))
    edges, met = np.unique(np.quantile(array, np.linspace(0.0, 1.0, BINS + 1)[1:-1]), return_counts=True)
    # A value so common that it is several quantiles at once has a bin of its own: there is a bin on either side.
    edges = np.unique(np.concatenate([edges, np.nextafter(edges[met > 1], np.inf)]))
    counts = np.bincount(np.searchsorted(edges, array, side="right"), minlength=len(edges) + 1)
    return {
        "count": len(array),
        "mean": float(array.mean()),
        "std": float(array.std()),
        "quantiles": quantiles.tolist(),
        "edges": edges.tolist(),
        "shares": (counts / len(array)).tolist(),
    }


@dataclass(slots=True)
class _Slow:
    """One number of one camera and label: then, and now."""

    count_then: int
    mean_then: float
    std_then: float
    edges: tuple[float, ...]
    fractions: tuple[float, ...]
    counts: list[float] = field(default_factory=list)
    total: float = 0.0
    """Of the samples' values, each weighed by its age."""

    def __post_init__(self) -> None:
        self.counts = [0.0] * len(self.fractions)

    def add(self, value: float, keep: float) -> None:
        self.counts = [keep * count for count in self.counts]
        self.counts[bisect_right(self.edges, value)] += 1.0
        self.total = keep * self.total + value

    @property
    def samples(self) -> float:
        return sum(self.counts)

    def psi(self) -> float:
        """Return the index; half a sample is added to every bin, so that an empty one is no infinity."""
        return psi(
            _smoothed([fraction * self.count_then for fraction in self.fractions], self.count_then),
            _smoothed(self.counts, self.samples),
        )

    def shift(self) -> float:
        return (self.total / self.samples - self.mean_then) / max(self.std_then, _MIN_STD)


def _smoothed(counts: Sequence[float], total: float) -> list[float]:
    return [(count + 0.5) / (total + 0.5 * len(counts)) for count in counts]


@dataclass(frozen=True, slots=True)
class DriftReport:
    """How far one number has come away from its baseline."""

    camera: str
    label: str
    statistic: str
    psi: float
    shift: float
    samples: float
    """How many count now, older ones less."""


class DriftDetector:
    """Compares what comes with a baseline. Written by one thread; ``told`` may be asked by any."""

    def __init__(self, baseline: Mapping[str, Any], seconds: float, name: str = "baseline") -> None:
        """Take a baseline and the time constant.

        Args:
            baseline: as ``BaselineRecorder`` gave it.
            seconds: older samples count less by exp(-age / seconds).
            name: its file's, for messages.

        Raises:
            ConfigError: it is no baseline.
        """
        self._seconds = seconds
        self._sampler = Sampler()
        self._last: dict[tuple[str, str], float] = {}
        self._trackers = _read(baseline, name)

    @property
    def cameras(self) -> set[str]:
        """Whom the baseline knows."""
        return {camera for camera, _ in self._trackers}

    @property
    def labels(self) -> set[str]:
        """Which classes it knows."""
        return {label for _, label in self._trackers}

    def add(self, explanation: Explanation) -> None:
        """Take one measured frame."""
        verdict = explanation.top_scoring
        if verdict is None or not self._sampler.accepts(explanation):
            return
        named, timestamp = (explanation.frame.camera, verdict.label), stream_time(explanation.frame)
        passed = max(timestamp - self._last.get(named, timestamp), 0.0)
        self._last[named] = timestamp
        known, keep = self._trackers.get(named, {}), math.exp(-passed / self._seconds)
        for name, value in numbers_of(explanation).items():
            if name in known:
                known[name].add(value, keep)

    def reports(self) -> Iterator[DriftReport]:
        """Give every number of which enough samples came, then and now."""
        for (camera, label), numbers in self._trackers.items():
            for name, slow in numbers.items():
                if min(slow.samples, slow.count_then) >= MIN_SAMPLES:
                    yield DriftReport(camera, label, name, slow.psi(), slow.shift(), slow.samples)


def read_baseline(text: str, name: str) -> dict[str, Any]:
    """Read what ``run.py baseline`` wrote.

    Raises:
        ConfigError: it is none.
    """
    try:
        told = json.loads(text)
    except (ValueError, RecursionError) as reason:
        raise ConfigError(f"{name}: not a baseline ({reason}); make one: run.py baseline CONFIG -o {name}") from None
    _read(told, name)
    return dict(told)


def _slow(spread: Mapping[str, Any]) -> _Slow:
    edges, fractions = tuple(map(float, spread["edges"])), tuple(map(float, spread["shares"]))
    read = _Slow(int(spread["count"]), float(spread["mean"]), float(spread["std"]), edges, fractions)
    if not all(map(math.isfinite, (read.mean_then, read.std_then, *edges, *fractions))):
        raise ValueError("a number that is not finite")
    if list(edges) != sorted(edges) or min(fractions, default=0.0) < 0.0 or read.count_then < 0 or read.std_then < 0.0:
        raise ValueError("edges out of order, or a negative count, share or deviation")
    return read


def _read(baseline: Mapping[str, Any], name: str) -> dict[tuple[str, str], dict[str, _Slow]]:
    known = baseline.get("format") if isinstance(baseline, Mapping) else None
    if known != FORMAT:
        raise ConfigError(f"{name}: not a baseline of this version ({known!r}, not {FORMAT!r}); make it anew")
    try:
        return {
            (camera, label): {
                number: _slow(spread)
                for number, spread in told["statistics"].items()
                if len(spread["shares"]) == len(spread["edges"]) + 1
            }
            for camera, labels in baseline["cameras"].items()
            for label, told in labels.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as reason:
        raise ConfigError(f"{name}: a damaged baseline ({reason!r}); make it anew: run.py baseline") from None
