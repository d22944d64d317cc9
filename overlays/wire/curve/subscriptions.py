"""What the viewers of a ZeroMQ publisher have subscribed to, within bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

MAX_TOPICS_PER_CONNECTION: Final = 1024
MAX_TOPICS: Final = 8192
"""Of all connections together."""
MAX_TOPIC_BYTES_PER_CONNECTION: Final = 128 << 10
_MIN_TOPICS: Final = 32
"""A connection with fewer is not ended for the sum of all."""


class Subscriptions:
    """Topics by connection. Belongs to the thread that reads the publisher's socket; ``topics`` may be read by any.

    Args:
        serial: tells one connection from a later one with the same descriptor.
    """

    def __init__(self, serial: Callable[[int], int] = lambda _: 0) -> None:
        self._serial = serial
        self._of: dict[int, tuple[int, set[bytes], int]] = {}
        """By descriptor: the connection's serial number, its topics, and their bytes."""
        self._ended: dict[int, int] = {}
        self._watched: set[bytes] = set()
        self._changed = False
        # Replaced as a whole; read by any thread.
        self.topics: frozenset[bytes] = frozenset()

    def add(self, topic: bytes, descriptor: int | None) -> bool:
        """Note a subscription; False where its connection has too many and has to be ended."""
        if descriptor is not None and not self._counts(topic, descriptor):
            return False
        self._changed = self._changed or topic not in self._watched
        self._watched.add(topic)
        return True

    def remove(self, topic: bytes) -> None:
        """Note that nobody is subscribed to this topic any more."""
        self._changed = self._changed or topic in self._watched
        self._watched.discard(topic)

    def publish(self) -> None:
        """Show to other threads what has changed."""
        if self._changed:
            self._changed = False
            self.topics = frozenset(self._watched)

    def matches(self, topic: bytes) -> bool:
        """Say whether somebody is subscribed to a beginning of ``topic``, at a cost that no viewer can raise."""
        return matches(self.topics, topic)

    def _counts(self, topic: bytes, descriptor: int) -> bool:
        now = self._serial(descriptor)
        if self._ended.get(descriptor) == now:
            return False  # what was on its way when the connection was ended
        serial, topics, size = self._of.get(descriptor, (now, set(), 0))
        if serial != now:
            topics, size = set(), 0
        if topic not in topics:
            topics.add(topic)
            size += len(topic)
        self._of[descriptor] = (now, topics, size)
        if len(self._of) > MAX_TOPICS_PER_CONNECTION:
            self._of = {one: entry for one, entry in self._of.items() if self._serial(one) == entry[0]}
        many = len(topics) > MAX_TOPICS_PER_CONNECTION or size > MAX_TOPIC_BYTES_PER_CONNECTION
        if many or (len(self._watched) >= MAX_TOPICS and topic not in self._watched and len(topics) > _MIN_TOPICS):
            self._of.pop(descriptor, None)
            self._ended[descriptor] = now
            if len(self._ended) > MAX_TOPICS_PER_CONNECTION:
                self._ended = {descriptor: now}
            return False
        return True


def matches(topics: frozenset[bytes], topic: bytes) -> bool:
    """Say whether one of ``topics`` is a beginning of ``topic``."""
    return any(topic[:length] in topics for length in range(len(topic) + 1))
