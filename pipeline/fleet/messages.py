"""The messages of the protocol: a worker's beat, and the director's answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

EPOCHS_PER_TERM: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class FleetTiming:
    """Times and limits of the protocol; each process measures seconds by its own monotonic clock."""

    lease_seconds: float = 3.0
    """Duration of a lease, counted from the worker's request."""
    beat_seconds: float = 0.5
    """Interval of the beats of a worker."""
    retry_seconds: float = 0.2
    """Interval of the beats of a worker that has no leases, or got no answer."""
    contact_seconds: float = 0.75
    """Time for which a director may grant leases after a request to the store that confirmed its term."""
    majority_seconds: float = 1.5
    """Time for which a director may grant leases without the store, after most workers accepted its answers."""
    unheard_seconds: float = 5.0
    """Time after which a director that no worker reaches, or that may grant no lease, no longer counts as active."""
    skew: float = 0.1
    """Tolerated difference in the rates of two clocks, as a fraction."""
    fill: float = 0.8
    """Fraction of a worker's measured capacity that cameras may use."""
    imbalance: float = 0.2
    """Tolerated difference between the loads of the fullest and the emptiest worker, as fractions of their limits."""
    rebalance_seconds: float = 10.0
    """Interval at which cameras are moved to balance the load."""
    max_moves: int = 2
    """Maximum number of cameras that are moved at a time."""
    nodes: int = 1
    """Number of nodes that a new fleet waits for before it assigns its first cameras."""
    gather_seconds: float = 60.0
    """Maximum time, from the first worker's beat, that a new fleet waits for ``nodes``."""

    @property
    def expiry_seconds(self) -> float:
        """Time after a worker's last beat at which the cameras are assigned to others, if the store answers."""
        return self.lease_seconds * (1.0 + self.skew)

    @property
    def quiet_seconds(self) -> float:
        """Time after a worker's last beat at which the cameras are assigned to others, without the store.

        A new director that replaces an earlier director also assigns no cameras for this time. It is the sum of two
        times: until the earlier director can grant no more leases, and until the leases that it granted end.
        """
        return (self.majority_seconds + self.lease_seconds) * (1.0 + self.skew)

    @property
    def handover_seconds(self) -> float:
        """Time for which a new director renews no leases, because an earlier director may still grant leases."""
        return self.contact_seconds * (1.0 + self.skew)


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """Description of a worker, for the status of the fleet."""

    node: str = ""
    """Name of the worker's machine."""
    device: str = ""
    addresses: tuple[str, ...] = ()
    """Addresses of the worker's sinks, without credentials."""


@dataclass(frozen=True, slots=True)
class Beat:
    """A worker's request to renew its leases."""

    worker: str
    """Name of the worker, unique to its process: a restarted worker has a new name."""
    slot: str
    """Name of the worker's place: node and device. At most one process has it at a time; it survives a restart."""
    number: int
    """Number of the request; a worker waits for one answer at a time and ignores the answers to older requests."""
    capacity: float
    """Frames per second that the worker can explain."""
    leases: Mapping[str, int] = field(default_factory=dict)
    """Epochs of the leases that are valid, by camera."""
    closing: Mapping[str, int] = field(default_factory=dict)
    """Epochs of the leases that the worker no longer uses, by camera, while the camera is not closed yet."""
    unable: frozenset[str] = frozenset()
    """Cameras that the worker cannot open: its node has no source of that name, or the source is invalid."""
    term: int = 0
    """The highest term of the directors whose answers the worker, or an earlier one of its machine, has accepted."""
    answered: int = 0
    """Number of the last request whose answer the worker has accepted in ``term``; 0 if there is none."""
    info: WorkerInfo = WorkerInfo()


@dataclass(frozen=True, slots=True)
class Grant:
    """A director's answer to a beat."""

    number: int
    """Number of the request."""
    term: int
    leases: Mapping[str, int] | None
    """Epochs of the granted leases by camera; the leases start at the time of the request. None: the director may not
    grant leases now, and the worker's leases are not renewed."""


def first_epoch(term: int) -> int:
    """Return the lower limit of the epochs of a term; the epochs of later terms are higher."""
    return term * EPOCHS_PER_TERM
