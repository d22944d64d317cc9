"""The director: grants leases of cameras to workers. A state machine; the caller passes the monotonic time.

It sends no requests: it knows the leases of a worker only from the worker's beats, so that a restarted director learns
them, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pipeline.fleet.changes import CameraChanges, compare_cameras
from pipeline.fleet.dealing import WorkerLoad, choose_moves, deal, reasons_not_dealt
from pipeline.fleet.holds import Hold, Holds
from pipeline.fleet.messages import Beat, FleetTiming, Grant, WorkerInfo, first_epoch

_MAX_ANSWERS: Final = 16
"""Number of answers to a worker whose times are stored."""


_NEVER: Final = float("inf")
_TICK_SECONDS: Final = 0.1
"""Interval at which all cameras are checked, even if nothing has changed."""
_MAX_DEALT: Final = 500
"""Maximum number of cameras that are assigned at a time, because the answers to other beats wait meanwhile."""


@dataclass(slots=True)
class _Worker:
    """A worker whose last beat is not older than a lease."""

    slot: str
    number: int
    heard_at: float
    capacity: float
    unable: frozenset[str]
    info: WorkerInfo


class Director:
    """Assigns cameras to workers by leases, each camera to one worker at a time.

    The safety property: two workers never publish the same camera at the same time. It holds for any delay, loss,
    repetition and reordering of messages, for frozen processes, and for several directors at once, if the rates of
    clocks differ by less than ``timing.skew``, terms and members are in one store, and no two running processes have
    the same slot.

    A director grants leases while the store confirms that no later term was claimed, or, without the store, while more
    than half of the members accept its answers. Therefore a later director renews no lease before half of the members
    have accepted its own answers, and assigns no camera for ``quiet_seconds`` after that. Without the store, a director
    also waits ``quiet_seconds`` before it assigns the cameras of a lost worker, because a later director may have
    renewed the leases of that worker.
    """

    def __init__(
        self, cameras: Mapping[str, float], *, term: int, members: Collection[str], now: float, timing: FleetTiming
    ) -> None:
        """Begin a term as director.

        Args:
            cameras: frames per second of each camera.
            term: number of this director, claimed in the store; later directors have higher numbers.
            members: slots of the workers to which any director may have granted leases, read from the store after the
                term was claimed.
            now: monotonic seconds.
            timing: times and limits.
        """
        self.term = term
        self.is_deposed = False
        """True after a later director is known: this director grants no more leases."""
        self.latest_term = term
        """The highest term that the store or a worker has stated."""
        self._timing = timing
        self._cameras = dict(cameras)
        self._drained: frozenset[str] = frozenset()
        self._workers: dict[str, _Worker] = {}
        self._members = frozenset(members)
        self._heirs = frozenset(members)
        """Members whose accepted answers prove that no earlier director can grant leases."""
        self._accepted: set[str] = set()
        """Slots of the workers that have accepted an answer of this term."""
        self._contact: dict[str, float] = {}
        """By slot: time of the last answer that the worker has accepted."""
        self._answers: dict[str, deque[tuple[int, float]]] = {}
        """By worker: numbers and times of the last answers."""
        self._holds = Holds()
        self._has_changed = True
        """True if a camera may have become free, or a worker may have got capacity, since ``_ticked_at``."""
        self._ticked_at = now
        self._epoch = first_epoch(term)
        self._began_at = self._confirmed_at = now
        self._heard_at = float("-inf")
        self._quiet_until = _NEVER if members else now
        self._rebalanced_at = now
        self._is_gathering = not members
        """True in a new fleet until its first cameras are assigned."""
        self._gather_until = _NEVER
        self._expected: frozenset[str] = frozenset()
        """Slots of workers that are starting; the first cameras are assigned when they have joined."""

    @property
    def cameras(self) -> Mapping[str, float]:
        """Frames per second of each camera of the fleet."""
        return dict(self._cameras)

    @property
    def drained(self) -> Collection[str]:
        """Nodes that are drained: their workers get no cameras."""
        return self._drained

    @property
    def members(self) -> Collection[str]:
        """Slots of the workers that may be granted leases."""
        return self._members

    @property
    def newcomers(self) -> Collection[str]:
        """Slots that send beats but are not members yet: write them to the store, then call ``admit``."""
        return frozenset(worker.slot for worker in self._workers.values()) - self._members

    def admit(self, slots: Iterable[str]) -> None:
        """Add members that were written to the store while this term was still the latest."""
        self._members |= frozenset(slots)
        self._has_changed = True

    def dismiss(self, slots: Iterable[str]) -> None:
        """Remove members whose workers will not return, and that are no longer in the store."""
        self._members -= frozenset(slots)
        self._heirs -= frozenset(slots)
        self._expected -= frozenset(slots)

    def expect(self, slots: Iterable[str]) -> None:
        """Add workers that are starting: a new fleet assigns its first cameras when they have joined."""
        self._expected |= frozenset(slots)

    def confirm(self, term: int, asked_at: float) -> None:
        """Record the latest term in the store; ``asked_at`` is the time at which the store was asked."""
        self._learn(term)
        self._confirmed_at = max(self._confirmed_at, asked_at)

    def may_grant(self, now: float) -> bool:
        """Return whether this director may grant leases now, because no other director can."""
        is_successor = bool(self._heirs) and now < self._began_at + self._timing.handover_seconds
        if self.is_deposed or is_successor or self._quiet_until == _NEVER:
            return False
        return self._is_confirmed(now) or self._hears_majority(now)

    def is_useful(self, now: float) -> bool:
        """Return whether workers may get leases from this director; they have some time after its claim to find it.

        A director that is not useful must not keep another director from claiming a term. Ray may run a director twice
        if a raylet is frozen, and workers find only one of the two.
        """
        is_new = now < self._began_at + self._timing.unheard_seconds
        return is_new or (self.is_heard(now) and self.may_grant(now))

    def is_heard(self, now: float) -> bool:
        """Return whether a worker has sent a beat recently."""
        return now < self._heard_at + self._timing.unheard_seconds

    def beat(self, beat: Beat, now: float) -> Grant:
        """Return the leases of a worker that sent a beat.

        A repeated beat gets the same answer; a beat that is older than the last one changes nothing.
        """
        self._learn(beat.term)
        self._heard_at = now
        known = self._workers.get(beat.worker)
        if known is not None and beat.number < known.number:
            return Grant(beat.number, self.term, None)
        if known is None or beat.number > known.number:
            self._hear(beat, now)
        if not self.may_grant(now):
            return Grant(beat.number, self.term, None)
        self.tick(now)
        return Grant(beat.number, self.term, self._leases_of(beat.worker))

    def tick(self, now: float) -> None:
        """Remove lost workers, and assign free cameras. Call it several times a second."""
        if not self.may_grant(now):
            return
        timing = self._timing
        since = now - (timing.expiry_seconds if self._is_confirmed(now) else timing.quiet_seconds)
        for name in [name for name, each in self._workers.items() if each.heard_at <= since]:
            del self._workers[name]
            self._answers.pop(name, None)
            self._holds.remove_worker(name)
            self._has_changed = True
        is_due = now >= self._ticked_at + _TICK_SECONDS or self._ticked_at < self._quiet_until <= now
        if not self._has_changed and not is_due:
            return
        self._ticked_at, self._has_changed = now, False
        self._revoke(now)
        if now >= self._quiet_until and self._is_gathered(now):
            self._deal()

    def apply(self, cameras: Mapping[str, float]) -> CameraChanges:
        """Set the cameras of the fleet; workers lose removed cameras at their next beats."""
        changes = compare_cameras(self._cameras, cameras)
        self._cameras = dict(cameras)
        self._has_changed = True
        return changes

    def drain(self, nodes: Iterable[str]) -> None:
        """Set the nodes that are drained: their workers lose their cameras and get no others."""
        self._drained = frozenset(nodes)
        self._has_changed = True

    def nodes(self) -> frozenset[str]:
        """Return the nodes that have a worker."""
        return frozenset(worker.info.node for worker in self._workers.values())

    def where(self, camera: str) -> dict[str, Any]:
        """Return the worker of a camera, its node, and the addresses at which its frames are published."""
        if (place := self._place(camera)) is not None:
            return place
        return {"camera": camera, "worker": None, "reason": self._reasons([camera])[camera]}

    def _place(self, camera: str) -> dict[str, Any] | None:
        """Return the worker of a camera; None if no worker has it."""
        hold = self._holds.get(camera)
        if camera not in self._cameras or hold is None or hold.is_revoked or hold.worker not in self._workers:
            return None
        info = self._workers[hold.worker].info
        return {
            "camera": camera,
            "worker": hold.worker,
            "node": info.node,
            "device": info.device,
            "addresses": list(info.addresses),
            "epoch": hold.epoch,
        }

    def status(self, now: float) -> dict[str, Any]:
        """Return the state of the fleet as JSON values."""
        loads = {load.worker: load for load in self._loads(every=True)}
        places = {camera: self._place(camera) for camera in self._cameras}
        reasons = self._reasons([camera for camera, place in places.items() if place is None])
        workers = [
            {
                "worker": name,
                "node": worker.info.node,
                "device": worker.info.device,
                "addresses": list(worker.info.addresses),
                "heard_seconds": round(now - worker.heard_at, 3),
                "capacity": worker.capacity,
                "limit": loads[name].limit,
                "load": loads[name].load,
                "cameras": sorted(loads[name].cameras),
                "is_drained": worker.info.node in self._drained,
            }
            for name, worker in sorted(self._workers.items())
        ]
        return {
            "term": self.term,
            "may_grant": self.may_grant(now),
            "is_confirmed": self._is_confirmed(now),
            "quiet_seconds": self._seconds_quiet(now),
            "awaited": sorted(self._heirs - self._accepted) if self._quiet_until == _NEVER else [],
            "workers": workers,
            "cameras": [
                (places[camera] or {"camera": camera, "worker": None, "reason": reasons[camera]}) | {"rate": rate}
                for camera, rate in sorted(self._cameras.items())
            ],
        }

    def _learn(self, term: int) -> None:
        self.latest_term = max(self.latest_term, term)
        self.is_deposed = self.latest_term > self.term

    def _hear(self, beat: Beat, now: float) -> None:
        before = self._workers.get(beat.worker)
        if before is None or (before.capacity, before.unable) != (beat.capacity, beat.unable):
            self._has_changed = True
        self._workers[beat.worker] = _Worker(beat.slot, beat.number, now, beat.capacity, beat.unable, beat.info)
        self._epoch = max([self._epoch, *beat.leases.values(), *beat.closing.values()])
        self._gather_until = min(self._gather_until, now + self._timing.gather_seconds)
        self._note_contact(beat, now)
        if now < self._quiet_until:
            self._adopt(beat)
        for camera, hold in list(self._holds.of(beat.worker).items()):
            hold.is_revoked = hold.is_revoked or camera in beat.unable
            if hold.is_revoked and camera not in beat.leases and camera not in beat.closing:
                self._holds.remove(camera)
                self._has_changed = True

    def _note_contact(self, beat: Beat, now: float) -> None:
        """Record the last time at which this director was certainly the latest that the worker knew.

        That is the time at which the last accepted answer was sent.
        """
        answers = self._answers.setdefault(beat.worker, deque(maxlen=_MAX_ANSWERS))
        if beat.term == self.term:
            sent_at = next((at for number, at in answers if number == beat.answered), float("-inf"))
            self._contact[beat.slot] = max(self._contact.get(beat.slot, float("-inf")), sent_at)
            self._accepted.add(beat.slot)
            if self._quiet_until == _NEVER and len(self._accepted & self._heirs) * 2 >= len(self._heirs):
                self._quiet_until = now + self._timing.quiet_seconds
        answers.append((beat.number, now))

    def _adopt(self, beat: Beat) -> None:
        """Record the leases that a worker got from an earlier director.

        If two workers report the same camera, the beat with the lower epoch is an old beat that arrived late.
        """
        reported = {**{camera: (epoch, True) for camera, epoch in beat.closing.items()},
                    **{camera: (epoch, False) for camera, epoch in beat.leases.items()}}  # fmt: skip
        for camera in [camera for camera in self._holds.of(beat.worker) if camera not in reported]:
            self._holds.remove(camera)
        for camera, (epoch, is_closing) in reported.items():
            hold = self._holds.get(camera)
            if hold is None or hold.epoch < epoch:
                self._holds.add(camera, Hold(beat.worker, epoch, is_closing))
            elif hold.worker == beat.worker:
                hold.is_revoked = hold.is_revoked or is_closing

    def _revoke(self, now: float) -> None:
        """Revoke the leases of removed cameras, of cameras on drained nodes, and of cameras that move."""
        for camera, hold in self._holds.items():
            worker = self._workers.get(hold.worker)
            is_drained = worker is not None and worker.info.node in self._drained
            hold.is_revoked = hold.is_revoked or camera not in self._cameras or is_drained
        is_settled = now >= self._quiet_until and not any(hold.is_revoked for _, hold in self._holds.items())
        if is_settled and now >= self._rebalanced_at + self._timing.rebalance_seconds:
            self._rebalanced_at = now
            moves = frozenset(choose_moves(self._loads(), self._timing))
            for camera, hold in self._holds.items():
                hold.is_revoked = camera in moves

    def _is_gathered(self, now: float) -> bool:
        """Return whether a new fleet need not wait any longer: its workers have joined, or the time is over."""
        if self._is_gathering:
            self._is_gathering = bool(self._missing()) and now < self._gather_until
        return not self._is_gathering

    def _missing(self) -> list[str]:
        """Return the slots, or the number of nodes, that a new fleet waits for."""
        ready = {worker.slot: worker.info.node for worker in self._workers.values() if worker.slot in self._members}
        missing = sorted(self._expected - ready.keys())
        nodes = len(set(ready.values()))
        return missing or ([f"{self._timing.nodes - nodes} more nodes"] if nodes < self._timing.nodes else [])

    def _deal(self) -> None:
        free = {camera: rate for camera, rate in self._cameras.items() if camera not in self._holds}
        if not free:
            return
        dealt = deal(free, self._loads(), max_dealt=_MAX_DEALT)
        for camera, worker in dealt.items():
            self._epoch += 1
            self._holds.add(camera, Hold(worker, self._epoch))
        self._has_changed = len(dealt) == _MAX_DEALT

    def _loads(self, *, every: bool = False) -> list[WorkerLoad]:
        """Return the loads of the workers that may get cameras, or of every worker."""
        loads = {
            name: WorkerLoad(name, worker.capacity * self._timing.fill, unable=worker.unable)
            for name, worker in self._workers.items()
            if every or (worker.info.node not in self._drained and worker.slot in self._members)
        }
        for camera, hold in self._holds.items():
            if hold.worker in loads:
                loads[hold.worker].add(camera, self._cameras.get(camera, 0.0))
        return list(loads.values())

    def _leases_of(self, worker: str) -> dict[str, int]:
        return {camera: hold.epoch for camera, hold in self._holds.of(worker).items() if not hold.is_revoked}

    def _reasons(self, cameras: Collection[str]) -> dict[str, str]:
        """Return the reason why each of these cameras has no worker."""
        waiting = {camera: self._cameras[camera] for camera in cameras
                   if camera in self._cameras and camera not in self._holds}  # fmt: skip
        if self._is_gathering and (missing := self._missing()):
            reasons = dict.fromkeys(
                waiting,
                f"the fleet is starting and waits for {', '.join(missing)}, until {self._timing.gather_seconds:g} s "
                "after its first worker",
            )
        else:
            reasons = reasons_not_dealt(waiting, self._loads()) if waiting else {}
        for camera in cameras:
            if camera not in self._cameras:
                reasons[camera] = "the fleet has no camera of this name"
            elif camera in self._holds:
                reasons[camera] = "the camera moves from one worker to another"
        return reasons

    def _seconds_quiet(self, now: float) -> float | None:
        """Return the time until cameras are assigned; None while an earlier director may still grant leases."""
        return None if self._quiet_until == _NEVER else round(max(self._quiet_until - now, 0.0), 3)

    def _is_confirmed(self, now: float) -> bool:
        return now < self._confirmed_at + self._timing.contact_seconds

    def _hears_majority(self, now: float) -> bool:
        """Return whether most members still accept answers, so that no later director can have a majority."""
        since = now - self._timing.majority_seconds
        heard = sum(self._contact.get(slot, float("-inf")) > since for slot in self._members)
        return heard * 2 > len(self._members)
