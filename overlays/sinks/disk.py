"""A disk that may fail: whether it takes what is written, when it is tried again, and what was lost meanwhile."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from pipeline.ports import MetricSample

log = logging.getLogger(__name__)

T = TypeVar("T")

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What a disk says that takes no more, and may again."""
NO_HANDLES: Final = frozenset({errno.EMFILE, errno.ENFILE})
"""What the system says that has no file handle left for us: nothing is wrong with the disk."""
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE})
_DENIED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_RESERVED_HANDLES: Final = 4
"""A clip and its log, a folder that is listed, and one more."""
RETRY_SECONDS: Final = (1.0, 30.0)
"""How soon a full disk is tried again: first, and at the longest."""
_LOOK_SECONDS: Final = 5.0
"""How often it is asked for its room."""


def cause(error: OSError) -> str:
    """Return why nothing can be written, in words that name what is to be mended."""
    reason = error.strerror or str(error)
    if error.errno in FULL:
        return f"the disk takes no more ({reason}; free some room)"
    if error.errno in NO_HANDLES:
        return f"no file handle is free ({reason}; raise the limit: ulimit -n)"
    if error.errno in _GONE:
        return f"its folder is gone ({reason})"
    if error.errno in _DENIED:
        return f"it may not be written any more ({reason})"
    return f"writing fails ({reason})"


class HandleReserve:
    """File handles held back, so that a recording can be opened when viewers have taken all others."""

    def __init__(self) -> None:
        self._held: list[int] = []

    def fill(self) -> None:
        """Take as many as are missing, as far as there are any."""
        with suppress(OSError):
            while len(self._held) < _RESERVED_HANDLES:
                self._held.append(os.open(os.devnull, os.O_RDONLY))

    def close(self) -> None:
        """Give all of them back."""
        while self._held:
            os.close(self._held.pop())

    def opened(self, call: Callable[[], T]) -> T:
        """Return what ``call`` opens; where no handle is free, give back the reserve and call once more."""
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
    """What a recorder knows of its disk. Written by the recorder's thread; figures and trouble are for any."""

    def __init__(self, uri: str, folder: Path, clock: Callable[[], float]) -> None:
        self.lost = 0
        """Frames that should have been recorded while the disk took none."""
        self.free_bytes: int | None = None
        """Room for us, as it was a few seconds ago; None before the first look."""
        self._uri, self._folder, self._clock = uri, folder, clock
        self._lost_since = 0
        self._retry_at: float | None = None
        """When a disk that took no more is tried again; None while it takes all."""
        self._backoff_seconds = RETRY_SECONDS[0]
        self._cause = ""
        self._reason = ""
        self._was_full = False
        self._refreshed_at = float("-inf")

    @property
    def in_backoff(self) -> bool:
        """Whether it took no more, and it is too soon to try it again."""
        return self._retry_at is not None and self._clock() < self._retry_at

    @property
    def problem(self) -> str:
        """Why nothing is recorded, in words; empty while all is."""
        if self._retry_at is None:
            return ""
        return f"{self._cause}; {self._lost_since} frames were not recorded so far"

    def record_failure(self, error: OSError) -> None:
        """Note that it took no more; say so once, and try again later."""
        again = self._retry_at is not None
        self._backoff_seconds = min(2 * self._backoff_seconds, RETRY_SECONDS[1]) if again else RETRY_SECONDS[0]
        # A handle is free again as soon as somebody hangs up: it is asked for with the next frame.
        self._retry_at = self._clock() + (0.0 if error.errno in NO_HANDLES else self._backoff_seconds)
        said, self._cause, self._was_full = self._cause if again else "", cause(error), error.errno in FULL
        self._reason = error.strerror or str(error)
        if said != self._cause:
            log.error("%s: %s; what came is kept. The stream goes on, and recording resumes when it can",
                      self._uri, self._cause)  # fmt: skip

    def record_success(self) -> None:
        """Note that it took all that was due."""
        if self._retry_at is None:
            return
        again = "there is room again" if self._was_full else "it can be written again"
        log.warning("%s: %s; %d frames were not recorded", self._uri, again, self._lost_since)
        self._retry_at, self._lost_since = None, 0

    def count_lost(self, frames: int) -> None:
        """Count frames that were not recorded; fewer than none where some could be recorded after all."""
        self.lost, self._lost_since = self.lost + frames, max(0, self._lost_since + frames)

    def refresh(self) -> None:
        """Ask for its room, now and then."""
        if self._clock() - self._refreshed_at < _LOOK_SECONDS:
            return
        self._refreshed_at = self._clock()
        try:
            told = os.statvfs(self._folder)
        except (OSError, AttributeError):  # there is no such call on Windows
            return
        self.free_bytes = told.f_bavail * told.f_frsize

    def losses(self, what: str) -> str:
        """Return what was lost in words, for the error at a run's end; ``what``: ``lines``, ``rows``."""
        why = f"there was no room ({self._reason}; free some)" if self._was_full else self._cause
        return f"{self.lost} {what} were not written: {why}; the others are whole"

    def close(self) -> None:
        """Say what was lost and not yet told."""
        if self._lost_since:
            log.warning("%s: %d frames were not recorded: %s", self._uri, self._lost_since, self._cause)

    def metrics(self) -> list[MetricSample]:
        """Return its state for Prometheus."""
        here = (("sink", self._uri),)
        told = [
            MetricSample("recorder_refused", float(self._retry_at is not None),
                   "1 while the disk takes nothing more from a recorder.", labels=here),
            MetricSample("recorder_lost_frames", self.lost,
                   "Frames that should have been recorded while the disk took none.", labels=here),
        ]  # fmt: skip
        if self.free_bytes is not None:
            told.append(MetricSample("recorder_free_bytes", self.free_bytes, "Room on a recorder's disk.", labels=here))
        return told
