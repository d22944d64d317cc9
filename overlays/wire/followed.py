"""Receives the cameras of a fleet in one run, each from the worker that currently publishes it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import Final, Self

from overlays.wire.endpoint import without_user
from overlays.wire.remote import RemoteCamera
from overlays.wire.viewer import ReceivedFrame, Viewer
from pipeline.errors import ReciproStreamError
from pipeline.fleet.places import Place
from pipeline.ports import Discovery, Source
from pipeline.workers.thread import ThreadWorker

log = logging.getLogger(__name__)

_RETRY_SECONDS: Final = 5.0
"""Time after which a failed address is tried again, in seconds."""


class FollowedCamera(RemoteCamera):
    """A camera of a fleet. Frames with a lower epoch are dropped: their worker has lost the camera's lease."""

    def __init__(self, camera: str, problem_of: Callable[[str], str]) -> None:
        """Set the camera's name, and the function that returns why a worker's address sends nothing."""
        self.place = Place()
        """The worker that publishes the camera now; replaced, never changed."""
        self.superseded = 0
        """Number of frames that were dropped because of a lower epoch."""
        self._problem_of = problem_of
        self._epoch: int | None = None
        """The highest received epoch; None before the first frame."""
        self.uri = "fleet"
        super().__init__(camera, self)

    @property
    def problem(self) -> str:
        """The reason why no frames arrive; empty while frames arrive."""
        place, epoch = self.place, self._epoch
        if place.reason:
            return place.reason
        if why := self._problem_of(place.address):
            return f"node {place.node}, which has it: {why}"
        if epoch is None or epoch < place.epoch:
            return f"node {place.node} has it and has sent no frame yet; its log names the reason"
        return ""

    def offer(self, received: ReceivedFrame) -> None:
        """Store a message as the newest, unless a message with a higher epoch has arrived. For any thread."""
        epoch = received.header.epoch or 0
        with self._condition:
            if epoch < (self._epoch or 0):
                self.superseded += 1
                return
            self._epoch = epoch
            super().offer(received)


class _Feed:
    """Receives the stream of one worker in its own thread. One thread must create, enter and exit it."""

    def __init__(self, viewer: Viewer, give: Callable[[ReceivedFrame], None]) -> None:
        self._viewer, self._give = viewer, give
        self._stop = threading.Event()
        self._worker = ThreadWorker(f"frames of {without_user(viewer.uri)}", self._receive, self._stop.set)

    @property
    def problem(self) -> str:
        """The reason why no message arrives; empty if no reason is known."""
        return self._viewer.problem if self._worker.error is None else str(self._worker.error)

    def __enter__(self) -> Self:
        self._viewer.__enter__()
        self._worker.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._worker.__exit__(kind, error, trace)
        self._viewer.__exit__()

    def _receive(self) -> None:
        for received in self._viewer.messages(self._stop):
            self._give(received)


class FollowedStreams(Discovery):
    """Receives the streams of all workers of a fleet; workers and cameras may change during the run.

    Frames of a camera are accepted from every stream, so that a camera that moves appears as soon as its new worker
    sends. If two workers send the same camera, the higher epoch is the newer lease.
    """

    def __init__(self, connect: Callable[[str], Viewer], *, clock: Callable[[], float] = time.monotonic) -> None:
        """Create an empty set of streams.

        Args:
            connect: returns a viewer of an address, not yet entered; may raise ``ReciproStreamError``.
            clock: returns monotonic seconds.
        """
        self._connect, self._clock = connect, clock
        # Guards the state that both the thread that calls ``follow`` and the run's thread change.
        self._lock = threading.Lock()
        # Replaced, never changed in place, because the receiving threads read these mappings without the lock.
        self._cameras: Mapping[str, FollowedCamera] = {}
        self._feeds: Mapping[str, _Feed] = {}
        self._failed: Mapping[str, tuple[str, float]] = {}
        """By failed address: the reason, and the time of the attempt in monotonic seconds."""
        self._leaving: set[str] = set()
        self._appeared: deque[FollowedCamera] = deque()
        self._removed: deque[str] = deque()

    def follow(self, places: Mapping[str, Place], addresses: Collection[str]) -> None:
        """Update the cameras and streams of the fleet. Must always be called by the same thread.

        Args:
            places: the worker that publishes each camera, by the camera's name.
            addresses: addresses of all workers' streams.
        """
        self._receive_from(addresses)
        with self._lock:
            cameras = dict(self._cameras)
            for name in cameras.keys() - places.keys():
                self._withdraw(cameras.pop(name))
            for name in places:
                if name not in cameras and name not in self._leaving:
                    cameras[name] = FollowedCamera(name, self._problem_of)
                    self._appeared.append(cameras[name])
            self._cameras = cameras
        for name, camera in cameras.items():
            camera.place = places[name]
        self.notify()

    def take(self) -> list[FollowedCamera]:
        """Return the cameras that joined the fleet since the previous call."""
        with self._lock:
            return [self._appeared.popleft() for _ in range(len(self._appeared))]

    def take_removed(self) -> list[str]:
        """Return the names of the cameras that left the fleet since the previous call."""
        with self._lock:
            return [self._removed.popleft() for _ in range(len(self._removed))]

    def on_removed(self, source: Source) -> None:
        """Permit a camera of this name to join again, after the run has removed it."""
        with self._lock:
            self._leaving.discard(source.camera)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Close all streams; ``follow`` must not be called afterwards."""
        self._receive_from(())

    def _withdraw(self, camera: FollowedCamera) -> None:
        """Mark a camera for removal from the run, or discard it if the run has not added it yet."""
        if camera in self._appeared:
            self._appeared.remove(camera)
        else:
            self._leaving.add(camera.camera)
            self._removed.append(camera.camera)

    def _receive_from(self, addresses: Collection[str]) -> None:
        feeds, failed, now = dict(self._feeds), dict(self._failed), self._clock()
        ended = [feeds.pop(address) for address in feeds.keys() - frozenset(addresses)]
        failed = {address: failed[address] for address in failed.keys() & frozenset(addresses)}
        for address in sorted(frozenset(addresses) - feeds.keys()):
            if address in failed and now < failed[address][1] + _RETRY_SECONDS:
                continue
            try:
                feeds[address] = _Feed(self._connect(address), self._give).__enter__()
                failed.pop(address, None)
            except ReciproStreamError as error:
                failed[address] = str(error), now
                log.warning("%s: its stream cannot be received: %s", without_user(address), error)
        self._feeds, self._failed = feeds, failed
        for feed in ended:
            feed.__exit__(None, None, None)

    def _give(self, received: ReceivedFrame) -> None:
        camera = self._cameras.get(received.camera)
        if camera is not None:
            camera.offer(received)

    def _problem_of(self, address: str) -> str:
        feed = self._feeds.get(address)
        if feed is not None:
            return feed.problem
        return self._failed.get(address, ("its stream is being connected", 0.0))[0]
