"""Machines and processes of a fleet in simulated time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.fleet.director import Director
from pipeline.fleet.leases import WorkerLeases


@dataclass
class Machine:
    """A machine with its own clock."""

    number: int
    rate: float
    offset: float
    is_up: bool = True

    def clock(self, now: float) -> float:
        return self.offset + self.rate * now


@dataclass
class Program:
    """A process: a director or a worker."""

    machine: Machine
    is_alive: bool = True
    is_frozen: bool = False
    waiting: list[Callable[[], None]] = field(default_factory=list)
    """Messages that arrive while it is frozen."""

    def call(self, action: Callable[[], None]) -> None:
        if self.is_alive and self.machine.is_up:
            if self.is_frozen:
                self.waiting.append(action)
            else:
                action()

    def thaw(self) -> None:
        self.is_frozen = False
        waiting, self.waiting = self.waiting, []
        for action in waiting:
            self.call(action)


@dataclass
class DirectorProgram(Program):
    director: Director = None  # type: ignore[assignment]


@dataclass
class WorkerProgram(Program):
    name: str = ""
    leases: WorkerLeases = None  # type: ignore[assignment]
    capacity: float = 0.0
    target: DirectorProgram | None = None
    asked_at: float = 0.0
    is_waiting: bool = False
    beats: int = 0
    closing: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Epoch and time of the end, by camera."""
    before: dict[str, int] = field(default_factory=dict)
