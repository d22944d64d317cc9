"""The leases of a worker, valid by its own clock. The methods that read are for any thread."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from pipeline.fleet.messages import Beat, FleetTiming, Grant, WorkerInfo

_NONE: Final[Mapping[str, int]] = MappingProxyType({})


class WorkerLeases:
    """Asks for leases, and returns whether a frame may be published now.

    One thread calls ``ask`` and ``accept`` in turn; an answer that comes after the next ``ask`` is ignored. Therefore a
    beat without a camera proves to the director that no earlier answer can grant it any more.
    """

    def __init__(self, worker: str, slot: str, timing: FleetTiming, *, keep: bool = False) -> None:
        """Hold nothing.

        Args:
            worker: name of the worker, unique to its process.
            slot: name of its place, which no other process has at the same time.
            timing: duration of a lease.
            keep: go on with expired leases while no director answers; two workers may then publish one camera.
        """
        self.worker, self.slot = worker, slot
        self.term = 0
        """The highest term of a director that has answered."""
        self._timing, self._keep = timing, keep
        self._number = self._answered = 0
        self._asked_at = float("-inf")
        # One value, replaced as a whole: readers need no lock.
        self._held: tuple[Mapping[str, int], float] = (_NONE, float("-inf"))

    def ask(
        self,
        now: float,
        capacity: float,
        *,
        closing: Mapping[str, int] = _NONE,
        unable: frozenset[str] = frozenset(),
        info: WorkerInfo | None = None,
    ) -> Beat:
        """Return the next beat; what it grants is counted from ``now``.

        Args:
            now: monotonic seconds.
            capacity: frames per second that the worker can explain.
            closing: epochs of cameras that are not closed yet.
            unable: cameras that it cannot open.
            info: the worker as the fleet shows it.
        """
        self._number += 1
        self._asked_at = now
        leases = dict(self.valid(now))
        return Beat(
            self.worker,
            self.slot,
            self._number,
            capacity,
            leases,
            {camera: epoch for camera, epoch in closing.items() if camera not in leases},
            unable,
            self.term,
            self._answered,
            info or WorkerInfo(),
        )

    def accept(self, grant: Grant) -> bool:
        """Apply an answer; return False if it is too old to be used."""
        if grant.number != self._number or grant.term < self.term:
            return False
        self.term, self._answered = grant.term, grant.number
        if grant.leases is None:
            return True
        self._held = (MappingProxyType(dict(grant.leases)), self._asked_at + self._timing.lease_seconds)
        return True

    def valid(self, now: float) -> Mapping[str, int]:
        """Return the epochs of the valid leases by camera."""
        leases, until = self._held
        return leases if now < until or self._keep else _NONE

    def may_publish(self, camera: str, epoch: int | None, now: float) -> bool:
        """Return whether frames of a camera that was opened under ``epoch`` may be published at ``now``."""
        return epoch is not None and self.valid(now).get(camera) == epoch
