"""A bounded queue of several cameras' items that gives each camera its share of the time. Pure: no threads, no clock.

Each camera has a queue of its own, so that the items of one never push out another's. The next item is of the camera
that has used the least time so far: one whose items take long waits for its turn, and the others do not wait for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

T = TypeVar("T")

MAX_KEYS: Final = 64
"""Cameras that have a queue of their own; those beyond share one."""
_SHARED: Final = "\0shared"


@dataclass(slots=True)
class _Lane(Generic[T]):
    """What waits of one camera."""

    used_seconds: float
    items: deque[T] = field(default_factory=deque)
    held_bytes: int = 0


class FairQueue(Generic[T]):
    """Items by camera; whoever uses it holds a lock."""

    def __init__(
        self,
        depth: int,
        *,
        key: Callable[[T], str] = lambda _item: "",
        weigh: Callable[[T], int] = lambda _item: 0,
        most_bytes: int = 1 << 28,
    ) -> None:
        """Take the limits.

        Args:
            depth: how many items of a camera may wait.
            key: the camera of an item.
            weigh: the bytes an item holds.
            most_bytes: what waits may hold so much together; each camera's share of it is the same. One item of each
                camera always may wait.
        """
        self._depth, self._key, self._weigh, self._most_bytes = depth, key, weigh, most_bytes
        self._lanes: dict[str, _Lane[T]] = {}
        self._served_at = 0.0
        """What the camera that was served last had used before: the start-time rule of fair queueing (Goyal, Vin and
        Cheng 1996)."""

    def __len__(self) -> int:
        """Return how many items wait."""
        return sum(len(stream.items) for stream in self._lanes.values())

    def has_room(self, item: T) -> bool:
        """Say whether an item may be added."""
        stream = self._lane_of(item)
        if stream is None or not stream.items:
            return True
        fraction = self._most_bytes // max(len(self._lanes), 1)
        return len(stream.items) < self._depth and stream.held_bytes + self._weigh(item) <= fraction

    def drop_oldest(self, item: T) -> None:
        """Remove the oldest item of the camera of ``item``."""
        stream = self._lane_of(item)
        assert stream is not None  # noqa: S101 - whoever has no room has a queue
        stream.held_bytes -= self._weigh(stream.items.popleft())

    def add(self, item: T) -> None:
        """Add an item behind the others of its camera."""
        stream = self._lane_of(item)
        if stream is None:
            name = self._key(item) if len(self._lanes) < MAX_KEYS else _SHARED
            stream = self._lanes[name] = _Lane(0.0)
        if not stream.items:
            # Who had nothing to do has no claim to that time.
            stream.used_seconds = max(stream.used_seconds, self._served_at)
        stream.items.append(item)
        stream.held_bytes += self._weigh(item)

    def take(self) -> T | None:
        """Remove and return the next item; None where none waits."""
        waiting = [stream for stream in self._lanes.values() if stream.items]
        if not waiting:
            return None
        stream = min(waiting, key=lambda one: one.used_seconds)
        self._served_at = stream.used_seconds
        item = stream.items.popleft()
        stream.held_bytes -= self._weigh(item)
        return item

    def used(self, item: T, seconds: float) -> None:
        """Note how long an item took."""
        if (stream := self._lane_of(item)) is not None:
            stream.used_seconds += seconds

    def clear(self) -> int:
        """Remove all items and return how many there were."""
        count = len(self)
        self._lanes.clear()
        return count

    def _lane_of(self, item: T) -> _Lane[T] | None:
        stream = self._lanes.get(self._key(item))
        return self._lanes.get(_SHARED) if stream is None and len(self._lanes) >= MAX_KEYS else stream
