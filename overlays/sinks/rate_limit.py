"""Rate limit of frames per camera. Pure."""

from __future__ import annotations


class RateLimiter:
    """Lets at most ``max_rate`` frames per second through, on average; None lets all through.

    Frames that come a little early or late do not change the average rate.
    """

    def __init__(self, max_rate: float | None) -> None:
        self._interval = 0.0 if max_rate is None else 1.0 / max_rate
        self._due_at: dict[str, float] = {}

    def due_at(self, camera: str) -> float:
        """Return when the camera's next frame is due, in seconds; 0 if it is due at once."""
        return self._due_at.get(camera, 0.0)

    def is_due(self, camera: str, now: float) -> bool:
        """Return whether a frame is due."""
        return now >= self.due_at(camera)

    def record(self, camera: str, now: float) -> None:
        """Record that a frame was let through."""
        if self._interval:
            due = self.due_at(camera)
            on_schedule = 0.0 <= now - due < self._interval
            self._due_at[camera] = (due if on_schedule else now) + self._interval
