"""The director as an actor of Ray: the state machine of ``pipeline.fleet.director`` with a clock and a store."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from commands.fleet.environment import HEAD, NODE, ROLE
from commands.fleet.store import FleetStore
from pipeline.errors import ReciproStreamError
from pipeline.fleet.director import Director
from pipeline.fleet.messages import Beat, FleetTiming, Grant
from pipeline.workers.thread import ThreadWorker

log = logging.getLogger("recipro-stream")

NAME: Final = "director"
_CONFIRM_SECONDS: Final = 0.25
_MOVE_SECONDS: Final = 10.0
"""Time for which another node must have had a worker before a director leaves the head."""


class FleetDirector:
    """Answers beats. A restarted one claims the next term and adopts what the beats report."""

    def __init__(self, fleet: str, cameras: Mapping[str, float], timing: FleetTiming | None = None) -> None:
        """Claim a term.

        Args:
            fleet: name of the fleet.
            cameras: rates of the cameras of a new fleet; the store has precedence.
            timing: times and limits.
        """
        self._store = FleetStore(fleet)
        term = self._store.claim_term()  # before the members are read: see Director
        stored = self._store.cameras()
        if stored is None:
            self._store.write_cameras(cameras)
        members = self._store.members()
        # Guards the state machine: beats, status and the thread that confirms.
        self._lock = threading.Lock()
        self._director = Director(
            dict(cameras) if stored is None else stored,
            term=term,
            members=members,
            now=time.monotonic(),
            timing=timing or FleetTiming(),
        )
        self._director.drain(self._store.drained())
        self._elsewhere_since: float | None = None
        self._is_on_head = os.environ.get(ROLE) == HEAD
        self._stop = threading.Event()
        self._confirming = ThreadWorker("terms of the fleet", self._confirm, self._stop.set)
        self._confirming.__enter__()
        log.info("fleet %s: director of term %d, on %s", fleet, term, "the head" if self._is_on_head else "a node")

    def beat(self, beat: Beat) -> Grant:
        """Return the leases of a worker."""
        with self._lock:
            return self._director.beat(beat, time.monotonic())

    def status(self) -> dict[str, Any]:
        """Return the state of the fleet as plain JSON values."""
        with self._lock:
            return self._director.status(time.monotonic()) | {"process": os.getpid(), "is_on_head": self._is_on_head}

    def where(self, camera: str) -> dict[str, Any]:
        """Return the worker of a camera and the addresses at which it is published."""
        with self._lock:
            return self._director.where(camera)

    def apply(self, cameras: Mapping[str, float]) -> dict[str, list[str]]:
        """Change the cameras of the fleet and return the differences."""
        self._store.write_cameras(cameras)
        with self._lock:
            return {kind: list(names) for kind, names in asdict(self._director.apply(cameras)).items()}

    def drain(self, node: str, *, is_drained: bool = True) -> list[str]:
        """Let a node give up its cameras and get none, or end that; return the nodes that have workers."""
        with self._lock:
            known = sorted(self._director.nodes())
        if node in known or not is_drained:
            self._store.write_drained(node, is_drained=is_drained)
            with self._lock:
                drained = frozenset(self._director.drained)
                self._director.drain(drained | {node} if is_drained else drained - {node})
        return known

    def dismiss(self, slots: list[str]) -> None:
        """Remove workers that have ended for good: they do not count for the majority any more."""
        self._store.remove_members(slots)
        with self._lock:
            self._director.dismiss(slots)

    def _confirm(self) -> None:
        while not self._stop.wait(_CONFIRM_SECONDS):
            try:
                self._confirm_once()
            except (ReciproStreamError, RuntimeError, OSError) as error:
                log.debug("the term cannot be confirmed: %s", error)
            with self._lock:
                self._director.tick(time.monotonic())
            self._leave_head()

    def _confirm_once(self) -> None:
        with self._lock:
            newcomers = self._director.newcomers
        self._store.add_members(newcomers)
        asked_at = time.monotonic()
        latest = self._store.latest_term()
        with self._lock:
            self._director.confirm(latest, asked_at)
            if latest == self._director.term:
                self._director.admit(newcomers)

    def _leave_head(self) -> None:
        """Let Ray restart this director on another node: the head and the director should not be lost together."""
        if not self._is_on_head:
            return
        with self._lock:
            others = self._director.nodes() - {os.environ.get(NODE)}
        now = time.monotonic()
        self._elsewhere_since = (self._elsewhere_since or now) if others else None
        if self._elsewhere_since is not None and now - self._elsewhere_since > _MOVE_SECONDS:
            log.info("the director leaves the head")
            os._exit(0)
