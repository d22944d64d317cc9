"""A sink that reads footage at the end of the pipeline, and an explainer without cost."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.frames import Explanation, Finding, Frame, Overlay
from pipeline.ports import Explainer, Sink
from tests.support.footage import Mark, read


class NullExplainer(Explainer):
    """Returns fixed findings at once, so that only the pipeline's cost is measured."""

    def explain(self, frames: Sequence[Frame]) -> Sequence[Explanation]:
        """Return the same finding for each frame."""
        finding = Finding("seen", 1.0, np.zeros((1, 1), np.float32))
        return [Explanation(frame, (finding,), "none", "none") for frame in frames]


@dataclass(frozen=True, slots=True)
class Observation:
    """One image that left the pipeline."""

    camera: str
    mark: Mark | None
    """The mark in the image; None: it cannot be read."""
    at: float
    """When it left, monotonic seconds."""
    size: tuple[int, int]
    index: int = 0
    """The frame's, as its source counts."""

    @property
    def age_seconds(self) -> float:
        """Seconds from capture to output; NaN where the mark cannot be read."""
        return float("nan") if self.mark is None else self.mark.age_seconds(self.at)


class ProbeSink(Sink):
    """Records every image; ``taken`` returns those since its last call."""

    uri = "witness:"
    lossless = True

    def __init__(self, *, looks: bool = False) -> None:
        """Request rendered images if ``looks`` is True, as a viewer does."""
        self._looks = looks
        self._lock = threading.Lock()  # guards the list: the sink's thread writes, the test reads
        self._sightings: list[Observation] = []

    def needs_image(self, camera: str) -> bool:
        """Return whether to render images."""
        return self._looks

    def put(self, overlay: Overlay) -> None:
        """Read the frame, not the drawn image; ignore overlays of signal losses."""
        if overlay.signal_loss is not None:
            return
        frame = overlay.explanation.frame
        size = (frame.width, frame.height)
        seen = Observation(frame.camera, read(frame.image), time.monotonic(), size, frame.index)
        with self._lock:
            self._sightings.append(seen)

    @property
    def sightings(self) -> list[Observation]:
        """All since the last ``taken``."""
        with self._lock:
            return list(self._sightings)

    def taken(self) -> list[Observation]:
        """Return the observations since the last call, and clear them."""
        with self._lock:
            seen, self._sightings = self._sightings, []
        return seen
