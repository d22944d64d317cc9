"""Counts delivered frames, and dropped frames by reason. Starts no threads; only logs debug lines.

After the end of a run this equation holds for each camera and for the run::

    received = delivered + sum(drops by reason)

During the run, the difference of both sides is the number of frames in progress.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum

from pipeline.frames import Frame, Overlay

log = logging.getLogger(__name__)


class DropReason(StrEnum):
    """Reason why a frame was not delivered, in the order of the stages of the pipeline.

    Counted by ``pipeline/workers/source.py`` (before the engine), ``pipeline/loop.py`` (in the engine),
    ``pipeline/drawing.py`` (in the renderer) and ``pipeline/outputs.py`` (in the sinks).
    """

    QUEUE_FULL = "queue_full"
    """The camera's queue was full: the camera is faster than the engine."""
    SUPERSEDED = "superseded"
    """The engine was slower than a live camera and took a newer frame."""
    EXPIRED_BEFORE_ENGINE = "expired_before_engine"
    """The frame was older than ``max_age_seconds`` when the engine was ready for it."""
    EXPIRED_BEFORE_RENDER = "expired_before_render"
    """The frame was older than ``max_age_seconds`` after it was explained."""
    ENGINE_FAILED = "engine_failed"
    """The explainer raised an error, which ends the run."""
    RENDER_FAILED = "render_failed"
    """The renderer raised an error, which ends the run."""
    FRAME_LIMIT = "frame_limit"
    """The frame was in the last batch, after the run's limit of frames (``frames``) was reached."""
    STOPPED = "stopped"
    """The run ended while the frame waited."""
    LEASE_ENDED = "lease_ended"
    """The worker's lease of the camera had ended, in a fleet: another worker may publish the camera."""
    SINK_QUEUE_FULL = "sink_queue_full"
    """No sink delivered it; the queue of the last one was full: the sink is slower than the engine."""
    SINK_REFUSED = "sink_refused"
    """No sink delivered it; the last one raised an error that concerns this frame alone."""
    SINK_CLOSED = "sink_closed"
    """No sink delivered it; the last one had failed or was closed."""


class FrameCounts:
    """Counts the received, delivered and dropped frames of each camera. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._received: Counter[str] = Counter()
        self._delivered: Counter[str] = Counter()
        self._drops: Counter[tuple[str, DropReason]] = Counter()

    def count_received(self, camera: str) -> None:
        """Count a frame that a source returned."""
        with self._lock:
            self._received[camera] += 1

    def count_delivered(self, camera: str) -> None:
        """Count a frame that at least one sink delivered, or that was explained in a run without sinks."""
        with self._lock:
            self._delivered[camera] += 1

    def count_drop(self, frame: Frame, reason: DropReason) -> None:
        """Count a dropped frame and log it at debug level."""
        with self._lock:
            self._drops[frame.camera, reason] += 1
        log.debug("%s: frame %d dropped: %s", frame.camera, frame.index, reason)

    def received(self, camera: str | None = None) -> int:
        """Return the number of received frames, of one camera or of all."""
        with self._lock:
            return self._received.total() if camera is None else self._received[camera]

    def delivered(self, camera: str | None = None) -> int:
        """Return the number of delivered frames, of one camera or of all."""
        with self._lock:
            return self._delivered.total() if camera is None else self._delivered[camera]

    def drops(self, camera: str | None = None) -> dict[DropReason, int]:
        """Return the number of dropped frames by reason (only reasons that occurred), of one camera or of all."""
        totals: Counter[DropReason] = Counter()
        with self._lock:
            for (name, reason), count in self._drops.items():
                if camera in {None, name}:
                    totals[reason] += count
        return {reason: totals[reason] for reason in DropReason if totals[reason]}

    def dropped(self, camera: str | None = None) -> int:
        """Return the number of dropped frames, of one camera or of all."""
        return sum(self.drops(camera).values())


def format_drops(drops: dict[DropReason, int]) -> str:
    """Return drops as text: ``3 dropped (2 queue_full, 1 stopped)``."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in drops.items())
    return f"{sum(drops.values())} dropped" + (f" ({reasons})" if reasons else "")


@dataclass(slots=True)
class _Pending:
    """An overlay that at least one sink has neither delivered nor dropped yet."""

    overlay: Overlay
    """A reference, so that no other overlay can get the same ``id``."""
    sinks: int
    delivered: bool = False


class DeliveryTracker:
    """Counts the frame of an overlay once: when the last sink has delivered or dropped the overlay.

    A frame counts as delivered if at least one sink delivered it. Thread-safe.
    """

    def __init__(self, counts: FrameCounts) -> None:
        self._counts = counts
        self._lock = threading.Lock()
        self._pending: dict[int, _Pending] = {}

    def begin(self, overlay: Overlay, sinks: int) -> None:
        """Register an overlay before it is put into the queues of sinks.

        Args:
            overlay: the overlay.
            sinks: number of queues; with 0 the frame is counted as delivered at once.
        """
        if not sinks:
            self._counts.count_delivered(overlay.explanation.frame.camera)
            return
        with self._lock:
            self._pending[id(overlay)] = _Pending(overlay, sinks)

    def settle(self, overlay: Overlay, reason: DropReason | None) -> None:
        """Record that one sink delivered (``reason`` None) or dropped an overlay.

        Overlays that were not registered (repeated images of a camera without signal) are ignored.
        """
        with self._lock:
            pending = self._pending.get(id(overlay))
            if pending is None:
                return
            pending.sinks -= 1
            pending.delivered = pending.delivered or reason is None
            if pending.sinks:
                return
            del self._pending[id(overlay)]
        self._count(pending, reason)

    def close(self) -> None:
        """Count the frames of overlays that sinks have not finished by the end of the run."""
        with self._lock:
            left = list(self._pending.values())
            self._pending.clear()
        for pending in left:
            self._count(pending, DropReason.STOPPED)

    def _count(self, pending: _Pending, reason: DropReason | None) -> None:
        frame = pending.overlay.explanation.frame
        if pending.delivered or reason is None:
            self._counts.count_delivered(frame.camera)
        else:
            self._counts.count_drop(frame, reason)
