"""A disk that may be full: whether it takes what is written, when it is tried again, and what was lost meanwhile."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pipeline.ports import Figure

log = logging.getLogger(__name__)

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What a disk says that takes no more, and may again."""
RETRY_SECONDS: Final = (1.0, 30.0)
"""How soon a full disk is tried again: first, and at the longest."""
_LOOK_SECONDS: Final = 5.0
"""How often it is asked for its room."""


class Disk:
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
        self._pause = RETRY_SECONDS[0]
        self._reason = ""
        self._looked_at = float("-inf")

    @property
    def waits(self) -> bool:
        """Whether it took no more, and it is too soon to try it again."""
        return self._retry_at is not None and self._clock() < self._retry_at

    @property
    def trouble(self) -> str:
        """Why nothing is recorded, in words; empty while all is."""
        if self._retry_at is None:
            return ""
        return f"the disk takes no more ({self._reason}); {self._lost_since} frames were not recorded so far"

    def refused(self, error: OSError) -> None:
        """Note that it took no more; say so once, and try again later."""
        again = self._retry_at is not None
        self._pause = min(2 * self._pause, RETRY_SECONDS[1]) if again else RETRY_SECONDS[0]
        self._retry_at = self._clock() + self._pause
        self._reason = error.strerror or str(error)
        if not again:
            log.error("%s: the disk takes no more (%s); what came is kept. The stream goes on, and recording resumes "
                      "when there is room", self._uri, self._reason)  # fmt: skip

    def took(self) -> None:
        """Note that it took all that was due."""
        if self._retry_at is None:
            return
        log.warning("%s: there is room again; %d frames were not recorded", self._uri, self._lost_since)
        self._retry_at, self._lost_since = None, 0

    def lose(self, frames: int) -> None:
        """Count frames that were not recorded; fewer than none where some could be recorded after all."""
        self.lost, self._lost_since = self.lost + frames, max(0, self._lost_since + frames)

    def look(self) -> None:
        """Ask for its room, now and then."""
        if self._clock() - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = self._clock()
        try:
            told = os.statvfs(self._folder)
        except (OSError, AttributeError):  # there is no such call on Windows
            return
        self.free_bytes = told.f_bavail * told.f_frsize

    def close(self) -> None:
        """Say what was lost and not yet told."""
        if self._lost_since:
            log.warning("%s: %d frames were not recorded for want of room", self._uri, self._lost_since)

    def figures(self) -> list[Figure]:
        """Return its state for Prometheus."""
        here = (("sink", self._uri),)
        told = [
            Figure("recorder_refused", float(self._retry_at is not None),
                   "1 while the disk takes nothing more from a recorder.", labels=here),
            Figure("recorder_lost_frames", self.lost,
                   "Frames that should have been recorded while the disk took none.", labels=here),
        ]  # fmt: skip
        if self.free_bytes is not None:
            told.append(Figure("recorder_free_bytes", self.free_bytes, "Room on a recorder's disk.", labels=here))
        return told
