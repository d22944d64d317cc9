"""The simulated fleet with its two directors, each of which decides by ``Standby`` when it becomes active.

Each director asks the other one, claims terms from the store by calls that wait for it, and may freeze in the middle.
Workers change from one to the other as ``commands.fleet.directors`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from pipeline.fleet.director import Director
from pipeline.fleet.messages import Beat, Grant
from pipeline.fleet.standby import DirectorState, Standby
from tests.support.fleet_programs import Machine, Program
from tests.support.fleet_simulation import HEAD, TIMING, Simulation

ASK_SECONDS, ANSWER_SECONDS, CONFIRM_SECONDS = 0.2, 0.7, 0.25
BEAT_SECONDS, AVOID_SECONDS = 0.8, 3.0
NOT_ACTIVE = 0


@dataclass
class PairProgram(Program):
    """One of the two directors."""

    number: int = 0
    director: Director | None = None
    standby: Standby = None  # type: ignore[assignment]
    other: DirectorState | None = None
    asked_at: float = 0.0
    is_waiting: bool = False
    is_beginning: bool = False
    highest_term: int = 0
    """The highest term that a worker has stated."""


@dataclass
class Choice:
    """The director that a worker asks."""

    current: int = 0
    failed_at: list[float] = field(default_factory=lambda: [-1e9, -1e9])
    number: int = 0
    """Number of the beat that waits for an answer; 0: none."""
    addresses: list[PairProgram | None] = field(default_factory=lambda: [None, None])
    """The processes of the two names that the worker knows."""


class PairSimulation(Simulation):
    """A fleet whose directors are started by Ray, and take turns by themselves."""

    def __init__(self, seed: int, *, learns_late: bool = False, **options: Any) -> None:
        self.learns_late = learns_late
        """Whether a worker keeps the address of a replaced director until the head tells it the new one."""
        self.pair: list[PairProgram | None] = [None, None]
        self.choices: dict[str, Choice] = {}
        self.pulses = 0
        """Number of times that an active director that workers reach has written to the store."""
        super().__init__(seed, **options)

    # --- the directors

    def start_director(self) -> None:
        for number in (0, 1):
            self.start_program(number)

    def start_program(self, number: int, without: int | None = None) -> None:
        """Start a director where the head reaches; Ray tries until it can."""
        able = [m for m in self.machines if m.is_up and self.reaches_store(m) and m.number != without]
        if not able:
            self.at(1.0, lambda: self.start_program(number, None))
            return
        machine = self.random.choice(able)
        self.pair[number] = self.run_program(machine, number)

    def run_program(self, machine: Machine, number: int) -> PairProgram:
        """Run a director that workers do not find, as Ray does where it has started another one of this name."""
        program = PairProgram(machine, number=number)
        program.standby = Standby(is_first=number == 0, now=machine.clock(self.now))
        self.directors.append(program)
        self.loop(program, ASK_SECONDS, self.watch)
        self.loop(program, CONFIRM_SECONDS, self.confirm_term)
        return program

    def loop(self, program: PairProgram, seconds: float, action: Callable[[PairProgram], None]) -> None:
        """Call a method of a program again and again; a frozen program skips its turns."""
        if program.is_alive:
            self.at(seconds / program.machine.rate, lambda: self.loop(program, seconds, action))
            if not program.is_frozen and program.machine.is_up:
                action(program)

    def supervise(self) -> None:
        """Start a director again that has ended, or whose machine the head cannot reach for a while."""
        self.at(0.25, self.supervise)
        if not self.store_is_up:
            return
        for program in self.directors:  # one that Ray has started again elsewhere ends some time after it is reached
            if program not in self.pair and self.reaches_store(program.machine) and self.random.random() < 0.02:
                program.is_alive = False
        for number, program in enumerate(self.pair):
            if program is None:
                continue
            is_lost = not program.is_alive or not program.machine.is_up
            if is_lost or (not self.reaches_store(program.machine) and self.random.random() < 0.1):
                self.pair[number] = None  # an unreachable one goes on where it is
                self.at(self.random.uniform(0.5, 3.0), lambda number=number: self.start_program(number))

    def state_of(self, program: PairProgram) -> DirectorState:
        nodes = program.director.nodes() if program.director is not None else ()
        node = f"n{program.machine.number}"
        return DirectorState(program.director is not None, node, program.machine.number == HEAD, nodes)

    def watch(self, program: PairProgram) -> None:
        now = program.machine.clock(self.now)
        if program.is_beginning or (program.is_waiting and now - program.asked_at < ANSWER_SECONDS):
            return
        other, program.other = program.other, None
        target = self.pair[1 - program.number]
        is_lost = target is None or not target.is_alive
        state = self.state_of(program)
        if not state.is_active:
            if program.standby.is_due(state, other, now, is_lost=is_lost and other is None):
                if program.standby.is_doubtful:
                    self.look(program)
                else:
                    self.begin(program)
                return
        elif target is not None and program.standby.is_to_move(state, other, now):
            target.is_alive = False
            self.pair[target.number] = None
            self.at(self.random.uniform(0.5, 3.0), lambda: self.start_program(target.number, program.machine.number))
        program.asked_at, program.is_waiting = now, True
        if target is not None:
            self.send(program.machine, target, lambda: self.reply(program, target))

    def reply(self, program: PairProgram, target: PairProgram) -> None:
        state = self.state_of(target)

        def receive() -> None:
            program.other, program.is_waiting = state, False

        self.send(target.machine, program, receive)

    # --- calls of the store, each of which waits for the head and for the program to go on

    def store_call(self, program: PairProgram, read: Callable[[], Any], then: Callable[[Any], None]) -> None:
        if not program.is_alive:
            return
        if not self.reaches_store(program.machine):
            self.at(0.3, lambda: self.store_call(program, read, then))
            return
        answer = read()
        self.at(self.random.expovariate(1 / 0.02), lambda: program.call(lambda: then(answer)))

    def look(self, program: PairProgram) -> None:
        """Begin, unless the store shows that a director is active."""
        program.is_beginning = True

        def read(before: int) -> None:
            self.at(1.0, lambda: self.store_call(program, lambda: self.pulses, lambda after: decide(before, after)))

        def decide(before: int, after: int) -> None:
            program.is_beginning = False
            if before == after:
                self.begin(program)

        self.store_call(program, lambda: self.pulses, read)

    def begin(self, program: PairProgram) -> None:
        program.is_beginning = True

        def claim() -> int:
            self.term = max(self.term, program.highest_term) + 1
            return self.term

        def claimed(term: int) -> None:
            self.store_call(program, lambda: set(self.members), lambda members: begun(term, members))

        def begun(term: int, members: set[str]) -> None:
            now = program.machine.clock(self.now)
            program.director = Director(self.cameras, term=term, members=members, now=now, timing=self.timing)
            program.director.drain(self.drained)
            program.is_beginning = False

        self.store_call(program, claim, claimed)

    def confirm_term(self, program: PairProgram) -> None:
        director = program.director
        if director is None:
            return
        director.tick(program.machine.clock(self.now))
        if director.is_deposed:
            program.director = None
            program.highest_term = max(program.highest_term, director.latest_term)
            now = program.machine.clock(self.now)
            program.standby.on_deposed(now, is_heard=director.is_heard(now))
            return
        if not self.reaches_store(program.machine):
            return
        newcomers = director.newcomers

        def write() -> float:
            self.members |= newcomers
            self.pulses += director.is_useful(program.machine.clock(self.now))
            return program.machine.clock(self.now)

        def written(asked_at: float) -> None:
            self.store_call(program, lambda: self.term, lambda latest: read(asked_at, latest))

        def read(asked_at: float, latest: int) -> None:
            director.confirm(latest, asked_at)
            if latest == director.term:
                director.admit(newcomers)

        self.store_call(program, write, written)

    # --- the workers' side

    def follow(self, worker: Any) -> None:
        self.choices[worker.name] = Choice()

    def beat(self, worker: Any) -> None:
        choice = self.choices[worker.name]
        clock = worker.machine.clock(self.now)
        if worker.is_waiting and clock - worker.asked_at >= BEAT_SECONDS:
            worker.is_waiting = False
            choice.failed_at[choice.current] = clock
            choice.current = 1 - choice.current
        worker.target = self.address(worker, choice)
        super().beat(worker)

    def address(self, worker: Any, choice: Choice) -> PairProgram | None:
        """Return the process that a worker asks."""
        if not self.learns_late:
            return self.pair[choice.current]
        if self.reaches_store(worker.machine):
            for number, known in enumerate(choice.addresses):
                if known is None or not known.is_alive or self.random.random() < 0.1:
                    choice.addresses[number] = self.pair[number]
        return choice.addresses[choice.current]

    def answer(self, worker: Any, target: Any, beat: Beat) -> None:
        director = target.director
        if director is None or director.is_deposed:
            target.standby.on_beat()
            target.highest_term = max(target.highest_term, beat.term)
            grant = Grant(beat.number, NOT_ACTIVE, None)
        else:
            grant = director.beat(beat, target.machine.clock(self.now))
        self.send(target.machine, worker, lambda: self.accept(worker, grant))

    def accept(self, worker: Any, grant: Grant) -> None:
        choice = self.choices[worker.name]
        if grant.term != NOT_ACTIVE:
            super().accept(worker, grant)
        elif worker.is_waiting:
            worker.is_waiting = False
            clock = worker.machine.clock(self.now)
            if clock - choice.failed_at[1 - choice.current] > AVOID_SECONDS:
                choice.current = 1 - choice.current
            self.beat_after(worker, TIMING.retry_seconds)

    # --- faults

    def active(self) -> list[PairProgram]:
        return [each for each in self.directors if each.is_alive and each.director is not None]

    def programs(self) -> list[PairProgram]:
        return [each for each in self.pair if each is not None]

    def fault(self) -> None:
        """Cause one random fault, mostly of the directors."""
        choice, seconds = self.random.choice, self.random.choice([0.5, 1.0, 2.0, 5.0, 12.0, 40.0])
        machine = choice(self.machines[1:])
        programs = self.programs()

        def store_off() -> None:
            self.store_is_up = False
            self.at(seconds, lambda: setattr(self, "store_is_up", True))

        actions: list[Callable[[], None]] = [
            lambda: self.freeze(programs, seconds),
            lambda: self.freeze([choice(programs)] if programs else [], seconds),
            lambda: self.freeze(self.active(), seconds),
            lambda: self.kill(programs),
            lambda: self.kill(self.active()),
            lambda: self.kill([choice(programs)] if programs else []),
            store_off,
            lambda: self.isolate(machine, seconds),
            lambda: self.isolate(machine, seconds, only_head=True),
            lambda: self.kill_machine(machine, seconds=seconds),
            lambda: self.kill_worker(machine, seconds=seconds),
        ]
        choice(actions)()

    @staticmethod
    def kill(programs: Collection[PairProgram]) -> None:
        for program in programs:
            program.is_alive = False

    def heal(self) -> None:
        current, self.current = self.current, None
        super().heal()
        self.current = current
