"""Subscriptions of the viewers of a ZeroMQ publisher, within limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

MAX_TOPICS_PER_CONNECTION: Final = 1024
MAX_TOPICS: Final = 8192
"""Maximum over all connections."""
MAX_TOPIC_BYTES_PER_CONNECTION: Final = 128 << 10
_MIN_TOPICS: Final = 32
"""A connection with at most this many topics is not ended because of ``MAX_TOPICS``."""


class Subscriptions:
    """Topics by connection. Belongs to the thread that reads the publisher's socket; any thread may read ``topics``.

    Args:
        serial: returns a number that distinguishes a connection from a later one with the same descriptor.
    """

    def __init__(self, serial: Callable[[int], int] = lambda _: 0) -> None:
        self._serial = serial
        self._by_descriptor: dict[int, tuple[int, set[bytes], int]] = {}
        """By descriptor: serial number of the connection, its topics, and their size in bytes."""
        self._ended: dict[int, int] = {}
        self._watched: set[bytes] = set()
        self._changed = False
        # Replaced as a whole; read by any thread.
        self.topics: frozenset[bytes] = frozenset()

    def add(self, topic: bytes, descriptor: int | None) -> bool:
        """Add a subscription; return False if its connection has too many and has to be ended."""
        if descriptor is not None and not self._is_within_limits(topic, descriptor):
            return False
        self._changed = self._changed or topic not in self._watched
        self._watched.add(topic)
        return True

    def remove(self, topic: bytes) -> None:
        """Remove a topic that has no subscriber any more."""
        self._changed = self._changed or topic in self._watched
        self._watched.discard(topic)

    def publish(self) -> None:
        """Make the changes visible to other threads in ``topics``."""
        if self._changed:
            self._changed = False
            self.topics = frozenset(self._watched)

    def matches(self, topic: bytes) -> bool:
        """Return whether a subscription is a prefix of ``topic``, in a time that viewers cannot increase."""
        return matches(self.topics, topic)

    def _is_within_limits(self, topic: bytes, descriptor: int) -> bool:
        current = self._serial(descriptor)
        if self._ended.get(descriptor) == current:
            return False  # it arrived before the end of the connection took effect
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
