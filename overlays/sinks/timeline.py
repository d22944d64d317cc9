"""Computes presentation times of recorded frames from the stream's clock, corrected to be monotonic."""

from __future__ import annotations

from typing import Final

TICKS_PER_SECOND: Final = 90_000
"""The clock rate of MPEG (ISO/IEC 13818-1): the interval at 30, 25 and 24 frames per second is a whole number."""
_LATE_TICKS: Final = 90
"""One millisecond, the time base of Matroska."""
_MAX_GAP_SECONDS: Final = 6 * 3600.0
"""Maximum pause; a larger jump means that the clock was changed."""


class Timeline:
    """Converts the times of frames to ticks that start at 0 and strictly increase.

    A stream has one clock: ``pts_seconds`` if its first frame has it, else ``captured_at``. If the clock goes back (a
    loop, a reconnect), stands still, jumps by hours or is missing, the frame gets the time of the previous frame plus
    the previous interval. A frame that was captured before the end of an already recorded signal loss follows the
    previous frame at once.
    """

    def __init__(self, fallback_rate: float = 30.0) -> None:
        """Set the frames per second for frames without a time."""
        self._step = max(1, round(TICKS_PER_SECOND / fallback_rate))
        self._ticks: int | None = None
        self._last_seconds: float | None = None
        self._live_seconds: float | None = None
        """Time of the last frame that was not repeated during a signal loss."""
        self._uses_pts = True
        self._origin = 0.0

    @property
    def step_ticks(self) -> int:
        """Duration of the last frame in ticks."""
        return self._step

    def ticks(self, pts_seconds: float | None, captured_at: float, *, silent_seconds: float = 0.0) -> int:
        """Return the presentation time of the next frame in ticks.

        Args:
            pts_seconds: the frame's presentation time, if it has one.
            captured_at: the frame's capture time, monotonic seconds.
            silent_seconds: seconds since the last frame if it is repeated during a signal loss, else 0.
        """
        if self._ticks is None:
            self._uses_pts = pts_seconds is not None
        seconds = pts_seconds if self._uses_pts else captured_at
        if seconds is not None:
            seconds += silent_seconds
        if self._ticks is None:
            self._ticks = 0
            self._origin = seconds or 0.0
        else:
            self._ticks = self._next(self._ticks, seconds)
        if seconds is not None:
            self._last_seconds = seconds
            self._live_seconds = self._live_seconds if silent_seconds else seconds
        return self._ticks

    def _next(self, before: int, seconds: float | None) -> int:
        last = self._last_seconds
        live = self._live_seconds
        if seconds is not None and last is not None and live is not None and live < seconds < last:
            return before + _LATE_TICKS
        if seconds is None or last is None or not 0.0 < seconds - last < _MAX_GAP_SECONDS:
            now = before + self._step
            if seconds is not None:
                self._origin = seconds - now / TICKS_PER_SECOND
            return now
        now = max(round((seconds - self._origin) * TICKS_PER_SECOND), before + 1)
        self._step = now - before
        return now
