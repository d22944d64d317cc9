"""Detects a live camera that delivers no frames, so that its last image is marked as old within a second."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

from pipeline.frame_rate import SILENT_SECONDS
from pipeline.frames import Explanation, SignalLoss
from pipeline.workers.source import SourceWorker

AGAIN_SECONDS: Final = 1.0
"""Interval of repeated reports: they update the age on the image."""


class SignalLossDetector:
    """Watches a live camera and keeps its last explanation. For one thread."""

    def __init__(
        self,
        worker: SourceWorker,
        on_signal_loss: Callable[[Explanation, SignalLoss], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create a detector for a camera.

        Args:
            worker: the worker of the camera; a source that is not live is never reported.
            on_signal_loss: called with the last explanation of a camera without signal, every ``AGAIN_SECONDS``.
            clock: monotonic seconds.
        """
        self._worker, self._on_signal_loss, self._clock = worker, on_signal_loss, clock
        self._last: Explanation | None = None
        self._reported_at = -math.inf
        self._source_reported_at = -math.inf

    def record(self, explanation: Explanation) -> None:
        """Store the explanation that was drawn last."""
        self._last, self._reported_at = explanation, -math.inf

    def postpone(self) -> None:
        """Wait ``AGAIN_SECONDS`` before the next report, because the source has just shown the signal loss itself."""
        self._source_reported_at = self._clock()

    def check(self) -> None:
        """Report a camera without signal. Cheap; call it several times a second."""
        worker, received_at = self._worker, self._worker.frame_rate.last_at
        if not worker.source.live or self._last is None or received_at is None or worker.queued:
            return
        now, health = self._clock(), worker.health
        is_lost = health.reason and health.state != "live"
        least = max(SILENT_SECONDS, worker.source.min_silence_seconds)
        limit = least if is_lost else worker.frame_rate.silence_limit(least)
        if now - max(received_at, self._source_reported_at) < limit or now - self._reported_at < AGAIN_SECONDS:
            return
        self._reported_at = now
        self._on_signal_loss(self._last, SignalLoss(now - received_at, health.state, health.reason))
