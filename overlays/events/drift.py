"""Derives drift observations from the metrics of a run."""

from __future__ import annotations

from collections.abc import Iterable

from overlays.events.event import Figure, Observation
from pipeline.ports import MetricSample

_Key = tuple[str, str, str]
"""(camera, label, statistic)."""
_PSI, _BOUND, _SHIFT = "drift_psi", "drift_psi_bound", "drift_shift"


class DriftObserver:
    """Finds drift with hysteresis: drift starts at the bound of the PSI, and ends below half of the bound."""

    def __init__(self) -> None:
        self._drifting: set[_Key] = set()

    def observe(self, samples: Iterable[MetricSample]) -> dict[str, list[Observation]]:
        """Return the current drift by camera, with one observation per label.

        Args:
            samples: the current metrics of the run.
        """
        values = _by_statistic(samples)
        large = {key for key, of in values.items() if of[_PSI] >= of[_BOUND]}
        stays = {key for key in self._drifting & values.keys() if values[key][_PSI] >= values[key][_BOUND] / 2.0}
        self._drifting = large | stays
        groups: dict[tuple[str, str], list[_Key]] = {}
        for key in sorted(self._drifting):
            groups.setdefault(key[:2], []).append(key)
        observed: dict[str, list[Observation]] = {}
        for (camera, label), keys in groups.items():
            furthest = max(keys, key=lambda key: values[key][_PSI] / values[key][_BOUND])
            found = _observation(label, furthest[2], values[furthest], len(keys) - 1)
            observed.setdefault(camera, []).append(found)
        return observed


def _by_statistic(samples: Iterable[MetricSample]) -> dict[_Key, dict[str, float]]:
    values: dict[_Key, dict[str, float]] = {}
    for sample in samples:
        if sample.name in {_PSI, _BOUND, _SHIFT}:
            labels = dict(sample.labels)
            key = (labels["camera"], labels["label"], labels["statistic"])
            values.setdefault(key, {})[sample.name] = sample.value
    return {key: of for key, of in values.items() if of.keys() == {_PSI, _BOUND, _SHIFT}}


def _observation(label: str, statistic: str, of: dict[str, float], others: int) -> Observation:
    text = f"{statistic} of {label}: population stability index {of[_PSI]:.2f}, bound {of[_BOUND]:.2f}; "
    text += f"mean {of[_SHIFT]:+.1f} standard deviations of the baseline"
    if others:
        text += f"; {others} further {'statistic' if others == 1 else 'statistics'}"
    figure = Figure(f"PSI of {statistic}", of[_PSI], of[_BOUND], of[_BOUND] - of[_PSI])
    return Observation("drift", f"drift of {label}", text, figure=figure)
