"""The director's policy: which worker gets a camera, and which cameras move. Pure functions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.fleet.messages import FleetTiming


@dataclass(slots=True)
class WorkerLoad:
    """The load of a worker that may get cameras."""

    worker: str
    limit: float
    """Frames per second that the worker's cameras may use."""
    cameras: dict[str, float] = field(default_factory=dict)
    """Frames per second of each of the worker's cameras; changed by ``add`` and ``remove``."""
    unable: Collection[str] = frozenset()
    """Cameras that the worker cannot open."""
    load: float = field(init=False)
    """Frames per second of all the worker's cameras together."""

    def __post_init__(self) -> None:
        self.load = sum(self.cameras.values())

    def add(self, camera: str, rate: float) -> None:
        """Add a camera with its frames per second."""
        self.cameras[camera] = rate
        self.load += rate

    def remove(self, camera: str) -> float:
        """Remove a camera and return its frames per second."""
        rate = self.cameras.pop(camera)
        self.load = sum(self.cameras.values())  # a sum has no accumulated rounding errors, unlike many differences
        return rate

    @property
    def fraction(self) -> float:
        """The load as a fraction of the limit."""
        return self.load / self.limit if self.limit > 0 else float("inf")

    def has_room(self, camera: str, rate: float) -> bool:
        """Return whether the worker can open and explain a further camera."""
        return camera not in self.unable and self.load + rate <= self.limit


def deal(free: Mapping[str, float], workers: Sequence[WorkerLoad], *, max_dealt: int | None = None) -> dict[str, str]:
    """Assign free cameras to workers; return the worker of each assigned camera.

    The cameras with the highest rates are assigned first, each to the worker whose load fraction with the camera is the
    smallest.

    Args:
        free: frames per second of the cameras that no worker has.
        workers: the workers that may get cameras; their loads are updated in place.
        max_dealt: maximum number of cameras to assign; None = no limit.
    """
    dealt: dict[str, str] = {}
    full_at = float("inf")
    for camera, rate in sorted(free.items(), key=lambda item: (-item[1], item[0])):
        if len(dealt) == max_dealt:
            break
        if rate >= full_at:
            continue
        if not any(worker.load + rate <= worker.limit for worker in workers):
            full_at = rate  # further cameras of this rate are not compared with each worker again
            continue
        able = [worker for worker in workers if worker.has_room(camera, rate)]
        if able:
            best = min(able, key=lambda worker: ((worker.load + rate) / worker.limit, worker.worker))
            best.add(camera, rate)
            dealt[camera] = best.worker
    return dealt


def reasons_not_dealt(waiting: Mapping[str, float], workers: Sequence[WorkerLoad]) -> dict[str, str]:
    """Return the reason why each camera has no worker, with the remedy.

    Args:
        waiting: frames per second of the cameras.
        workers: the workers that may get cameras.
    """
    rooms = {worker.worker: max(worker.limit - worker.load, 0.0) for worker in workers}
    most = max(rooms.values(), default=0.0)
    unable = frozenset[str]().union(*(worker.unable for worker in workers))
    reasons = {}
    for camera, rate in waiting.items():
        room = most
        if camera in unable:
            room = max((rooms[worker.worker] for worker in workers if camera not in worker.unable), default=-1.0)
        if not workers:
            reasons[camera] = "no worker accepts cameras; start a worker, or end the drain of a node"
        elif room < 0:
            reasons[camera] = (
                "no node has a source of this name; add the source to the file of a node that can connect to the camera"
            )
        else:
            reasons[camera] = (
                f"beyond capacity: the camera needs {rate:g} frames/s, but no worker has more than {room:.1f} "
                "frames/s left; add a worker, or lower the rates of cameras"
            )
    return reasons


def choose_moves(workers: Sequence[WorkerLoad], timing: FleetTiming) -> list[str]:
    """Return the cameras to revoke from the fullest worker, so that ``deal`` assigns them to an emptier worker.

    No camera moves if the imbalance is tolerated, or if the move would make the other worker as full.
    """
    loads = {worker.worker: WorkerLoad(worker.worker, worker.limit, dict(worker.cameras), worker.unable)
             for worker in workers if worker.limit > 0}  # fmt: skip
    moves: list[str] = []
    while len(moves) < timing.max_moves and (move := _best_move(list(loads.values()), timing.imbalance)):
        camera, source, target = move
        loads[target].add(camera, loads[source].remove(camera))
        moves.append(camera)
    return moves


def _best_move(workers: Sequence[WorkerLoad], imbalance: float) -> tuple[str, str, str] | None:
    """Return the move that balances the fullest and the emptiest worker best: camera, old and new worker."""
    if len(workers) < 2:
        return None
    fullest = max(workers, key=lambda worker: (worker.fraction, worker.worker))
    emptiest = min(workers, key=lambda worker: (worker.fraction, worker.worker))
    if fullest.fraction - emptiest.fraction <= imbalance:
        return None
    candidates = []
    for camera, rate in fullest.cameras.items():
        after = max((fullest.load - rate) / fullest.limit, (emptiest.load + rate) / emptiest.limit)
        if emptiest.has_room(camera, rate) and after < fullest.fraction:
            candidates.append((after, camera))
    return (min(candidates)[1], fullest.worker, emptiest.worker) if candidates else None
