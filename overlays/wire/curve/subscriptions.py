"""Stores the subscriptions of a ZeroMQ publisher's viewers, within limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

MAX_TOPICS_PER_CONNECTION: Final = 1024
MAX_TOPICS: Final = 8192
"""Maximum number of different topics over all connections."""
MAX_TOPIC_BYTES_PER_CONNECTION: Final = 128 << 10
_MIN_TOPICS: Final = 32
"""Number of topics that each connection may have even when ``MAX_TOPICS`` is reached."""


class Subscriptions:
    """Subscribed topics by connection. Only the socket's thread may use it; any thread may read ``topics``.

    Args:
        serial: returns the serial number of the connection with a descriptor, because descriptors are reused.
    """

    def __init__(self, serial: Callable[[int], int] = lambda _: 0) -> None:
        self._serial = serial
        self._by_descriptor: dict[int, tuple[int, set[bytes], int]] = {}
        """By descriptor: serial number of the connection, its topics, and their total size in bytes."""
        self._ended: dict[int, int] = {}
        self._watched: set[bytes] = set()
        self._changed = False
        # Replaced, never changed in place, because any thread reads this set.
        self.topics: frozenset[bytes] = frozenset()

    def add(self, topic: bytes, descriptor: int | None) -> bool:
        """Add a subscription; return False if its connection exceeds a limit and must be closed."""
        if descriptor is not None and not self._is_within_limits(topic, descriptor):
            return False
        self._changed = self._changed or topic not in self._watched
        self._watched.add(topic)
        return True

    def remove(self, topic: bytes) -> None:
        """Remove a topic without subscribers."""
        self._changed = self._changed or topic in self._watched
        self._watched.discard(topic)

    def publish(self) -> None:
        """Update ``topics``, so that other threads see the changes."""
        if self._changed:
            self._changed = False
            self.topics = frozenset(self._watched)

    def matches(self, topic: bytes) -> bool:
        """Return whether a subscription is a prefix of ``topic``; the time depends only on the topic's length."""
        return matches(self.topics, topic)

    def _is_within_limits(self, topic: bytes, descriptor: int) -> bool:
        current = self._serial(descriptor)
        if self._ended.get(descriptor) == current:
            return False  # a subscription of a connection that is being closed
        serial, topics, size = self._by_descriptor.get(descriptor, (current, set(), 0))
        if serial != current:
            topics, size = set(), 0
        if topic not in topics:
            topics.add(topic)
            size += len(topic)
        self._by_descriptor[descriptor] = (current, topics, size)
        if len(self._by_descriptor) > MAX_TOPICS_PER_CONNECTION:
            self._by_descriptor = {
                known: entry for known, entry in self._by_descriptor.items() if self._serial(known) == entry[0]
            }
        many = len(topics) > MAX_TOPICS_PER_CONNECTION or size > MAX_TOPIC_BYTES_PER_CONNECTION
        if many or (len(self._watched) >= MAX_TOPICS and topic not in self._watched and len(topics) > _MIN_TOPICS):
            self._by_descriptor.pop(descriptor, None)
            self._ended[descriptor] = current
            if len(self._ended) > MAX_TOPICS_PER_CONNECTION:
                self._ended = {descriptor: current}
            return False
        return True


def matches(topics: frozenset[bytes], topic: bytes) -> bool:
    """Return whether one of ``topics`` is a prefix of ``topic``."""
    return any(topic[:length] in topics for length in range(len(topic) + 1))
