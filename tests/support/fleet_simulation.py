"""A fleet in simulated time: machines with clocks of different rates, a store of terms, directors, workers, faults.

Messages are delayed, lost and overtake each other; processes die and freeze; links break. ``step`` checks the
law after every 20 ms: no camera is published by two workers.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Collection
from functools import partial

from pipeline.fleet.director import Director
from pipeline.fleet.leases import WorkerLeases
from pipeline.fleet.messages import Beat, FleetTiming, Grant, WorkerInfo
from tests.support.fleet_programs import DirectorProgram, Machine, Program, WorkerProgram

STEP = 0.02
TIMING = FleetTiming()
HEAD = 0
"""Number of the machine with the store."""


class Simulation:
    """Runs one fleet; the same seed repeats the same run."""

    def __init__(
        self,
        seed: int,
        *,
        machines: int = 4,
        cameras: int = 6,
        capacity: float = 100.0,
        skew: float = 0.03,
        start_seconds: float = 0.0,
        timing: FleetTiming = TIMING,
    ):
        self.timing = timing
        """For directors; workers know the duration of a lease."""
        self.random = random.Random(seed)
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.machines = [
            Machine(number, self.random.uniform(1 - skew, 1 + skew), self.random.uniform(0, 1e4))
            for number in range(machines)
        ]
        self.cameras = {f"camera {number}": 10.0 for number in range(cameras)}
        self.drained: set[str] = set()
        self.cut: set[frozenset[int]] = set()
        self.store_is_up = True
        self.term = 0
        self.members: set[str] = set()
        self.loss = 0.0
        self.slow = 0.0
        self.capacity = capacity
        self.directors: list[DirectorProgram] = []
        self.workers: list[WorkerProgram] = []
        self.current: DirectorProgram | None = None
        self.unreachable_since: float | None = None
        self.restarting = False
        self.dark_since: dict[str, float] = dict.fromkeys(self.cameras, 0.0)
        self.incarnation = itertools.count()
        self.start_director()
        self.grants: set[tuple[str, int]] = set()
        """Cameras and epochs that were published."""
        for machine in self.machines[1:]:
            if start_seconds:
                self.at(self.random.uniform(0.0, start_seconds), partial(self.start_worker, machine))
            else:
                self.start_worker(machine)
        self.supervise()

    # --- time and messages

    def at(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + seconds, next(self.order), action))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.step()

    def step(self) -> None:
        self.now += STEP
        while self.events and self.events[0][0] <= self.now:
            heapq.heappop(self.events)[2]()
        self.check()

    def connected(self, a: Machine, b: Machine) -> bool:
        return a.is_up and b.is_up and frozenset((a.number, b.number)) not in self.cut

    def reaches_store(self, machine: Machine) -> bool:
        return self.store_is_up and self.connected(machine, self.machines[HEAD])

    def send(self, source: Machine, target: Program, action: Callable[[], None]) -> None:
        if not self.connected(source, target.machine) or self.random.random() < self.loss:
            return
        delay = self.random.expovariate(1 / 0.01)
        if self.random.random() < self.slow:
            delay += self.random.uniform(0.0, 6.0)
        self.at(delay, lambda: target.call(action) if self.connected(source, target.machine) else None)

    # --- the law

    def publishers(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for worker in self.workers:
            if worker.is_alive and worker.machine.is_up and not worker.is_frozen:
                clock = worker.machine.clock(self.now)
                for camera, epoch in worker.leases.valid(clock).items():
                    if worker.leases.may_publish(camera, epoch, clock):
                        found.setdefault(camera, []).append(worker.name)
                        self.grants.add((camera, epoch))
        return found

    def check(self) -> None:
        found = self.publishers()
        for camera, names in found.items():
            assert len(names) == 1, f"{self.now:.2f} s: {camera} is published by {names}"
        for camera in self.cameras:
            if camera in found:
                self.dark_since.pop(camera, None)
            else:
                self.dark_since.setdefault(camera, self.now)

    def worst_dark(self, seconds: float) -> float:
        """Simulate some seconds; return the longest time that a camera had no worker."""
        worst, end = 0.0, self.now + seconds
        while self.now < end:
            self.step()
            worst = max(worst, self.longest_dark())
        return worst

    def longest_dark(self) -> float:
        return max((self.now - since for since in self.dark_since.values()), default=0.0)

    # --- the store and what starts directors

    def start_director(self) -> None:
        self.restarting = False
        able = [each for each in self.machines if each.is_up and self.reaches_store(each)]
        if not able:
            self.current = None
            return
        machine = self.random.choice([each for each in able if each.number != HEAD] or able)
        self.term += 1
        director = Director(
            self.cameras, term=self.term, members=set(self.members), now=machine.clock(self.now), timing=self.timing
        )
        director.drain(self.drained)
        program = DirectorProgram(machine, director=director)
        self.directors.append(program)
        self.current = program
        self.unreachable_since = None
        self.tick(program)
        self.confirm(program)

    def supervise(self) -> None:
        """Start another director where the current one is dead, or its machine was unreachable for a while."""
        self.at(0.25, self.supervise)
        if not self.store_is_up or self.restarting:
            return
        current = self.current
        if current is not None and current.is_alive and self.reaches_store(current.machine):
            self.unreachable_since = None
            return
        is_dead = current is None or not current.is_alive
        if self.unreachable_since is None:
            self.unreachable_since = self.now
        if is_dead or self.now - self.unreachable_since > 1.5:
            self.restarting = True
            self.at(self.random.uniform(0.2, 1.0), self.start_director)

    def tick(self, program: DirectorProgram) -> None:
        if program.is_alive:
            self.at(0.1, lambda: self.tick(program))
            program.call(lambda: program.director.tick(program.machine.clock(self.now)))

    def confirm(self, program: DirectorProgram) -> None:
        if not program.is_alive:
            return
        self.at(0.25, lambda: self.confirm(program))
        if program.is_frozen or not self.reaches_store(program.machine):
            return
        asked_at = program.machine.clock(self.now)

        def answer() -> None:
            if self.reaches_store(program.machine):
                newcomers = program.director.newcomers  # written before the term is read
                self.members |= newcomers
                self.send(
                    self.machines[HEAD], program, partial(self.confirmed, program, self.term, asked_at, newcomers)
                )

        self.at(self.random.expovariate(1 / 0.01), answer)

    @staticmethod
    def confirmed(program: DirectorProgram, term: int, asked_at: float, newcomers: Collection[str]) -> None:
        program.director.confirm(term, asked_at)
        if term == program.director.term:
            program.director.admit(newcomers)

    # --- workers

    def start_worker(self, machine: Machine) -> None:
        name = f"w{machine.number}-{next(self.incarnation)}"
        followed = max((each.leases.term for each in self.workers if each.machine is machine), default=0)
        leases = WorkerLeases(name, f"w{machine.number}", TIMING, term=followed)
        worker = WorkerProgram(machine, name=name, leases=leases, capacity=self.capacity, target=self.current)
        self.workers.append(worker)
        self.follow(worker)
        self.beat_after(worker, self.random.uniform(0.0, 0.5))

    def follow(self, worker: WorkerProgram) -> None:
        """Learn of another director from the store."""
        if worker.is_alive:
            self.at(self.random.uniform(0.05, 0.3), lambda: self.follow(worker))
            if self.reaches_store(worker.machine) and not worker.is_frozen:
                worker.target = self.current

    def beat(self, worker: WorkerProgram) -> None:
        if not worker.is_alive:
            return
        if worker.is_frozen or not worker.machine.is_up:
            self.beat_after(worker, 0.1)
            return
        clock = worker.machine.clock(self.now)
        if worker.is_waiting and clock - worker.asked_at < 1.0:
            self.beat_after(worker, 0.02)
            return
        self.close_cameras(worker, clock)
        closing = {camera: epoch for camera, (epoch, _) in worker.closing.items()}
        info = WorkerInfo(node=f"n{worker.machine.number}")
        beat = worker.leases.ask(clock, worker.capacity, closing=closing, info=info)
        worker.asked_at, worker.is_waiting = clock, True
        target = worker.target
        if target is not None:
            copies = 2 if self.random.random() < self.loss else 1
            for _ in range(copies):
                self.send(worker.machine, target, lambda: self.answer(worker, target, beat))
        self.beat_after(worker, TIMING.beat_seconds)

    def beat_after(self, worker: WorkerProgram, seconds: float) -> None:
        """Schedule the next beat in place of one that was scheduled before."""
        worker.beats += 1
        number = worker.beats
        self.at(seconds / worker.machine.rate, lambda: self.beat(worker) if number == worker.beats else None)

    def answer(self, worker: WorkerProgram, target: DirectorProgram, beat: Beat) -> None:
        grant = target.director.beat(beat, target.machine.clock(self.now))
        self.send(target.machine, worker, lambda: self.accept(worker, grant))

    def accept(self, worker: WorkerProgram, grant: Grant) -> None:
        if worker.leases.accept(grant):
            worker.is_waiting = False
            if grant.leases is None:
                self.beat_after(worker, TIMING.retry_seconds)
        self.close_cameras(worker, worker.machine.clock(self.now))

    def close_cameras(self, worker: WorkerProgram, clock: float) -> None:
        valid = dict(worker.leases.valid(clock))
        for camera, epoch in worker.before.items():
            if camera not in valid:
                worker.closing.setdefault(camera, (epoch, clock + self.random.uniform(0.0, 1.0)))
        worker.closing = {c: (e, end) for c, (e, end) in worker.closing.items() if clock < end and c not in valid}
        worker.before = valid

    # --- faults

    def kill_worker(self, machine: Machine, *, seconds: float | None) -> None:
        for worker in self.workers:
            if worker.machine is machine:
                worker.is_alive = False
        if seconds is not None:
            self.at(seconds, lambda: self.start_worker(machine) if machine.is_up else None)

    def kill_machine(self, machine: Machine, *, seconds: float | None) -> None:
        for program in (*self.workers, *self.directors):
            if program.machine is machine:
                program.is_alive = False
        machine.is_up = False
        if seconds is not None:
            self.at(seconds, lambda: self.return_machine(machine))

    def return_machine(self, machine: Machine) -> None:
        if not machine.is_up:
            machine.is_up = True
            self.start_worker(machine)

    def freeze(self, programs: list[Program], seconds: float) -> None:
        for program in programs:
            program.is_frozen = True
            self.at(seconds, program.thaw)

    def isolate(self, machine: Machine, seconds: float, *, only_head: bool = False) -> None:
        others = [self.machines[HEAD]] if only_head else self.machines
        pairs = {frozenset((machine.number, other.number)) for other in others if other is not machine}
        self.cut |= pairs
        self.at(seconds, lambda: self.cut.difference_update(pairs))

    def replace_director(self) -> None:
        """Start another director beside the current one, as Ray does where a raylet is frozen."""
        if self.store_is_up and not self.restarting:
            self.start_director()

    def fault(self) -> None:
        """Cause one random fault."""
        choice = self.random.choice
        machine, seconds = choice(self.machines[1:]), self.random.uniform(0.3, 9.0)

        def store_off() -> None:
            self.store_is_up = False
            self.at(seconds, lambda: setattr(self, "store_is_up", True))

        def drain() -> None:
            self.drained ^= {f"n{machine.number}"}
            if (current := self.current) is not None:
                current.call(lambda: current.director.drain(self.drained))

        def unsteady() -> None:
            self.loss, self.slow = choice([(0.0, 0.0), (0.2, 0.0), (0.1, 0.1), (0.0, 0.3)])

        actions = [
            lambda: self.kill_worker(machine, seconds=seconds),
            lambda: self.kill_machine(machine, seconds=seconds),
            lambda: self.freeze([w for w in self.workers if w.machine is machine], seconds),
            lambda: self.freeze([d for d in self.directors if d.is_alive], seconds),
            lambda: self.freeze([p for p in (*self.workers, *self.directors) if p.machine is machine], seconds),
            lambda: self.isolate(machine, seconds),
            lambda: self.isolate(machine, seconds, only_head=True),
            lambda: setattr(self.current, "is_alive", False) if self.current else None,
            self.replace_director,
            store_off,
            drain,
            unsteady,
        ]
        choice(actions)()

    def heal(self) -> None:
        """End all faults, and forget the events that end them."""
        self.loss = self.slow = 0.0
        self.cut.clear()
        self.store_is_up = True
        self.drained.clear()
        for program in (*self.workers, *self.directors):
            if program.is_frozen:
                program.thaw()
        for machine in self.machines:
            self.return_machine(machine)
            if machine.number != HEAD and not any(w.is_alive and w.machine is machine for w in self.workers):
                self.start_worker(machine)
        if self.current is not None:
            self.current.director.drain(())
