"""A bounded queue for items of several cameras that gives each camera an equal share of time. No threads, no clock.

Each camera has its own queue, so that the items of one camera never displace the items of another. The next item comes
from the camera that has used the least time: a camera whose items take long does not delay the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")

MAX_KEYS: Final = 1024
"""Maximum number of cameras with their own queue. All further cameras share one queue, which limits the memory."""
_SHARED: Final = "\0shared"


@dataclass(slots=True)
class _CameraQueue(Generic[T]):
    """The queued items of one camera."""

    used_seconds: float
    items: deque[T] = field(default_factory=deque)
    held_bytes: int = 0


class FairQueue(Generic[T]):
    """A start-time fair queue of items by camera (Goyal, Vin and Cheng 1996). The caller must hold a lock."""

    def __init__(
        self,
        depth: int,
        *,
        key: Callable[[T], str] = lambda _item: "",
        size_of: Callable[[T], int] = lambda _item: 0,
        max_bytes: int = 1 << 28,
    ) -> None:
        """Create an empty queue.

        Args:
            depth: maximum number of queued items of a camera.
            key: returns the camera of an item.
            size_of: returns the size of an item in bytes.
            max_bytes: maximum size of all queued items in bytes; each camera has an equal share of it. One item of each
                camera may always be queued.
        """
        self._depth, self._key, self._size_of, self._max_bytes = depth, key, size_of, max_bytes
        self._queues: dict[str, _CameraQueue[T]] = {}
        self._waiting: dict[str, _CameraQueue[T]] = {}
        """The queues that have items."""
        self._virtual_time = 0.0
        """Used time of the camera whose item was returned last, before that item."""

    def __len__(self) -> int:
        """Return the number of queued items."""
        return sum(len(queue.items) for queue in self._waiting.values())

    def has_room(self, item: T) -> bool:
        """Return whether an item may be added within the limits."""
        queue = self._waiting.get(self._name_of(item))
        if queue is None:
            return True
        share_bytes = self._max_bytes // len(self._queues)
        return len(queue.items) < self._depth and queue.held_bytes + self._size_of(item) <= share_bytes

    def drop_oldest(self, item: T) -> T:
        """Remove and return the oldest item of the camera of ``item``, to make room for ``item``."""
        return self._take_from(self._name_of(item))

    def add(self, item: T) -> None:
        """Add an item after the other items of its camera."""
        name = self._name_of(item)
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = _CameraQueue(0.0)
        if not queue.items:
            # A camera gets no credit for time that it did not use.
            queue.used_seconds = max(queue.used_seconds, self._virtual_time)
            self._waiting[name] = queue
        queue.items.append(item)
        queue.held_bytes += self._size_of(item)

    def take(self) -> T | None:
        """Remove and return the next item; None if the queue is empty."""
        if not self._waiting:
            return None
        name, queue = min(self._waiting.items(), key=_used_seconds)
        self._virtual_time = queue.used_seconds
        return self._take_from(name)

    def used(self, item: T, seconds: float) -> None:
        """Add the time that an item took, in seconds, to the used time of its camera."""
        if (queue := self._queues.get(self._name_of(item))) is not None:
            queue.used_seconds += seconds

    def forget(self, key: str) -> bool:
        """Remove the queue of a camera; return False, without effect, while it has items."""
        if key in self._waiting:
            return False
        self._queues.pop(key, None)
        return True

    def clear(self) -> list[T]:
        """Remove and return all items."""
        items = [item for queue in self._waiting.values() for item in queue.items]
        self._queues.clear()
        self._waiting.clear()
        return items

    def _name_of(self, item: T) -> str:
        name = self._key(item)
        return name if name in self._queues or len(self._queues) < MAX_KEYS else _SHARED

    def _take_from(self, name: str) -> T:
        queue = self._waiting[name]
        item = queue.items.popleft()
        queue.held_bytes -= self._size_of(item)
        if not queue.items:
            del self._waiting[name]
        return item


def _used_seconds(entry: tuple[str, _CameraQueue[Any]]) -> float:
    return entry[1].used_seconds
