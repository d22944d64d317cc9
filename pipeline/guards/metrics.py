"""Metrics of guards and heat maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.frames import Explanation
from pipeline.guards.drift import numbers_of
from pipeline.guards.state import GuardState
from pipeline.ports import MetricSample


def guard_metrics(camera: str, states: Sequence[GuardState]) -> Iterator[MetricSample]:
    """Yield two metrics for each guard of a camera: whether it fires, and how often it started to fire."""
    for state in states:
        labels = (("camera", camera), ("guard", state.name))
        yield MetricSample("guard_firing", float(state.firing), "1 while a guard fires.", labels=labels)
        yield MetricSample("guard_fired", state.fire_count, "How often a guard started to fire.", "counter", labels)


def heatmap_metrics(explanation: Explanation) -> Iterator[MetricSample]:
    """Yield the statistics of an explanation's top class, and the result of the camera's last deletion check."""
    camera = explanation.frame.camera
    for name, value in numbers_of(explanation).items():
        if name == "score":
            continue  # published as recipro_score
        if name.startswith("heat_inside("):
            region = name[len("heat_inside(") : -1]
            text = "Fraction of the newest top class's evidence that lies in a region."
            yield MetricSample("heat_inside", value, text, labels=(("camera", camera), ("region", region)))
        else:
            text = f"{name} of the newest top class's heat map; see docs/guards.md."
            yield MetricSample(name, value, text, labels=(("camera", camera),))
    if explanation.deletion is not None:
        text = "Drop of the score with the hottest area masked, in the camera's last deletion check."
        yield MetricSample("score_drop_when_masked", explanation.deletion.drop, text, labels=(("camera", camera),))
