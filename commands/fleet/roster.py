"""Opens and closes the cameras of a worker according to its leases."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from commands.wiring.cameras import Camera, RunningCameras
from pipeline.errors import ReciproStreamError
from pipeline.fleet.clock import lease_clock
from pipeline.fleet.leases import WorkerLeases
from pipeline.fleet.source import LeasedSource
from pipeline.workers.thread import ThreadWorker, WorkerOwner

log = logging.getLogger("recipro-stream")

_MAX_CLOSING_SECONDS: Final = 1.0
"""Maximum time in seconds for which a closing camera is reported as still open.

Afterwards another worker may open the camera. This worker publishes no frames of the camera after its lease has ended.
"""
_RETRY_SECONDS: Final = 30.0
"""Time in seconds after which the roster retries a camera that could not be opened."""
_CHECK_SECONDS: Final = 1.0


class Roster(WorkerOwner):
    """Opens the leased cameras and closes all others, in a thread, so that opening a camera delays no beat."""

    def __init__(self, running: RunningCameras, read: Callable[[], Sequence[Camera]], leases: WorkerLeases) -> None:
        """Create the thread; entering starts it.

        Args:
            running: the cameras of the run.
            read: returns new, unopened cameras of this node at each call; raises ``ReciproStreamError``.
            leases: the leases; the caller renews them.
        """
        self._running, self._read, self._leases = running, read, leases
        self._changed, self._stop = threading.Event(), threading.Event()
        self._wanted: Mapping[str, int] = {}
        self._applied: frozenset[str] = frozenset()
        self._epochs: dict[str, int] = {}
        """The last epoch of each open camera."""
        self._unwanted_since: dict[str, float] = {}
        self._failed_at: dict[str, float] = {}
        self._worker = ThreadWorker("cameras of the worker", self._follow, self._end)

    @property
    def unable(self) -> frozenset[str]:
        """Names of the cameras that could not be opened in the last ``_RETRY_SECONDS``."""
        now = time.monotonic()
        return frozenset(camera for camera, at in list(self._failed_at.items()) if now < at + _RETRY_SECONDS)

    def follow(self, leases: Mapping[str, int]) -> None:
        """Set the leased cameras, with the epoch of each lease; the thread opens and closes cameras accordingly."""
        now = time.monotonic()
        for camera in self._running.present - leases.keys():
            self._unwanted_since.setdefault(camera, now)
        for camera in leases:
            self._unwanted_since.pop(camera, None)
        self._epochs |= leases
        if leases != self._wanted:
            gained, lost = leases.keys() - self._wanted.keys(), self._wanted.keys() - leases.keys()
            for camera in sorted(gained):
                log.info("camera %s: leased, epoch %d", camera, leases[camera])
            for camera in sorted(lost):
                log.info("camera %s: lease ended, epoch %d", camera, self._wanted[camera])
            self._wanted = dict(leases)
            self._changed.set()

    def closing(self) -> dict[str, int]:
        """Return the epochs of cameras that are still closing, for at most ``_MAX_CLOSING_SECONDS``."""
        now = time.monotonic()
        present = self._running.present
        self._unwanted_since = {camera: at for camera, at in self._unwanted_since.items() if camera in present}
        return {camera: self._epochs[camera] for camera, at in self._unwanted_since.items()
                if now < at + _MAX_CLOSING_SECONDS and camera in self._epochs}  # fmt: skip

    def _end(self) -> None:
        self._stop.set()
        self._changed.set()

    def _follow(self) -> None:
        while not self._stop.is_set():
            self._changed.wait(_CHECK_SECONDS)
            self._changed.clear()
            wanted = frozenset(self._wanted) - self.unable
            if wanted != self._applied and not self._stop.is_set():
                self._apply(wanted)

    def _apply(self, wanted: frozenset[str]) -> None:
        known: dict[str, Camera] = {}
        try:
            known = {camera.name: camera for camera in self._read()}
        except (ReciproStreamError, OSError) as error:
            log.error(  # noqa: TRY400 - an expected error
                "the cameras of this node cannot be read (%s); the node runs none of them", error
            )
        missing = wanted - known.keys()
        diff = self._running.apply([self._leased(known[name]) for name in sorted(wanted - missing)])
        now = time.monotonic()
        if known:
            for camera in sorted(missing):
                log.warning(
                    "camera %s: the file of this node has no source of this name, so the node does not run it", camera
                )
        self._failed_at |= dict.fromkeys([*missing, *diff.failed], now)
        self._applied = wanted - missing - frozenset(diff.failed)

    def _leased(self, camera: Camera) -> Camera:
        name = camera.name
        source = LeasedSource(camera.source, lambda: self._leases.valid(lease_clock()).get(name))
        return replace(camera, source=source)
