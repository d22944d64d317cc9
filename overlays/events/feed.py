"""The last changes of events, for pages that are told at once."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

_KEPT: Final = 256
"""Changes that are kept; a reader that is further behind has to query again."""


class EventFeed:
    """Numbered changes. One thread publishes, any reads."""

    def __init__(self) -> None:
        # Guards the changes; held only to add or to copy them.
        self._lock = threading.Lock()
        self._changes: deque[tuple[int, dict[str, Any]]] = deque(maxlen=_KEPT)
        self.revision = 0
        """Number of changes so far."""

    def publish(self, records: Sequence[dict[str, Any]]) -> None:
        """Add changed events as JSON values."""
        with self._lock:
            for record in records:
                self.revision += 1
                self._changes.append((self.revision, record))

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
