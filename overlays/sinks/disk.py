"""Monitors a disk that may refuse writes: back-off, counts of lost items, metrics."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from overlays.wire.message import explanation_record, record_bytes
from pipeline.errors import DataLossError
from pipeline.frames import Overlay
from pipeline.passages.passage import PassageCursor
from pipeline.ports import MetricSample, Sink

log = logging.getLogger(__name__)

T = TypeVar("T")

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors of a full disk or quota: writing may work again later."""
NO_HANDLES: Final = frozenset({errno.EMFILE, errno.ENFILE})
"""Errors of missing file handles: the disk itself is fine."""
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE})
_DENIED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_RESERVED_HANDLES: Final = 4
"""Number of reserved file handles: for a clip, its log, a folder that is listed, and one spare."""
RETRY_SECONDS: Final = (1.0, 30.0)
"""Wait before a full disk is tried again: first and maximum."""
_REFRESH_SECONDS: Final = 5.0
"""Interval between two readings of the free space."""


def cause(error: OSError) -> str:
    """Return the reason why a write failed, with the remedy."""
    reason = error.strerror or str(error)
    if error.errno in FULL:
        return f"the disk is full ({reason}; free some space)"
    if error.errno in NO_HANDLES:
        return f"no file handle is free ({reason}; raise the limit: ulimit -n)"
    if error.errno in _GONE:
        return f"its folder no longer exists ({reason})"
    if error.errno in _DENIED:
        return f"it is no longer writable ({reason})"
    return f"writing fails ({reason})"


class HandleReserve:
    """Reserved file handles, so that a recording can be opened when viewers use all other handles."""

    def __init__(self) -> None:
        self._held: list[int] = []

    def fill(self) -> None:
        """Reserve handles up to the full number, as far as the system allows."""
        with suppress(OSError):
            while len(self._held) < _RESERVED_HANDLES:
                self._held.append(os.open(os.devnull, os.O_RDONLY))

    def close(self) -> None:
        """Release all reserved handles."""
        while self._held:
            os.close(self._held.pop())

    def opened(self, call: Callable[[], T]) -> T:
        """Return the result of ``call``; if no handle is free, release the reserve and call again."""
        try:
            return call()
        except OSError as error:
            if error.errno not in NO_HANDLES or not self._held:
                raise
            self.close()
            return call()
        finally:
            self.fill()


class DiskMonitor:
    """State of a recorder's disk. Only the recorder's thread changes it; any thread may read it."""

    def __init__(self, uri: str, folder: Path, clock: Callable[[], float], unit: str = "frames") -> None:
        """Create a monitor of a disk that works.

        Args:
            uri: address of the recorder, for messages.
            folder: folder on the disk.
            clock: returns monotonic seconds.
            unit: name of the recorded items, for messages.
        """
        self.lost = 0
        """Number of frames (or other units) that were not recorded because the disk refused them."""
        self.free_bytes: int | None = None
        """Free space for this user in bytes, at most a few seconds old; None before the first reading."""
        self._uri, self._folder, self._clock, self._unit = uri, folder, clock, unit
        self._lost_since = 0
        self._retry_at: float | None = None
        """Time of the next attempt after a failure, on ``clock``; None while writing works."""
        self._backoff_seconds = RETRY_SECONDS[0]
        self._cause = ""
        self._reason = ""
        self._was_full = False
        self._refreshed_at = float("-inf")

    @property
    def in_backoff(self) -> bool:
        """True if writing has failed and the next attempt is not due yet."""
        return self._retry_at is not None and self._clock() < self._retry_at

    @property
    def problem(self) -> str:
        """Reason why nothing is recorded; empty while writing works."""
        if self._retry_at is None:
            return ""
        return f"{self._cause}; {self._lost_since} {self._unit} were not recorded so far"

    def record_failure(self, error: OSError) -> None:
        """Record a failed write: log each new cause once, and set the time of the next attempt."""
        is_repeated = self._retry_at is not None
        self._backoff_seconds = min(2 * self._backoff_seconds, RETRY_SECONDS[1]) if is_repeated else RETRY_SECONDS[0]
        # A handle is free as soon as a viewer disconnects, so the next frame tries again.
        self._retry_at = self._clock() + (0.0 if error.errno in NO_HANDLES else self._backoff_seconds)
        logged, self._cause, self._was_full = self._cause if is_repeated else "", cause(error), error.errno in FULL
        self._reason = error.strerror or str(error)
        if logged != self._cause:
            log.error("%s: %s; the written data is kept. The stream continues, and recording resumes when possible",
                      self._uri, self._cause)  # fmt: skip

    def record_success(self) -> None:
        """Record that a write has succeeded."""
        if self._retry_at is None:
            return
        recovered = "there is space again" if self._was_full else "it can be written again"
        log.warning("%s: %s; %d %s were not recorded", self._uri, recovered, self._lost_since, self._unit)
        self._retry_at, self._lost_since = None, 0

    @property
    def account(self) -> str:
        """Number of lost items as text; empty if there are none."""
        return f"{self.lost} {self._unit} not written" if self.lost else ""

    def count_lost(self, frames: int) -> None:
        """Add to the number of frames that were not recorded; negative if frames were recorded later."""
        self.lost, self._lost_since = self.lost + frames, max(0, self._lost_since + frames)

    def refresh(self) -> None:
        """Read the free space if the last reading is too old."""
        if self._clock() - self._refreshed_at < _REFRESH_SECONDS:
            return
        self._refreshed_at = self._clock()
        try:
            usage = os.statvfs(self._folder)
        except (OSError, AttributeError):  # Windows has no statvfs
            return
        self.free_bytes = usage.f_bavail * usage.f_frsize

    def losses(self, what: str) -> str:
        """Return a description of the losses for the error at the end of a run.

        Args:
            what: name of the items, such as ``lines`` or ``rows``.
        """
        why = f"the disk was full ({self._reason}; free some space)" if self._was_full else self._cause
        return f"{self.lost} {what} were not written: {why}; all others are complete"

    def close(self) -> None:
        """Log losses that were not reported yet."""
        if self._lost_since:
            log.warning("%s: %d %s were not recorded: %s", self._uri, self._lost_since, self._unit, self._cause)

    def metrics(self) -> list[MetricSample]:
        """Return the state of the disk for Prometheus."""
        labels = (("sink", self._uri),)
        samples = [
            MetricSample("recorder_refused", float(self._retry_at is not None),
                   "1 while the disk refuses the writes of a recorder.", labels=labels),
            MetricSample("recorder_lost_frames", self.lost,
                   "Frames that were not recorded because the disk refused them.", labels=labels),
        ]  # fmt: skip
        if self.free_bytes is not None:
            help_text = "Free space on a recorder's disk, in bytes."
            samples.append(MetricSample("recorder_free_bytes", self.free_bytes, help_text, labels=labels))
        return samples


class DiskSink(Sink):
    """Base class of sinks that write to a disk, which may refuse writes."""

    lossless = True

    def __init__(
        self, uri: str, folder: Path, wall_clock: Callable[[], float], clock: Callable[[], float], unit: str = "frames"
    ) -> None:
        """Create the disk monitor.

        Args:
            uri: address of the sink.
            folder: folder on the disk.
            wall_clock: returns Unix seconds.
            clock: returns monotonic seconds.
            unit: name of the recorded items, for messages.
        """
        self.uri = uri
        self._wall_clock, self._clock = wall_clock, clock
        self._disk = DiskMonitor(uri, folder, clock, unit)
        self._reserve = HandleReserve()
        self._passages = PassageCursor()

    def _record(self, overlay: Overlay) -> tuple[dict[str, object], bytes]:
        """Return the record of an explanation, and the record as JSON. Raises ``WireError`` if it is not possible."""
        explanation = self._passages.update(overlay.explanation)
        record = explanation_record(explanation, sent_at_unix=self._wall_clock(), now_monotonic=self._clock())
        return record, record_bytes(record)

    def forget_camera(self, camera: str) -> None:
        """Remove the state of a camera that left the run."""
        self._passages.forget(camera)

    @property
    def lost(self) -> int:
        """Number of lines, rows or frames that were not written because the disk refused them."""
        return self._disk.lost

    @property
    def problem(self) -> str:
        """Reason why nothing is written; empty while writing works."""
        return self._disk.problem

    @property
    def account(self) -> str:
        """Number of items that the disk refused, as text; empty if there are none."""
        return self._disk.account

    def _report_losses(self, name: object, what: str, kind: type[BaseException] | None) -> None:
        """Report the losses at the end of a run.

        Args:
            name: the file or the address.
            what: name of the items, such as ``lines`` or ``rows``.
            kind: class of the exception that already ends the run, such as the losses of another sink, or None.

        Raises:
            DataLossError: items were lost, and no other exception ends the run.
        """
        if not self.lost:
            return
        message = f"{name}: {self._disk.losses(what)}"
        if kind is None:
            raise DataLossError(message)
        log.error("%s", message)

    def metrics(self) -> list[MetricSample]:
        """Return the state of the disk."""
        return list(self._disk.metrics())
