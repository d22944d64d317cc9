"""The two directors as Ray actors: ``pipeline.fleet.director`` with a clock and a store."""

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
from pipeline.fleet.clock import lease_clock
from pipeline.fleet.director import Director
from pipeline.fleet.messages import Beat, FleetTiming, Grant
from pipeline.fleet.standby import DirectorState, Standby
from pipeline.log_format import log_as_text
from pipeline.workers.thread import ThreadWorker

log = logging.getLogger("recipro-stream")

NAMES: Final = ("director", "director-2")
"""Names of the two directors."""
NOT_ACTIVE: Final = 0
"""The term in the answer of a standby director; real terms are above 0."""
_CONFIRM_SECONDS: Final = 0.25
_ASK_SECONDS: Final = 0.2
"""Interval in seconds at which a director checks the other director."""
_ANSWER_SECONDS: Final = 0.7
_PULSE_SECONDS: Final = 1.0
"""Time in seconds within which an active director that workers reach always writes to the store."""
_CONCURRENT_CALLS: Final = 64


class NotActiveError(ReciproStreamError):
    """The called director is the standby."""


class FleetDirector:
    """Answers the beats of workers while it is active; the standby replaces an active director that fails.

    A director that becomes active claims the next term and adopts the leases that the workers report.
    """

    def __init__(
        self, fleet: str, number: int, cameras: Mapping[str, float], timing: FleetTiming | None = None
    ) -> None:
        """Start the director as the standby.

        Args:
            fleet: name of the fleet.
            number: index of this director in ``NAMES``.
            cameras: frame rate of each camera by name, for a new fleet; the store has precedence.
            timing: times and limits of the fleet.
        """
        log_as_text()
        self._fleet, self._number = fleet, number
        self._store = FleetStore(fleet)
        self._cameras, self._timing = dict(cameras), timing or FleetTiming()
        # Protects the state machine against concurrent calls and the two threads.
        self._lock = threading.Lock()
        self._director: Director | None = None
        """None while this director is the standby."""
        self._standby = Standby(is_first=number == 0, now=time.monotonic())
        self._highest_term = 0
        """The highest term that a worker has stated."""
        self._pulses = 0
        self._other: Any = None
        self._other_node: str | None = None
        """Node of the other director; None while that director does not answer."""
        self._node = os.environ.get(NODE, "")
        self._is_on_head = os.environ.get(ROLE) == HEAD
        self._stop = threading.Event()
        for name, run in (("terms", self._confirm), ("other director", self._watch)):
            ThreadWorker(f"{name} of the fleet", run, self._stop.set).__enter__()

    def state(self) -> DirectorState:
        """Return the state that the other director asks for."""
        with self._lock:
            director = self._director
            nodes = director.nodes() if director is not None else ()
        return DirectorState(director is not None, self._node, self._is_on_head, nodes)

    def beat(self, beat: Beat) -> Grant:
        """Return the leases of the worker that sends ``beat``."""
        with self._lock:
            if self._director is None or self._director.is_deposed:
                self._standby.on_beat()
                self._highest_term = max(self._highest_term, beat.term)
                return Grant(beat.number, NOT_ACTIVE, None)
            return self._director.beat(beat, lease_clock())

    def status(self) -> dict[str, Any]:
        """Return the state of the fleet as plain JSON values."""
        with self._lock:
            state = self._active().status(lease_clock())
        return state | {
            "process": os.getpid(),
            "node": self._node,
            "is_on_head": self._is_on_head,
            "standby": self._other_node,
        }

    def where(self, camera: str) -> dict[str, Any]:
        """Return the worker of a camera, and the addresses where the camera is published."""
        with self._lock:
            return self._active().where(camera)

    def expect(self, slots: list[str]) -> None:
        """Store the slots of starting workers; a new fleet waits for them before it assigns cameras."""
        with self._lock:
            self._active().expect(slots)

    def process(self) -> int:
        """Return the process ID of this director."""
        return os.getpid()

    def apply(self, cameras: Mapping[str, float]) -> dict[str, list[str]]:
        """Replace the cameras of the fleet; return the names of the changed cameras by kind of change."""
        with self._lock:
            self._active()
        self._store.write_cameras(cameras)
        with self._lock:
            return {kind: list(names) for kind, names in asdict(self._active().apply(cameras)).items()}

    def drain(self, node: str, *, is_drained: bool = True) -> list[str]:
        """Drain a node, or undo it, and return the names of all nodes that have workers.

        The cameras of a drained node move to other nodes, and it gets no new cameras.
        """
        with self._lock:
            known = sorted(self._active().nodes())
        if node in known or not is_drained:
            self._store.write_drained(node, is_drained=is_drained)
            with self._lock:
                director = self._active()
                drained = frozenset(director.drained)
                director.drain(drained | {node} if is_drained else drained - {node})
        return known

    def dismiss(self, slots: list[str]) -> None:
        """Remove workers that have ended permanently, so that they no longer count for the majority."""
        with self._lock:
            self._active()
        self._store.remove_members(slots)
        with self._lock:
            self._active().dismiss(slots)

    def _active(self) -> Director:
        if self._director is None:
            raise NotActiveError("fleet: this director is the standby; ask the other one")
        return self._director

    def _begin(self) -> None:
        """Become the active director; wait until the store of the head node answers."""
        # ``Director`` requires that the term is claimed before the members are read.
        term = self._store.claim_term(above=self._highest_term)
        stored = self._store.cameras()
        if stored is None:
            self._store.write_cameras(self._cameras)
        members = self._store.members()
        director = Director(
            self._cameras if stored is None else stored,
            term=term,
            members=members,
            now=lease_clock(),
            timing=self._timing,
        )
        director.drain(self._store.drained())
        with self._lock:
            self._director = director
        log.info(
            "fleet %s: director of term %d, on %s", self._fleet, term, "the head" if self._is_on_head else "a node"
        )

    def _confirm(self) -> None:
        while not self._stop.wait(_CONFIRM_SECONDS):
            with self._lock:
                director = self._director
            if director is None:
                continue
            try:
                self._confirm_term(director)
            except Exception as error:  # noqa: BLE001 - Ray raises many types, and this thread must continue
                log.warning(
                    "fleet %s: this director cannot confirm its term (%s); further attempts follow", self._fleet, error
                )
            with self._lock:
                director.tick(lease_clock())
                if director.is_deposed:
                    self._director = None
                    self._highest_term = max(self._highest_term, director.latest_term)
                    self._standby.on_deposed(time.monotonic(), is_heard=director.is_heard(lease_clock()))
                    log.info("fleet %s: another director has a later term", self._fleet)

    def _confirm_term(self, director: Director) -> None:
        with self._lock:
            newcomers = director.newcomers
            is_useful = director.is_useful(lease_clock())
        self._store.add_members(newcomers)
        if is_useful:
            self._pulses += 1
            self._store.write_pulse(director.term, self._pulses)
        asked_at = lease_clock()
        latest = self._store.latest_term()
        with self._lock:
            director.confirm(latest, asked_at)
            if latest == director.term:
                director.admit(newcomers)

    def _watch(self) -> None:
        while not self._stop.wait(_ASK_SECONDS):
            try:
                self._watch_once()
            except Exception as error:  # noqa: BLE001 - Ray raises many types, and this thread must continue
                log.warning(
                    "fleet %s: this director cannot watch the other one (%s); further attempts follow",
                    self._fleet,
                    error,
                )

    def _watch_once(self) -> None:
        other, is_lost = self._ask()
        self._other_node = other.node if other is not None else None
        now = time.monotonic()
        state = self.state()
        if not state.is_active:
            if self._standby.is_due(state, other, now, is_lost=is_lost) and not self._is_replaced():
                self._begin()
        elif self._standby.is_to_move(state, other, now):
            log.info("fleet %s: the standby director moves to another node", self._fleet)
            self._kill_other()
        elif is_lost and self._other is None:
            self._start_other()

    def _is_replaced(self) -> bool:
        """Return whether an unreachable director still writes to the store."""
        if not self._standby.is_doubtful:
            return False
        before = self._store.pulse()
        self._stop.wait(_PULSE_SECONDS)
        return self._store.pulse() != before

    def _ask(self) -> tuple[DirectorState | None, bool]:
        """Return the state of the other director (None without an answer), and whether its process does not run."""
        import ray

        try:
            self._other = self._other or ray.get_actor(NAMES[1 - self._number], namespace=self._fleet)
            return ray.get(self._other.state.remote(), timeout=_ANSWER_SECONDS), False
        except (ray.exceptions.ActorDiedError, ValueError):  # killed, or never started
            self._other = None
            return None, True
        except ray.exceptions.ActorUnavailableError:  # Ray restarts the director
            return None, True
        except (ray.exceptions.RayError, TimeoutError):
            return None, False

    def _kill_other(self) -> None:
        import ray

        ray.kill(self._other)
        self._other = None

    def _start_other(self) -> None:
        """Start the other director, on another node if there is one."""
        import ray

        own = ray.get_runtime_context().get_node_id()
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != own]
        start_director(self._fleet, 1 - self._number, self._cameras, self._timing, nodes[-1] if nodes else None)


def start_director(
    fleet: str, number: int, cameras: Mapping[str, float], timing: FleetTiming | None, node_id: str | None = None
) -> Any:  # noqa: ANN401 - an actor handle
    """Return the handle of one of the fleet's directors; start the director if it does not run.

    Args:
        fleet: name of the fleet.
        number: index in ``NAMES``.
        cameras: frame rate of each camera by name, for a new fleet.
        timing: times and limits of the fleet.
        node_id: Ray's ID of the preferred node. None: any node.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    actor = ray.remote(FleetDirector).options(
        name=NAMES[number], namespace=fleet, lifetime="detached", get_if_exists=True, max_restarts=-1, num_cpus=0,
        max_concurrency=_CONCURRENT_CALLS,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=True) if node_id else "DEFAULT",
    )  # fmt: skip
    return actor.remote(fleet, number, dict(cameras), timing)
