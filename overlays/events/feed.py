"""Stores the last changes of events for pages, and notices of starts, changes and ends for webhooks and MQTT."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple

Occasion = Literal["started", "changed", "ended"]
"""Kind of a notice. ``changed``: a viewer changed the event's state or note, or its snooze ended."""

_KEPT: Final = 256
"""Number of stored changes. A reader that missed more has to query all events again."""
MAX_NOTICES: Final = 1000
"""Number of stored notices. A receiver that is further behind loses the oldest."""


class Notice(NamedTuple):
    """A start, change or end of an event, for external receivers. Each event has one start and one end."""

    number: int
    """Sequence number, from 1."""
    occasion: Occasion
    record: dict[str, Any]
    """The event at this occasion, as JSON values."""


class EventFeed:
    """Numbered changes and notices. One thread publishes; any thread reads."""

    def __init__(self) -> None:
        # Guards the changes and notices; held only while they are added or copied.
        self._lock = threading.Lock()
        self._changes: deque[tuple[int, dict[str, Any]]] = deque(maxlen=_KEPT)
        self._notices: deque[Notice] = deque(maxlen=MAX_NOTICES)
        self.revision = 0
        """Number of changes so far."""
        self.noticed = 0
        """Number of notices so far."""

    def publish(
        self, records: Sequence[dict[str, Any]], notices: Sequence[tuple[Occasion, dict[str, Any]]] = ()
    ) -> None:
        """Store changed events and notices.

        Args:
            records: the changed events as JSON values.
            notices: occasion and event (JSON values) of each notice.
        """
        with self._lock:
            for record in records:
                self.revision += 1
                self._changes.append((self.revision, record))
            for occasion, record in notices:
                self.noticed += 1
                self._notices.append(Notice(self.noticed, occasion, record))

    def since(self, revision: int) -> tuple[int, list[dict[str, Any]] | None]:
        """Return the current revision, and the newest state of each event that changed after ``revision``.

        The events are None if more events changed than the feed stores; then query all events again.
        """
        with self._lock:
            if revision == self.revision:
                return revision, []
            if not 0 <= revision <= self.revision or self.revision - revision > len(self._changes):
                return self.revision, None
            changed = {record["id"]: record for number, record in self._changes if number > revision}
            return self.revision, list(changed.values())

    def notices(self, after: int, limit: int | None = None) -> tuple[int, list[Notice]]:
        """Return the number of lost notices, and the stored notices after ``after``, oldest first.

        Args:
            after: number of the last notice that the receiver has; 0 for none.
            limit: maximum number of notices; None for all.
        """
        if after == self.noticed:
            return 0, []
        with self._lock:
            kept = [notice for notice in self._notices if notice.number > after]
        lost = kept[0].number - after - 1 if kept else 0
        return lost, kept[:limit]
