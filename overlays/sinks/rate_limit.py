"""Rate limit of frames per camera."""

from __future__ import annotations


class RateLimiter:
    """Limits the frames of each camera to ``max_rate`` frames per second on average; None: no limit.

    Frames that arrive a little early or late do not change the average rate.
    """

    def __init__(self, max_rate: float | None) -> None:
        self._interval = 0.0 if max_rate is None else 1.0 / max_rate
        self._due_at: dict[str, float] = {}

    def due_at(self, camera: str) -> float:
        """Return the time at which the camera's next frame is due, on the clock of ``record``; 0: at once."""
        return self._due_at.get(camera, 0.0)

    def is_due(self, camera: str, now: float) -> bool:
        """Return whether a frame of the camera is due at ``now``."""
        return now >= self.due_at(camera)

    def record(self, camera: str, now: float) -> None:
        """Record that a frame of the camera was passed on at ``now``."""
        if self._interval:
            due = self.due_at(camera)
            on_schedule = 0.0 <= now - due < self._interval
            self._due_at[camera] = (due if on_schedule else now) + self._interval
