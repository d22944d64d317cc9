"""Where the newest heat of a camera lies, and how its guards stand, as figures of metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.frames import Explanation, GuardState
from pipeline.guards.drift import numbers_of
from pipeline.ports import MetricSample


def guard_metrics(camera: str, states: Sequence[GuardState]) -> Iterator[MetricSample]:
    """Give whether each guard of a camera fires, and how often it began to."""
    for state in states:
        labels = (("camera", camera), ("guard", state.name))
        yield MetricSample("guard_firing", float(state.firing), "1 while a guard fires.", labels=labels)
        yield MetricSample("guard_fired", state.fire_count, "Times a guard began to fire.", "counter", labels)


def heatmap_metrics(seen: Explanation) -> Iterator[MetricSample]:
    """Give the numbers of an explanation's verdict, and what its camera's last deletion check found."""
    camera = seen.frame.camera
    for name, value in numbers_of(seen).items():
        if name == "score":
            continue  # recipro_score is told already
        if name.startswith("heat_inside("):
            region = name[len("heat_inside(") : -1]
            said = "Share of the newest verdict's evidence that lies in a region."
            yield MetricSample("heat_inside", value, said, labels=(("camera", camera), ("region", region)))
        else:
            said = f"{name} of the newest verdict's heat; docs/guards.md tells what it is."
            yield MetricSample(name, value, said, labels=(("camera", camera),))
    if seen.deletion is not None:
        said = "How much of the score went with the hottest area, in the camera's last deletion check."
        yield MetricSample("score_drop_when_masked", seen.deletion.drop, said, labels=(("camera", camera),))
