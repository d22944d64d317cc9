"""Detects that a live camera gives no frames: its last image must not look live a second later."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.frames import Explanation, SignalLoss
from pipeline.workers.source import SourceWorker

SILENT_SECONDS: Final = 0.8
"""A live camera has lost its signal after this time without a frame ..."""
SILENT_INTERVALS: Final = 3.0
"""... that is also this many of its mean intervals between frames."""
AGAIN_SECONDS: Final = 1.0
"""Interval of repeated reports: they update the age on the image."""


@dataclass(slots=True)
class _Last:
    explanation: Explanation
    reported_at: float | None = None


class SignalLossDetector:
    """Watches live cameras and keeps the last explanation of each. Used by one thread."""

    def __init__(
        self,
        workers: Sequence[SourceWorker],
        on_signal_loss: Callable[[Explanation, SignalLoss], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Watch cameras.

        Args:
            workers: the cameras; files are not watched.
            on_signal_loss: called with the last explanation of a camera without signal, every ``AGAIN_SECONDS``.
            clock: monotonic seconds.
        """
        self._workers = list(workers)
        self._on_signal_loss = on_signal_loss
        self._clock = clock
        self._last: dict[str, _Last] = {}

    def record(self, explanation: Explanation) -> None:
        """Remember a drawn explanation."""
        self._last[explanation.frame.camera] = _Last(explanation)

    def check(self) -> None:
        """Report cameras without signal. Cheap; call it several times a second."""
        now = self._clock()
        for worker in self._workers:
            last = self._last.get(worker.camera)
            if not worker.source.live or last is None or worker.last_received_at is None or worker.queued:
                continue
            seconds = now - worker.last_received_at
            limit = max(SILENT_SECONDS, SILENT_INTERVALS * worker.mean_interval_seconds)
            if seconds < limit or (last.reported_at is not None and now - last.reported_at < AGAIN_SECONDS):
                continue
            last.reported_at = now
            health = worker.health
            self._on_signal_loss(
                last.explanation, SignalLoss(now - last.explanation.frame.captured_at, health.state, health.reason)
            )
