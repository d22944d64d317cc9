"""The leases of a fleet's worker, which are valid by the worker's own clock."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from pipeline.fleet.messages import Beat, FleetTiming, Grant, WorkerInfo

_NONE: Final[Mapping[str, int]] = MappingProxyType({})


class WorkerLeases:
    """Requests leases, and decides whether a frame may be published now.

    One thread calls ``ask`` and ``accept`` in turn; any thread may call the other methods. An answer that arrives after
    the next ``ask`` is ignored. Therefore, if a beat does not list a camera, the director knows that no earlier answer
    can still grant it.
    """

    def __init__(self, worker: str, slot: str, timing: FleetTiming, *, keep: bool = False, term: int = 0) -> None:
        """Create it without leases.

        Args:
            worker: name of the worker, unique to its process.
            slot: name of the worker's place (node and device); at most one process has it at a time.
            timing: times of the protocol.
            keep: whether to use expired leases while no director answers; two workers may then publish one camera.
            term: the highest term that an earlier process of this machine has followed.
        """
        self.worker, self.slot = worker, slot
        self.term = term
        """The highest known term of a director; answers of lower terms are ignored."""
        self._timing, self._keep = timing, keep
        self._number = self._answered = 0
        self._asked_at = float("-inf")
        # One value that is replaced as a whole, so that readers need no lock.
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
        """Return the next beat; the leases that its answer grants start at ``now``.

        Args:
            now: seconds of ``lease_clock``.
            capacity: frames per second that the worker can explain.
            closing: epochs by camera of cameras that are not closed yet.
            unable: cameras that the worker cannot open.
            info: description of the worker.
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
        """Apply an answer; return False if it is too old and was ignored."""
        if grant.number != self._number or grant.term < self.term:
            return False
        self.term, self._answered = grant.term, grant.number
        if grant.leases is None:
            return True
        self._held = (MappingProxyType(dict(grant.leases)), self._asked_at + self._timing.lease_seconds)
        return True

    def valid(self, now: float) -> Mapping[str, int]:
        """Return the epochs of the leases that are valid at ``now``, by camera."""
        leases, until = self._held
        return leases if now < until or self._keep else _NONE

    def may_publish(self, camera: str, epoch: int | None, now: float) -> bool:
        """Return whether frames of a camera that was opened under ``epoch`` may be published at ``now``."""
        return epoch is not None and self.valid(now).get(camera) == epoch
