"""Counts parts and crossings in the explanations of a run.

``PassageMonitor`` is an explainer that wraps another explainer. It wraps the monitor of the guards, because a passage
needs the statistics of heat maps that guards compute.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

from pipeline.finite import find_non_finite
from pipeline.frames import Explanation, Frame
from pipeline.guards.heatmap_stats import stream_time
from pipeline.passages.counter import PassageCounter, Places
from pipeline.passages.passage import Passage, Place
from pipeline.ports import Explainer, ExplainerWrapper, MetricSample

log = logging.getLogger(__name__)

RATE_SECONDS: Final = 60.0
"""Time over which parts per minute are computed, on the stream's clock."""
_QUANTILES: Final = (0.5, 0.95)
_LATENCIES: Final = 1000
"""Number of parts whose times to the verdict are kept."""


@dataclass(slots=True)
class _CameraState:
    """State of one camera."""

    counter: PassageCounter
    began_at: float
    """Time of the camera's first frame, on the stream's clock."""
    seen_at: float
    finished_at: deque[float] = field(default_factory=lambda: deque(maxlen=10_000))
    """Times of the parts of the last ``RATE_SECONDS``, on the stream's clock."""
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=_LATENCIES))

    def record(self, passages: Sequence[Passage], timestamp: float) -> None:
        """Record the parts that were finished at a time on the stream's clock."""
        if timestamp < self.seen_at:
            self.finished_at.clear()
            self.began_at = timestamp
        self.seen_at = timestamp
        for passage in passages:
            if passage.kind == "part":
                self.finished_at.append(timestamp)
                self.latencies.append(passage.latency_seconds)
        while self.finished_at and timestamp - self.finished_at[0] > RATE_SECONDS:
            self.finished_at.popleft()

    @property
    def parts_per_minute(self) -> float:
        """Parts per minute over the last minute, or since the first frame if that is less than a minute."""
        seconds = min(self.seen_at - self.began_at, RATE_SECONDS)
        return 60.0 * len(self.finished_at) / seconds if seconds > 0.0 else 0.0


class PassageMonitor(ExplainerWrapper):
    """An explainer that adds parts and crossings to explanations. For one thread; ``metrics`` for any thread."""

    def __init__(
        self,
        explainer: Explainer,
        places_of: Callable[[str], Places],
        *,
        ok_default: Collection[str] = (),
    ) -> None:
        """Wrap an explainer.

        Args:
            explainer: explains the frames.
            places_of: returns the zones and lines of a camera; called at the camera's first frame.
            ok_default: the classes that are ok in zones without their own list.
        """
        super().__init__(explainer)
        self._places_of, self._ok_default = places_of, frozenset(ok_default)
        self._cameras: dict[str, _CameraState | None] = {}
        """State by camera; None for a camera without zones and lines."""
        self._left: dict[str, PassageCounter] = {}
        """Of cameras that left."""

    def submit(self, frames: Sequence[Frame]) -> Callable[[], list[Explanation]]:
        """Start a batch; return a function that waits for its explanations and counts their passages."""
        finish = self._explainer.submit(frames)
        return lambda: [item if find_non_finite(item) else self.count(item) for item in finish()]

    def count(self, explanation: Explanation) -> Explanation:
        """Return an explanation with the passages that were finished at its frame."""
        frame = explanation.frame
        if frame.camera not in self._cameras:
            self._cameras = {**self._cameras, frame.camera: self._begin(frame)}  # other threads iterate over it
        state = self._cameras[frame.camera]
        if state is None:
            return explanation
        counted = state.counter.add(explanation)
        state.record(counted.passages, stream_time(frame))
        return counted

    def _begin(self, frame: Frame) -> _CameraState | None:
        places = self._places_of(frame.camera)
        if not places:
            return None
        for zone in places.zones:
            if not _lies_inside(zone.placed(frame.width, frame.height).polygon, frame):
                _warn_of_outside("zone", zone.name, frame)
        for line in places.lines:
            if not _lies_inside(line.placed(frame.width, frame.height), frame):
                _warn_of_outside("line", line.name, frame)
        counter = PassageCounter(frame.camera, places, self._ok_default)
        if (before := self._left.get(frame.camera)) is not None:
            counter.resume(before)
        now = stream_time(frame)
        return _CameraState(counter, now, now)

    def forget_camera(self, camera: str) -> None:
        """Remove the objects of a camera that left; if it returns, its counts and sequence numbers continue."""
        super().forget_camera(camera)
        state = self._cameras.get(camera)
        self._cameras = {name: each for name, each in self._cameras.items() if name != camera}
        if state is not None:
            state.counter.end()
            state.counter.recent.clear()
            self._left[camera] = state.counter

    def summary(self) -> list[str]:
        """Return the counts as text: one line for each zone and counting line of the cameras in the run."""
        return [
            f"{place.kind} {place.name} of {camera}: {_described(place)}{_disagreements(place, state.counter)}"
            for camera, state in self._cameras.items()
            if state is not None
            for place in state.counter.counted()
        ]

    def metrics(self) -> list[MetricSample]:
        """Return the metrics of the wrapped explainer, and the metrics of parts and crossings."""
        samples = list(super().metrics())
        for camera, state in self._cameras.items():
            samples.extend(_camera_metrics(camera, state) if state is not None else ())
        return samples


def _described(place: Place) -> str:
    """Return the counts of a place as text, the largest first."""
    counts = sorted(place.counts, key=lambda each: -each.count)
    by_class = ", ".join(f"{each.count} {each.label} {each.direction}".rstrip() for each in counts)
    things = "parts" if place.kind == "zone" else "crossings"
    return f"{place.total} {things}{f' ({by_class})' if by_class else ''}"


def _disagreements(place: Place, counter: PassageCounter) -> str:
    """Return the number of passages that a network on trial decides otherwise, as text; empty without a trial."""
    kind = "part" if place.kind == "zone" else "crossing"
    count = counter.tallies[f"{kind} {place.name}"].disagreements
    return f"; the network on trial decides {count} otherwise" if counter.has_trial else ""


def _camera_metrics(camera: str, state: _CameraState) -> list[MetricSample]:
    counter, own = state.counter, ("camera", camera)
    samples = [
        MetricSample("parts_per_minute", state.parts_per_minute, "Parts in the last minute.", labels=(own,)),
        MetricSample("parts_unfinished", counter.unfinished,
                     "Parts that were in a zone when the camera left or its clock went back.", "counter", (own,)),
    ]  # fmt: skip
    parts = rejected = 0
    for name, tally in list(counter.tallies.items()):
        kind, place = name.split(" ", 1)
        if counter.has_trial:
            text = "Parts and crossings that a network on trial decides otherwise."
            where = (own, ("place", place), ("kind", kind))  # a zone and a line may have one name
            samples.append(MetricSample("part_disagreements", tally.disagreements, text, "counter", where))
        for (label, direction, is_ok), count in list(tally.counts.items()):
            labels = (own, ("place", place), ("label", label))
            if kind == "part":
                parts, rejected = parts + count, rejected + count * (is_ok is False)
                samples.append(MetricSample("parts", count, "Parts by zone and class.", "counter", labels))
            else:
                text = "Crossings of counting lines by class and direction."
                samples.append(MetricSample("crossings", count, text, "counter", (*labels, ("direction", direction))))
    ratio = rejected / parts if parts else 0.0
    samples.append(MetricSample("reject_ratio", ratio, "Fraction of the parts that are not ok.", labels=(own,)))
    ordered = sorted(state.latencies)
    for quantile in _QUANTILES if ordered else ():
        value = ordered[min(int(quantile * len(ordered)), len(ordered) - 1)]
        text = "Time from the last frame of a part to its verdict, over the last parts."
        samples.append(MetricSample("part_verdict_seconds", value, text, labels=(own, ("quantile", f"{quantile:g}"))))
    return samples


def _lies_inside(points: Sequence[tuple[float, float]], frame: Frame) -> bool:
    """Return whether the rectangle around points overlaps the frame."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return min(xs) < frame.width and min(ys) < frame.height


def _warn_of_outside(kind: str, name: str, frame: Frame) -> None:
    log.warning(
        "%s: %s %s counts nothing: it lies outside the image of %dx%d pixels", frame.camera, kind, name, frame.width,
        frame.height,
    )  # fmt: skip
