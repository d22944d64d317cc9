"""Estimates the frame rate of a camera, and whether the camera is silent (delivers no frames)."""

from __future__ import annotations

from collections import deque
from typing import Final

SILENT_SECONDS: Final = 0.8
"""Minimum time without a frame after which a live camera is silent. The next rule must hold, too."""
SILENT_INTERVALS: Final = 3.0
"""Minimum time without a frame, in mean intervals between frames, after which a live camera is silent."""
_FRAMES: Final = 30
_PAUSE_SECONDS: Final = 10.0
"""After a longer gap that is also longer than ``SILENT_INTERVALS``, the estimate starts anew."""
_FIRST_PAUSE_SECONDS: Final = 60.0
"""The same limit for the gap between the first two frames, when the mean interval is not known yet."""


class FrameRate:
    """The mean interval between the last frames of a camera. One thread records; any thread reads."""

    def __init__(self) -> None:
        self.last_at: float | None = None
        """Time of the last frame, monotonic seconds; None before the first."""
        self.interval_seconds = 0.0
        """Mean time between two of the last 30 frames; 0 before the second, and after a pause."""
        self._times: deque[float] = deque(maxlen=_FRAMES)

    def record(self, now: float) -> None:
        """Record a frame."""
        times = self._times
        if times:
            longest = self.silence_limit(_PAUSE_SECONDS) if len(times) > 1 else _FIRST_PAUSE_SECONDS
            if not 0.0 <= now - times[-1] <= longest:
                times.clear()
        times.append(now)
        self.interval_seconds = (now - times[0]) / max(len(times) - 1, 1)
        self.last_at = now

    def silence_limit(self, min_seconds: float = SILENT_SECONDS) -> float:
        """Return the time in seconds after which a camera without a frame is silent, at least ``min_seconds``."""
        return max(min_seconds, SILENT_INTERVALS * self.interval_seconds)

    def is_silent(self, now: float, min_seconds: float = SILENT_SECONDS) -> bool:
        """Return whether the camera has been without a frame for longer than the limit; False before the first."""
        return self.last_at is not None and now - self.last_at > self.silence_limit(min_seconds)

    def frames_per_second(self, now: float, min_seconds: float = SILENT_SECONDS) -> float:
        """Return the frame rate; 0 while it is not known, and during silence."""
        return 0.0 if self.is_silent(now, min_seconds) or not self.interval_seconds else 1.0 / self.interval_seconds
