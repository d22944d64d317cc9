"""Scores and alarms of each camera in the last minute, sent to new viewers."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final, NamedTuple

HISTORY_SECONDS: Final = 60.0
STEP_SECONDS: Final = 0.5
"""Minimum time between two points in seconds; the start and end of an alarm are always recorded."""
MAX_POINTS: Final = 160
"""Maximum number of points per camera, about 20 KiB."""


class Point(NamedTuple):
    """Score and alarm of a camera at one time."""

    captured_at: float
    """Monotonic seconds."""
    score: float
    """Score of the top class, in [0, 1]."""
    is_firing: bool
    """True if a guard of the camera fires."""


@dataclass(slots=True)
class History:
    """The last points by camera. The sink's thread writes; any thread reads."""

    _points: dict[str, deque[Point]] = field(default_factory=dict)

    def record(self, camera: str, point: Point) -> None:
        """Store a point, unless less than ``STEP_SECONDS`` passed since the last one with the same alarm state."""
        points = self._points.get(camera)
        if points is None:
            points = self._points[camera] = deque(maxlen=MAX_POINTS)
        elif points and point.is_firing == points[-1].is_firing:
            gap = point.captured_at - points[-1].captured_at
            if 0.0 <= gap < STEP_SECONDS:
                return
        points.append(point)

    def forget(self, camera: str) -> None:
        """Remove the points of a camera that left the run."""
        self._points.pop(camera, None)

    def records(self, now: float, unix: float) -> dict[str, list[list[float]]]:
        """Return ``[Unix seconds, score, 1 if an alarm fires else 0]`` for each point, by camera, oldest first.

        Args:
            now: the current time in monotonic seconds.
            unix: the same time in Unix seconds.
        """
        return {
            camera: [
                [round(unix - now + point.captured_at, 2), round(point.score, 3), int(point.is_firing)]
                for point in tuple(points)
                if 0.0 <= now - point.captured_at <= HISTORY_SECONDS
            ]
            for camera, points in tuple(self._points.items())
        }
