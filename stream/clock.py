"""A stream's own clock, made fit to live with: starts at 0, always grows, survives jumps, resets and missing times."""

from __future__ import annotations

_MISORDERED_SECONDS = 1.0  # a step back by less is a picture out of order, by more a clock that was set back
_INSTANT_SECONDS = 0.001  # how far two pictures with one time are put apart


class StreamClock:
    """Turns presentation times into seconds since the first picture, growing from each picture to the next.

    Live pictures bring the time they arrived at too. The stream's clock is believed while it stays within
    ``slack_seconds`` of theirs; then it is set by them. Files bring none, and their jumps ahead are believed: a
    recording that was triggered by motion has honest gaps.
    """

    def __init__(self, *, step_seconds: float = 0.04, slack_seconds: float = 3.0) -> None:
        """Step by ``step_seconds`` where neither clock tells anything."""
        self._step = step_seconds
        self._slack = slack_seconds
        self._offset: float | None = None
        self._first_arrival: float | None = None
        self._last: float | None = None

    def to_seconds(self, pts_seconds: float | None, *, arrived_at: float | None = None) -> float:
        """Return the seconds since the first picture, greater than what was told before.

        ``pts_seconds`` is the stream's own time, None where it has none; ``arrived_at`` is monotonic seconds, None
        for a file.
        """
        if self._first_arrival is None:
            self._first_arrival = arrived_at
        told = self._plausible(pts_seconds, self._elapsed(arrived_at))
        if pts_seconds is not None and self._offset is None:
            self._offset = told - pts_seconds
        self._last = told
        return told

    def restart(self) -> None:
        """Forget how the stream's clock relates to ours: the connection is a new one. Time goes on."""
        self._offset = None

    def _elapsed(self, arrived_at: float | None) -> float | None:
        if arrived_at is None or self._first_arrival is None:
            return None
        return arrived_at - self._first_arrival

    def _plausible(self, pts_seconds: float | None, elapsed: float | None) -> float:
        own = self._own(elapsed)
        if self._last is None or pts_seconds is None or self._offset is None:
            return own
        told = pts_seconds + self._offset
        strayed = elapsed is not None and abs(told - elapsed) > self._slack
        if strayed or told <= self._last - _MISORDERED_SECONDS:
            self._offset = None
            return own
        return max(told, self._last + _INSTANT_SECONDS)

    def _own(self, elapsed: float | None) -> float:
        if self._last is None:
            return 0.0
        if elapsed is None:
            return self._last + self._step
        return max(elapsed, self._last + _INSTANT_SECONDS)
