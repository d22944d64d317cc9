"""MQTT messages of events: one at each start, change and end, and a retained list of each camera's open events."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Final, Protocol

from overlays.events.feed import EventFeed, Notice
from overlays.events.query import EventFilter, EventReader
from overlays.sinks.mqtt.counters import QueuedFinding
from overlays.sinks.mqtt.messages import BrokerAddress, to_json

log = logging.getLogger(__name__)

_MAX_OPEN: Final = 20
"""Maximum number of events in a camera's list; the newest are kept."""
_KEYS: Final = ("id", "kind", "rule", "text", "start", "label", "state", "by")
_ALARMS: Final = frozenset({"guard", "condition"})
_GOES_ON: Final = EventFilter(after=1e11)
"""Selects only open events, which have no end yet."""


class EventSource(Protocol):
    """The interface of the events sink that this module uses; for any thread."""

    reader: EventReader
    feed: EventFeed


class EventTopics:
    """The events of a run as MQTT messages. For one thread."""

    def __init__(self, source: EventSource, broker: BrokerAddress, status: str, uri: str) -> None:
        """Set the source of events, the topics, the status topic of this run, and the sink's URI for messages."""
        self._source, self._broker, self._status, self._uri = source, broker, status, uri
        self._position = 0
        self._open: dict[str, dict[str, dict[str, Any]]] = {}
        """Open events, by camera and identifier."""
        self._published: set[str] = set()
        """Cameras whose current list was published on this connection."""

    def take(self) -> tuple[int, list[QueuedFinding]]:
        """Return the number of lost messages, and the new messages, oldest first."""
        lost, notices = self._source.feed.notices(self._position)
        if not notices:
            return 0, []
        self._position = notices[-1].number
        for notice in notices:
            self._update(notice)
        if lost:
            self._read_again()
        return lost, [self._message(notice) for notice in notices]

    def changed_lists(self, cameras: Iterable[str]) -> list[tuple[str, bytes]]:
        """Return the topics and messages of the lists that changed; at first the lists of all cameras."""
        due = (self._open.keys() | set(cameras)) - self._published
        self._published |= due
        return [(self._broker.open_events(camera), self._list(camera)) for camera in sorted(due)]

    def publish_again(self) -> None:
        """Let ``changed_lists`` return all lists again, for a new connection."""
        self._published.clear()

    def _update(self, notice: Notice) -> None:
        record = notice.record
        events = self._open.setdefault(record["camera"], {})
        if record["end"] is None:
            events[record["id"]] = record
        else:
            events.pop(record["id"], None)
        self._published.discard(record["camera"])

    def _read_again(self) -> None:
        """Read all lists from the database again, after notices were lost."""
        try:
            page = self._source.reader.page(_GOES_ON, limit=1000)
        except OSError as error:
            log.warning(
                "%s: cannot read the events database (%s); the published list of open events may be out of date",
                self._uri, error.strerror or error,
            )  # fmt: skip
            return
        self._published.clear()
        self._open = {camera: {} for camera in self._open}
        for record in page.events:
            self._open.setdefault(record["camera"], {})[record["id"]] = record

    def _message(self, notice: Notice) -> QueuedFinding:
        message = to_json({"type": f"event.{notice.occasion}"} | notice.record)
        return QueuedFinding(self._broker.event(notice.record["camera"]), message, is_file=False, is_passage=True)

    def _list(self, camera: str) -> bytes:
        events = sorted(self._open.get(camera, {}).values(), key=lambda record: record["id"], reverse=True)
        return to_json({
            "camera": camera,
            "alarm": any(record["kind"] in _ALARMS for record in events),
            "open": [{name: record[name] for name in _KEYS} for record in events[:_MAX_OPEN]],
            "status": self._status,
        })  # fmt: skip
