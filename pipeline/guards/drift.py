"""Drift detection: compares scores and heat-map statistics with a recorded baseline.

A baseline has the distribution of each statistic by camera and label over a period of normal operation: mean, standard
deviation, and the edges of ``BINS`` bins with about equally many samples. During a run, the same statistics are sampled
at the same low rate (consecutive frames of a part on a belt are similar), and samples are weighted by
exp(-age / time constant). Two numbers describe the drift:

    psi   = sum_b (q_b - p_b) ln(q_b / p_b)       p, q: fractions of samples in bin b, baseline and now
    shift = (mean now - mean of baseline) / std of baseline

``psi`` is the population stability index of credit scoring (Siddiqi, *Credit Risk Scorecards*, Wiley 2006), which is
Jeffreys' divergence (1946) of the two histograms; below 0.1 counts as no change and above 0.25 as a large change.
Without any drift, its expected value is about (BINS - 1) (1/n + 1/m) for n samples in the baseline and m current
samples, so it is not reported for fewer than ``MIN_SAMPLES`` samples.

``bound`` is the value from which ``psi`` means a large and significant drift: 0.25, or more if there are few samples.
For n and m independent samples of one distribution, ``psi / (1/n + 1/m)`` follows a chi-squared distribution with
bins - 1 degrees of freedom (Yurdakul and Naranjo, *Statistical properties of the population stability index*, Journal
of Risk Model Validation, 2020); it exceeds the bound with a probability of 0.0001. No I/O.
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
"""Minimum time between two samples of a camera and label."""
FORMAT: Final = "recipro-stream baseline 1"
_STATISTICS: Final = ("score", "focus_area", "entropy", "stability", "centre_x", "centre_y")
_MIN_STD: Final = 1e-6
LARGE_PSI: Final = 0.25
_QUANTILE: Final = 3.719
"""Quantile of the standard normal distribution at 0.9999."""


def numbers_of(explanation: Explanation) -> dict[str, float]:
    """Return the score and heat-map statistics of an explanation's top class by name, without unknown values."""
    verdict = explanation.top_scoring
    if verdict is None:
        return {}
    facts = RuleContext(explanation, verdict, explanation.deletion)
    numbers = {name: NUMBERS[name].read(facts) for name in _STATISTICS}
    if verdict.heatmap_stats is not None:
        numbers |= {f"heat_inside({name})": fraction for name, fraction in verdict.heatmap_stats.heat_inside.items()}
    return {name: value for name, value in numbers.items() if value is not None}


def psi(expected: Sequence[float], actual: Sequence[float]) -> float:
    """Return the population stability index of two histograms; see the module docstring.

    Args:
        expected: fraction of the baseline's samples in each bin, all above 0.
        actual: fraction of the current samples in each bin, all above 0.
    """
    return sum((q - p) * math.log(q / p) for p, q in zip(expected, actual, strict=True))


def psi_bound(bins: int, baseline_samples: float, samples: float) -> float:
    """Return the ``psi`` from which a drift is large and significant; see the module docstring.

    The quantile of the chi-squared distribution is approximated by Wilson and Hilferty (1931).
    """
    freedom = max(bins - 1, 1)
    spread = 2.0 / (9.0 * freedom)
    chi_squared = freedom * (1.0 - spread + _QUANTILE * math.sqrt(spread)) ** 3
    return max(LARGE_PSI, chi_squared * (1.0 / baseline_samples + 1.0 / samples))


class Sampler:
    """Selects one frame of each camera and label per ``SAMPLE_SECONDS``."""

    def __init__(self) -> None:
        self._accepted_at: dict[tuple[str, str], float] = {}

    def accepts(self, explanation: Explanation) -> bool:
        """Return whether a frame is a sample, and record the time of a sample."""
        verdict = explanation.top_scoring
        if verdict is None:
            return False
        key, timestamp = (explanation.frame.camera, verdict.label), stream_time(explanation.frame)
        if 0.0 <= timestamp - self._accepted_at.get(key, -math.inf) < SAMPLE_SECONDS:
            return False
        self._accepted_at[key] = timestamp
        return True


class BaselineRecorder:
    """Collects the samples of a baseline."""

    def __init__(self) -> None:
        self._sampler = Sampler()
        self._samples: dict[str, dict[str, dict[str, list[float]]]] = {}
        self._counts: dict[tuple[str, str], int] = {}

    def add(self, explanation: Explanation) -> None:
        """Add an explanation with statistics."""
        verdict = explanation.top_scoring
        if verdict is None or not self._sampler.accepts(explanation):
            return
        camera = explanation.frame.camera
        self._counts[camera, verdict.label] = self._counts.get((camera, verdict.label), 0) + 1
        samples = self._samples.setdefault(camera, {}).setdefault(verdict.label, {})
        for name, value in numbers_of(explanation).items():
            samples.setdefault(name, []).append(value)

    def baseline(self) -> dict[str, Any]:
        """Return the baseline as JSON values."""
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
    edges, repeats = np.unique(np.quantile(array, np.linspace(0.0, 1.0, BINS + 1)[1:-1]), return_counts=True)
    # A value that equals several quantiles gets its own bin.
    edges = np.unique(np.concatenate([edges, np.nextafter(edges[repeats > 1], np.inf)]))
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
class _Tracker:
    """The baseline and the current distribution of one statistic for one camera and label."""

    baseline_count: int
    baseline_mean: float
    baseline_std: float
    edges: tuple[float, ...]
    fractions: tuple[float, ...]
    counts: list[float] = field(default_factory=list)
    total: float = 0.0
    """Sum of the samples, weighted by age."""

    def __post_init__(self) -> None:
        self.counts = [0.0] * len(self.fractions)

    def add(self, value: float, decay: float) -> None:
        self.counts = [decay * count for count in self.counts]
        self.counts[bisect_right(self.edges, value)] += 1.0
        self.total = decay * self.total + value

    @property
    def samples(self) -> float:
        return sum(self.counts)

    def psi(self) -> float:
        """Return the population stability index; half a sample is added to every bin to keep it finite."""
        return psi(
            _smoothed([fraction * self.baseline_count for fraction in self.fractions], self.baseline_count),
            _smoothed(self.counts, self.samples),
        )

    def shift(self) -> float:
        return (self.total / self.samples - self.baseline_mean) / max(self.baseline_std, _MIN_STD)


def _smoothed(counts: Sequence[float], total: float) -> list[float]:
    return [(count + 0.5) / (total + 0.5 * len(counts)) for count in counts]


@dataclass(frozen=True, slots=True)
class DriftReport:
    """Drift of one statistic from its baseline."""

    camera: str
    label: str
    statistic: str
    psi: float
    shift: float
    samples: float
    """Number of current samples, weighted by age."""
    bound: float
    """The ``psi`` from which the drift is large and significant."""


class DriftDetector:
    """Compares explanations with a baseline. ``add`` is for one thread, ``reports`` for any thread."""

    def __init__(self, baseline: Mapping[str, Any], seconds: float, name: str = "baseline") -> None:
        """Create a detector without current samples.

        Args:
            baseline: result of ``BaselineRecorder.baseline``.
            seconds: time constant; samples are weighted by exp(-age / seconds).
            name: file name of the baseline, for messages.

        Raises:
            ConfigError: the baseline is not valid.
        """
        self._seconds = seconds
        self._sampler = Sampler()
        self._last: dict[tuple[str, str], float] = {}
        self._trackers = _read(baseline, name)

    @property
    def cameras(self) -> set[str]:
        """The cameras of the baseline."""
        return {camera for camera, _ in self._trackers}

    @property
    def labels(self) -> set[str]:
        """The classes of the baseline."""
        return {label for _, label in self._trackers}

    def add(self, explanation: Explanation) -> None:
        """Add an explanation with statistics."""
        verdict = explanation.top_scoring
        if verdict is None or not self._sampler.accepts(explanation):
            return
        key, timestamp = (explanation.frame.camera, verdict.label), stream_time(explanation.frame)
        passed = max(timestamp - self._last.get(key, timestamp), 0.0)
        self._last[key] = timestamp
        known, decay = self._trackers.get(key, {}), math.exp(-passed / self._seconds)
        for name, value in numbers_of(explanation).items():
            if name in known:
                known[name].add(value, decay)

    def reports(self) -> Iterator[DriftReport]:
        """Yield the drift of each statistic with at least ``MIN_SAMPLES`` baseline and current samples."""
        for (camera, label), numbers in self._trackers.items():
            for name, tracker in numbers.items():
                if min(tracker.samples, tracker.baseline_count) >= MIN_SAMPLES:
                    bound = psi_bound(len(tracker.fractions), tracker.baseline_count, tracker.samples)
                    yield DriftReport(camera, label, name, tracker.psi(), tracker.shift(), tracker.samples, bound)


def read_baseline(text: str, name: str) -> dict[str, Any]:
    """Parse a file that ``run.py baseline`` wrote.

    Raises:
        ConfigError: the file is not a baseline.
    """
    try:
        baseline = json.loads(text)
    except (ValueError, RecursionError) as reason:
        raise ConfigError(f"{name}: not a baseline ({reason}); record one: run.py baseline CONFIG -o {name}") from None
    _read(baseline, name)
    return dict(baseline)


def _parse_tracker(spread: Mapping[str, Any]) -> _Tracker:
    edges, fractions = tuple(map(float, spread["edges"])), tuple(map(float, spread["shares"]))
    tracker = _Tracker(int(spread["count"]), float(spread["mean"]), float(spread["std"]), edges, fractions)
    if not all(map(math.isfinite, (tracker.baseline_mean, tracker.baseline_std, *edges, *fractions))):
        raise ValueError("a number is not finite")
    if list(edges) != sorted(edges):
        raise ValueError("the edges are not in ascending order")
    if min(fractions, default=0.0) < 0.0 or tracker.baseline_count < 0 or tracker.baseline_std < 0.0:
        raise ValueError("a count, fraction or standard deviation is negative")
    return tracker


def _read(baseline: Mapping[str, Any], name: str) -> dict[tuple[str, str], dict[str, _Tracker]]:
    version = baseline.get("format") if isinstance(baseline, Mapping) else None
    if version != FORMAT:
        raise ConfigError(
            f"{name}: its format {version!r} is not {FORMAT!r}; record the baseline again: run.py baseline"
        )
    try:
        return {
            (camera, label): {
                number: _parse_tracker(spread)
                for number, spread in entry["statistics"].items()
                if len(spread["shares"]) == len(spread["edges"]) + 1
            }
            for camera, labels in baseline["cameras"].items()
            for label, entry in labels.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as reason:
        raise ConfigError(
            f"{name}: the baseline is damaged ({type(reason).__name__}: {reason}); record a new one: run.py baseline"
        ) from None
