"""The stream clock: strictly increasing seconds from 0."""

from __future__ import annotations

_MISORDERED_SECONDS = 1.0  # a smaller step back means frames out of order, a larger one a clock that was reset
_MIN_STEP_SECONDS = 0.001  # minimum distance of two frames, even if their timestamps are equal


class StreamClock:
    """Converts presentation times to increasing seconds from the first frame.

    Live frames also have an arrival time. If the stream's clock differs from the arrival times by more than
    ``slack_seconds``, the clock is reset to the arrival times. Frames of files have no arrival times, and gaps in their
    timestamps are kept: a recording triggered by motion contains real gaps.
    """

    def __init__(self, *, step_seconds: float = 0.04, slack_seconds: float = 3.0) -> None:
        """Create a clock that advances by ``step_seconds`` for frames without a known time."""
        self._step = step_seconds
        self._slack = slack_seconds
        self._offset: float | None = None
        self._first_arrival: float | None = None
        self._last: float | None = None

    def to_seconds(self, pts_seconds: float | None, *, arrived_at: float | None = None) -> float:
        """Return the seconds since the first frame; always increasing.

        Args:
            pts_seconds: the presentation time; None: the frame has none.
            arrived_at: the arrival time, ``time.monotonic()``; None: the frame comes from a file.
        """
        if self._first_arrival is None:
            self._first_arrival = arrived_at
        seconds = self._plausible(pts_seconds, self._elapsed(arrived_at))
        if pts_seconds is not None and self._offset is None:
            self._offset = seconds - pts_seconds
        self._last = seconds
        return seconds

    def restart(self) -> None:
        """Discard the offset of the stream's clock; call this for each new connection."""
        self._offset = None

    def _elapsed(self, arrived_at: float | None) -> float | None:
        if arrived_at is None or self._first_arrival is None:
            return None
        return arrived_at - self._first_arrival

    def _plausible(self, pts_seconds: float | None, elapsed: float | None) -> float:
        fallback = self._without_pts(elapsed)
        if self._last is None or pts_seconds is None or self._offset is None:
            return fallback
        seconds = pts_seconds + self._offset
        has_drifted = elapsed is not None and abs(seconds - elapsed) > self._slack
        if has_drifted or seconds <= self._last - _MISORDERED_SECONDS:
            self._offset = None
            return fallback
        return max(seconds, self._last + _MIN_STEP_SECONDS)

    def _without_pts(self, elapsed: float | None) -> float:
        if self._last is None:
            return 0.0
        if elapsed is None:
            return self._last + self._step
        return max(elapsed, self._last + _MIN_STEP_SECONDS)
