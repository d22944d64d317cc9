"""Reads events with filters and pages, and their images. Each query has its own connection, so no writer blocks it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from overlays.events.event import EventKind, State, lowest_id
from overlays.events.schema import LONG_SECONDS, connect_reader, disk_errors

MAX_LIMIT: Final = 1000
MAX_COUNT: Final = 1000
_FIELDS: Final = (
    "id", "kind", "camera", "rule", "text", "start", "seen", "end", "label", "score", "track", "figure_name",
    "figure_value", "figure_bound", "images", "interrupted", "state", "by", "acted", "snoozed_until", "note", "version",
)  # fmt: skip
COLUMNS: Final = ", ".join(_FIELDS)


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Filter of a query. An empty field accepts all events."""

    after: float | None = None
    """Unix seconds; excludes events that ended earlier."""
    before: float | None = None
    """Unix seconds; excludes events that started at this time or later."""
    cameras: Sequence[str] = ()
    kinds: Sequence[EventKind] = ()
    labels: Sequence[str] = ()
    states: Sequence[State] = ()

    def condition(self) -> tuple[str, list[Any]]:
        """Return the filter as an SQL condition and the values of its parameters."""
        parts, values = ["1"], list[Any]()
        if self.after is not None:
            parts.append("(end IS NULL OR end >= ?)")
            values.append(self.after)
        if self.before is not None:
            parts.append("id < ?")
            values.append(lowest_id(self.before))
        for column, chosen in (("camera", self.cameras), ("kind", self.kinds), ("label", self.labels),
                               ("state", self.states)):  # fmt: skip
            if chosen:
                parts.append(f"{column} IN ({', '.join('?' * len(chosen))})")
                values += chosen
        return " AND ".join(parts), values


@dataclass(frozen=True, slots=True)
class EventPage:
    """One page of the events of a query, newest first."""

    events: list[dict[str, Any]]
    next_before: str | None
    """Identifier to pass as ``before_id`` for the next page; None after the last."""


class EventReader:
    """Queries one database. Any thread may use it; every method raises ``OSError`` if the file cannot be read."""

    def __init__(self, path: Path) -> None:
        """Set the database's file."""
        self._path = path

    def page(self, chosen: EventFilter, *, limit: int = 100, before_id: str | None = None) -> EventPage:
        """Return one page of events, newest first.

        Args:
            chosen: the filter.
            limit: maximum number of events, 1 to ``MAX_LIMIT``.
            before_id: ``next_before`` of the previous page; None for the first page.
        """
        condition, values = chosen.condition()
        if before_id is not None:
            condition, values = f"{condition} AND id < ?", [*values, before_id]
        if chosen.after is None:
            rows = self._newest(condition, values, limit)
        else:
            edge = lowest_id(chosen.after - LONG_SECONDS)
            rows = self._newest(f"{condition} AND id >= ?", [*values, edge], limit)
            if len(rows) <= limit:
                long = f"{condition} AND id < ? AND (end IS NULL OR end - start > {LONG_SECONDS})"
                rows += self._newest(long, [*values, edge], limit - len(rows))
        events = [event_record(row) for row in rows[:limit]]
        return EventPage(events, events[-1]["id"] if len(rows) > limit else None)

    def event(self, event_id: str) -> dict[str, Any] | None:
        """Return an event with its ``figures``; None if the event does not exist."""
        query = f"SELECT {COLUMNS}, figures FROM event LEFT JOIN evidence USING (id) WHERE id = ?"  # noqa: S608
        rows = self._rows(query, [event_id])
        if not rows:
            return None
        figures = rows[0]["figures"]
        return event_record(rows[0]) | {"figures": json.loads(figures) if figures else {}}

    def image(self, event_id: str, kind: Literal["plain", "heat"]) -> bytes | None:
        """Return an image of an event as JPEG; None if the image does not exist."""
        rows = self._rows(f"SELECT {kind} AS image FROM evidence WHERE id = ?", [event_id])  # noqa: S608
        return rows[0]["image"] if rows else None

    def summary(self) -> dict[str, Any]:
        """Return the numbers of new (at most ``MAX_COUNT``) and open events, and all cameras, kinds and labels."""
        counts = self._rows(
            "SELECT (SELECT count(*) FROM (SELECT 1 FROM event WHERE state = 'new' LIMIT ?)) AS new, "
            "(SELECT count(*) FROM event WHERE end IS NULL) AS open",
            [MAX_COUNT],
        )[0]
        known = {f"{name}s": self._distinct(name) for name in ("camera", "kind", "label")}
        return dict(counts) | known

    def _distinct(self, column: str) -> list[str]:
        """Return the different values of an indexed column, with one index search per value."""
        query = (
            f"WITH RECURSIVE found(value) AS (SELECT min({column}) FROM event UNION ALL "  # noqa: S608
            f"SELECT (SELECT min({column}) FROM event WHERE {column} > found.value) FROM found "
            "WHERE found.value IS NOT NULL LIMIT 1000) SELECT value FROM found WHERE value IS NOT NULL"
        )
        return [row["value"] for row in self._rows(query, [])]

    def _newest(self, condition: str, values: Sequence[Any], limit: int) -> list[Any]:
        """Return the newest rows, one more than ``limit``, which shows whether a next page exists."""
        query = f"SELECT {COLUMNS} FROM event WHERE {condition} ORDER BY id DESC LIMIT ?"  # noqa: S608
        return self._rows(query, [*values, limit + 1])

    def _rows(self, query: str, values: Sequence[Any]) -> list[Any]:
        with disk_errors(self._path), closing(connect_reader(self._path)) as connection:
            return connection.execute(query, values).fetchall()


def event_record(row: Mapping[str, Any] | Any) -> dict[str, Any]:  # noqa: ANN401 - sqlite3.Row is no Mapping
    """Return a database row, with columns by name, as the JSON value of an event."""
    record = {name: row[name] for name in _FIELDS if not name.startswith("figure_")}
    name, value, bound = row["figure_name"], row["figure_value"], row["figure_bound"]
    record["figure"] = None if name is None else {"name": name, "value": value, "bound": bound}
    record["interrupted"] = bool(row["interrupted"])
    record["images"] = row["images"].split()
    return record
