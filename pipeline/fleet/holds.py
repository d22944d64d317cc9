"""The leases of all workers, indexed by camera and by worker."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

_NONE: Final[Mapping[str, Hold]] = MappingProxyType({})


@dataclass(slots=True)
class Hold:
    """The lease of a camera that a worker has, or may still use."""

    worker: str
    epoch: int
    is_revoked: bool = False
    """True after the lease was revoked: the camera is free when a beat no longer lists it, or the lease has ended."""


class Holds:
    """The holds of all cameras, indexed by worker, too: the time for a beat depends on one worker's cameras only."""

    def __init__(self) -> None:
        """Create it without holds."""
        self._by_camera: dict[str, Hold] = {}
        self._by_worker: dict[str, dict[str, Hold]] = {}

    def __contains__(self, camera: str) -> bool:
        return camera in self._by_camera

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_camera)

    def items(self) -> Collection[tuple[str, Hold]]:
        """Return all pairs of a camera and its hold."""
        return self._by_camera.items()

    def get(self, camera: str) -> Hold | None:
        """Return the hold of a camera; None if there is none."""
        return self._by_camera.get(camera)

    def of(self, worker: str) -> Mapping[str, Hold]:
        """Return the holds of a worker by camera."""
        return self._by_worker.get(worker, _NONE)

    def add(self, camera: str, hold: Hold) -> None:
        """Set the hold of a camera; it replaces an existing hold."""
        self.remove(camera)
        self._by_camera[camera] = hold
        self._by_worker.setdefault(hold.worker, {})[camera] = hold

    def remove(self, camera: str) -> None:
        """Remove the hold of a camera, if there is one."""
        hold = self._by_camera.pop(camera, None)
        if hold is not None:
            del self._by_worker[hold.worker][camera]
            if not self._by_worker[hold.worker]:
                del self._by_worker[hold.worker]

    def remove_worker(self, worker: str) -> None:
        """Remove all holds of a worker."""
        for camera in self._by_worker.pop(worker, {}):
            del self._by_camera[camera]
