"""The one call of the protocol: a worker's beat, and the director's answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

EPOCHS_PER_TERM: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class FleetTiming:
    """Times and limits of the protocol, in seconds by the monotonic clock of whoever measures them."""

    lease_seconds: float = 3.0
    """Duration of a lease, counted from the worker's request."""
    beat_seconds: float = 0.5
    """Interval of the beats of a worker."""
    retry_seconds: float = 0.2
    """Interval of the beats of a worker that was granted nothing, or not answered."""
    contact_seconds: float = 0.75
    """Time for which a director grants leases after it asked the store, which confirmed its term."""
    majority_seconds: float = 1.5
    """Time for which it grants leases without the store, after answers that most workers have accepted."""
    skew: float = 0.1
    """Difference in the rate of two clocks that does no harm, as a fraction."""
    fill: float = 0.8
    """Fraction of a worker's measured capacity that cameras may take."""
    imbalance: float = 0.2
    """Difference between the fullest and the emptiest worker, as fractions of their limits, that is tolerated."""
    rebalance_seconds: float = 10.0
    """Interval at which cameras are moved."""
    max_moves: int = 2
    """Number of cameras that are moved at a time."""
    nodes: int = 1
    """Number of nodes that a new fleet waits for before it deals its first cameras."""
    gather_seconds: float = 60.0
    """Time after the first worker's beat for which it waits at most."""

    @property
    def expiry_seconds(self) -> float:
        """Time after a worker's last beat at which its cameras are dealt again, with the store."""
        return self.lease_seconds * (1.0 + self.skew)

    @property
    def quiet_seconds(self) -> float:
        """The same without the store; and the time for which a new director deals nothing, in place of an earlier one.

        In this time the right of a director ends that most workers have left, and then the last leases that it granted.
        """
        return (self.majority_seconds + self.lease_seconds) * (1.0 + self.skew)

    @property
    def handover_seconds(self) -> float:
        """Time after its claim in which a new director renews no leases: an earlier one may still have its right."""
        return self.contact_seconds * (1.0 + self.skew)


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker as the fleet shows it."""

    node: str = ""
    """Name of its machine."""
    device: str = ""
    addresses: tuple[str, ...] = ()
    """Addresses of its sinks, without credentials."""


@dataclass(frozen=True, slots=True)
class Beat:
    """A worker's request to hold what it holds for another lease."""

    worker: str
    """Name of the worker, unique to its process: a restarted worker has another one."""
    slot: str
    """Name of its place: node and device. At most one process has it at a time; a restarted worker has it again."""
    number: int
    """Number of the request; a worker waits for one answer at a time and ignores the answers to older requests."""
    capacity: float
    """Frames per second that it can explain."""
    leases: Mapping[str, int] = field(default_factory=dict)
    """Epochs of the leases that are valid, by camera."""
    closing: Mapping[str, int] = field(default_factory=dict)
    """Epochs of the leases that it no longer uses, by camera, while the camera is not closed yet."""
    unable: frozenset[str] = frozenset()
    """Cameras that it cannot open: its node has no source of that name, or the source is invalid."""
    term: int = 0
    """The highest term of a director that it has accepted an answer of."""
    answered: int = 0
    """Number of the last request whose answer it has accepted; 0 if there is none in ``term``."""
    info: WorkerInfo = WorkerInfo()


@dataclass(frozen=True, slots=True)
class Grant:
    """A director's answer to a beat."""

    number: int
    """Number of the request."""
    term: int
    leases: Mapping[str, int] | None
    """Epochs of the cameras that the worker may hold, counted from its request; None: the director may not grant now,
    and leases end when they end."""


def first_epoch(term: int) -> int:
    """Return a number below every epoch of a term. Epochs of a later term are higher."""
    return term * EPOCHS_PER_TERM
