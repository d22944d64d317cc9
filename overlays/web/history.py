"""The last minute of each camera: scores and alarms, for viewers that have just come."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final, NamedTuple

HISTORY_SECONDS: Final = 60.0
STEP_SECONDS: Final = 0.5
"""Shortest time between two points, unless an alarm begins or ends."""
MAX_POINTS: Final = 160
"""Points that are kept of a camera, in about 20 KiB."""


class Point(NamedTuple):
    """A camera at one time."""

    captured_at: float
    """Monotonic seconds."""
    score: float
    """Score of the top class, in [0, 1]."""
    is_firing: bool
    """True if a guard fired."""


@dataclass(slots=True)
class History:
    """The last points by camera. The sink's thread writes; any thread reads."""

    _points: dict[str, deque[Point]] = field(default_factory=dict)

    def record(self, camera: str, point: Point) -> None:
        """Keep a point, unless it says the same as the one before it."""
        points = self._points.get(camera)
        if points is None:
            points = self._points[camera] = deque(maxlen=MAX_POINTS)
        elif points and point.is_firing == points[-1].is_firing:
            gap = point.captured_at - points[-1].captured_at
            if 0.0 <= gap < STEP_SECONDS:
                return
        points.append(point)

    def forget(self, camera: str) -> None:
        """Remove the points of a camera that left."""
        self._points.pop(camera, None)

    def records(self, now: float, unix: float) -> dict[str, list[list[float]]]:
        """Return ``[Unix seconds, score, 1 for an alarm]`` by camera, the oldest first, for times on two clocks."""
        return {
            camera: [
                [round(unix - now + point.captured_at, 2), round(point.score, 3), int(point.is_firing)]
                for point in tuple(points)
                if 0.0 <= now - point.captured_at <= HISTORY_SECONDS
            ]
            for camera, points in tuple(self._points.items())
        }
