"""When the next frame of a camera is due, where a sink gives only so many a second. Pure."""

from __future__ import annotations


class RateLimiter:
    """Lets at most ``max_rate`` frames a second through, on average; None lets all through.

    Where frames come a little early or late, the pace is kept over several of them.
    """

    def __init__(self, max_rate: float | None) -> None:
        self._interval = 0.0 if max_rate is None else 1.0 / max_rate
        self._due_at: dict[str, float] = {}

    def due_at(self, camera: str) -> float:
        """Return when the camera's next frame is due, in seconds; 0 where one is due at once."""
        return self._due_at.get(camera, 0.0)

    def is_due(self, camera: str, now: float) -> bool:
        """Say whether one is due."""
        return now >= self.due_at(camera)

    def record(self, camera: str, now: float) -> None:
        """Take note that one was let through."""
        if self._interval:
            due = self.due_at(camera)
            kept = 0.0 <= now - due < self._interval
            self._due_at[camera] = (due if kept else now) + self._interval
