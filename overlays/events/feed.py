"""The last changes of events: for pages that are told at once, and for receivers that get each occasion once."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple

Occasion = Literal["started", "changed", "ended"]
"""An event began; a viewer changed its state or note, or its snooze is over; it ended."""

_KEPT: Final = 256
"""Changes that are kept; a reader that is further behind has to query again."""
MAX_NOTICES: Final = 1000
"""Notices that are kept; a receiver that is further behind loses the oldest."""


class Notice(NamedTuple):
    """An occasion of an event for receivers outside: each event has one start and one end."""

    number: int
    """Counts from 1."""
    occasion: Occasion
    record: dict[str, Any]
    """The event at this occasion, as JSON values."""


class EventFeed:
    """Numbered changes and notices. One thread publishes, any reads."""

    def __init__(self) -> None:
        # Guards the changes and notices; held only to add or to copy them.
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
        """Add changed events as JSON values, and the occasions among the changes."""
        with self._lock:
            for record in records:
                self.revision += 1
                self._changes.append((self.revision, record))
            for occasion, record in notices:
                self.noticed += 1
                self._notices.append(Notice(self.noticed, occasion, record))

    def since(self, revision: int) -> tuple[int, list[dict[str, Any]] | None]:
        """Return the present revision and the events that changed after ``revision``, each once, as they are now.

        None in place of the events: too many changed, and all have to be queried again.
        """
        with self._lock:
            if revision == self.revision:
                return revision, []
            if not 0 <= revision <= self.revision or self.revision - revision > len(self._changes):
                return self.revision, None
            changed = {record["id"]: record for number, record in self._changes if number > revision}
            return self.revision, list(changed.values())

    def notices(self, after: int, limit: int | None = None) -> tuple[int, list[Notice]]:
        """Return the notices after a number, the oldest first, and how many before them are no longer kept.

        Args:
            after: number of the last notice that the receiver has; 0 for none.
            limit: number of notices at most; None for all.
        """
        if after == self.noticed:
            return 0, []
        with self._lock:
            kept = [notice for notice in self._notices if notice.number > after]
        lost = kept[0].number - after - 1 if kept else 0
        return lost, kept[:limit]
