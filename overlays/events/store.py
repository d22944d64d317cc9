"""Writes events to a database, and deletes events above a maximum age and size.

One thread writes; the page reads through separate connections (``overlays.events.query``). Each call is one
transaction, so a killed run leaves complete events. The next run ends its open events at the time of their last report.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from overlays.events.event import MAX_TEXT, Event, Evidence, lowest_id
from overlays.events.query import COLUMNS, event_record
from overlays.events.schema import PAGE_BYTES, WAL_BYTES, connect_writer, disk_errors, pragma, refuse_damaged

log = logging.getLogger(__name__)

Verb = Literal["acknowledge", "snooze", "note", "reopen"]

_DELETED_AT_ONCE: Final = 50
"""Maximum number of events that one transaction deletes, so that the write-ahead log stays small."""
_MARGIN_BYTES: Final = 1 << 20
"""Free space below the size limit in bytes; larger than one write."""
_RESERVED_BYTES: Final = WAL_BYTES + (1 << 20)
"""Part of the size budget reserved for the write-ahead log and its index, in bytes."""
AGEING: Final = 24.0
"""Maximum advance of the age limit, in seconds per second of the run.

If the system's clock is a year ahead for an hour, only the oldest day of events is deleted instead of all events.
"""
_UPSERT: Final = """
    INSERT INTO event (id, kind, camera, rule, text, start, seen, end, label, score, track,
                       figure_name, figure_value, figure_bound, state, snoozed_until)
    VALUES (:id, :kind, :camera, :rule, :text, :start, :seen, :end, :label, :score, :track,
            :figure_name, :figure_value, :figure_bound, :state, :snoozed_until)
    ON CONFLICT (id) DO UPDATE SET text = :text, seen = :seen, end = :end, label = :label, score = :score,
        track = :track, figure_name = :figure_name, figure_value = :figure_value, figure_bound = :figure_bound
"""
_LARGEST_RULE: Final = """
    SELECT camera, kind, rule FROM event WHERE end IS NOT NULL
    GROUP BY camera, kind, rule ORDER BY count(*) DESC, min(id) LIMIT 1
"""
_DELETE_OF_RULE: Final = """
    DELETE FROM event WHERE id IN (SELECT id FROM event
    WHERE camera = ? AND kind = ? AND rule = ? AND end IS NOT NULL ORDER BY id LIMIT ?)
"""


@dataclass(frozen=True, slots=True)
class Action:
    """A viewer's action on an event."""

    event_id: str
    verb: Verb
    by: str = ""
    """The name that the viewer entered."""
    until: float | None = None
    """End of a snooze in Unix seconds; otherwise None."""
    note: str = ""
    version: int | None = None
    """Version of the event that the viewer saw; None if unknown, which skips the check for conflicts."""


class ActionConflict(Exception):  # noqa: N818 - the answer to a viewer, not a fault
    """The event was changed after the viewer read it."""

    def __init__(self, record: dict[str, Any]) -> None:
        super().__init__("the event was changed meanwhile")
        self.record = record
        """The current event as a JSON value."""


class EventStore:
    """The event database of one run. Only one thread at a time may use it, except ``file_bytes``."""

    def __init__(self, path: Path, *, budget_bytes: int, keep_seconds: float) -> None:
        """Set the database's file and its limits.

        Args:
            path: file of the database.
            budget_bytes: maximum size of the database with its write-ahead log.
            keep_seconds: maximum age of an event.
        """
        self.path = path
        self._limit_bytes = budget_bytes - _RESERVED_BYTES
        self._keep_seconds = keep_seconds
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._age_limit: float | None = None
        """Unix time before which events were deleted; None before the first call of ``prune``."""
        self._aged_at = 0.0
        """Time when ``_age_limit`` was set, in monotonic seconds."""
        self._wakes_at = -math.inf
        """Unix time at which the next snooze ends."""

    def open(self, now_unix: float, now: float) -> list[dict[str, Any]]:
        """Open the database, end the events that a killed run left open, and prune.

        Args:
            now_unix: current wall-clock time in Unix seconds.
            now: current monotonic seconds.

        Returns:
            The events that were still open, as JSON values.

        Raises:
            SinkError: the file belongs to another program, or is damaged.
            OSError: the file cannot be opened or written.
        """
        connection = self._opened()
        try:
            with disk_errors(self.path), _transaction(connection):
                keys = [row[0] for row in connection.execute("SELECT id FROM event WHERE end IS NULL").fetchall()]
                connection.execute("UPDATE event SET end = seen, interrupted = 1 WHERE end IS NULL")
                ended = [record for key in keys if (record := _record(connection, key)) is not None]
            self.prune(now_unix, now)
        except OSError as error:
            self.close()
            refuse_damaged(error.__cause__, self.path)
            raise
        return ended

    def close(self) -> None:
        """Close the connection; SQLite then merges the write-ahead log into the file."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def write(self, changes: Mapping[str, tuple[Event, Evidence | None]]) -> list[dict[str, Any]]:
        """Write events in one transaction and return them as JSON values.

        Args:
            changes: events by identifier; new evidence replaces the previous one, None keeps it.

        Raises:
            OSError: the file cannot be written; then no event is written.
        """
        with self._writing() as connection:
            for event, evidence in changes.values():
                born = _born(connection, event)
                if born["snoozed_until"] is not None:
                    self._wakes_at = min(self._wakes_at, born["snoozed_until"])
                connection.execute(_UPSERT, _row(event) | born)
                if evidence is not None:
                    figures = json.dumps(evidence.figures, ensure_ascii=False, allow_nan=False)
                    values = (event.id, evidence.plain, evidence.heat, figures)
                    connection.execute("INSERT OR REPLACE INTO evidence VALUES (?, ?, ?, ?)", values)
                    images = " ".join(kind for kind in ("plain", "heat") if getattr(evidence, kind) is not None)
                    connection.execute("UPDATE event SET images = ? WHERE id = ?", (images, event.id))
            return [record for key in changes if (record := _record(connection, key)) is not None]

    def act(self, action: Action, now_unix: float) -> dict[str, Any] | None:
        """Apply an action and return the changed event; None if the event does not exist.

        Args:
            action: the viewer's action.
            now_unix: current wall-clock time in Unix seconds.

        Raises:
            ActionConflict: the event has another version than the viewer saw, or is acknowledged already.
            OSError: the file cannot be written.
        """
        changes: dict[str, Any] = {"note": action.note[:MAX_TEXT]} if action.verb == "note" else {
            "state": {"acknowledge": "acknowledged", "snooze": "snoozed"}.get(action.verb, "new"),
            "snoozed_until": action.until if action.verb == "snooze" else None,
        }  # fmt: skip
        changes |= {"by": action.by, "acted": now_unix}
        with self._writing() as connection:
            before = _record(connection, action.event_id)
            if before is None:
                return None
            if action.version not in {None, before["version"]} or (
                action.verb == "acknowledge" and before["state"] == "acknowledged"
            ):
                raise ActionConflict(before)
            columns = ", ".join(f"{name} = :{name}" for name in changes)
            if action.until is not None:
                self._wakes_at = min(self._wakes_at, action.until)
            query = f"UPDATE event SET {columns}, version = version + 1 WHERE id = :id"  # noqa: S608
            connection.execute(query, changes | {"id": action.event_id})
            return _record(connection, action.event_id)

    def wake(self, now_unix: float) -> list[dict[str, Any]]:
        """End all snoozes that are due, and return their events as JSON values; raises ``OSError`` on disk errors."""
        if now_unix < self._wakes_at:
            return []
        with self._writing() as connection:
            query = "SELECT id FROM event WHERE state = 'snoozed' AND snoozed_until <= ?"
            keys = [row[0] for row in connection.execute(query, (now_unix,)).fetchall()]
            update = "UPDATE event SET state = 'new', version = version + 1 WHERE id = ?"
            connection.executemany(update, [(key,) for key in keys])
            records = [record for key in keys if (record := _record(connection, key)) is not None]
            self._wakes_at = _next_wake(connection)
        return records

    def prune(self, now_unix: float, now: float) -> int:
        """Delete events that are too old; above the size limit, delete the oldest events of the most frequent rule.

        A rule that fires all day therefore displaces its own events, not the events of other rules. The age limit
        starts at the oldest event and advances by at most ``AGEING``, even if the system's clock jumps.

        Args:
            now_unix: current wall-clock time in Unix seconds.
            now: current monotonic seconds.

        Returns:
            The number of deleted events.

        Raises:
            OSError: the file cannot be written.
        """
        deleted, oldest = 0, self._advance_age_limit(now_unix - self._keep_seconds, now)
        while True:
            with self._writing() as connection:
                count = connection.execute(
                    # The condition on the identifier, which sorts by start time, lets SQLite search the primary key.
                    "DELETE FROM event WHERE id IN (SELECT id FROM event WHERE id < ? AND end < ? ORDER BY id LIMIT ?)",
                    (lowest_id(oldest + 0.001), oldest, _DELETED_AT_ONCE),
                ).rowcount
                if not count and self.used_bytes() > self._limit_bytes - _MARGIN_BYTES:
                    rule = connection.execute(_LARGEST_RULE).fetchone()
                    count = connection.execute(_DELETE_OF_RULE, (*rule, _DELETED_AT_ONCE)).rowcount if rule else 0
            deleted += count
            # A batch may be incomplete because no single rule has enough events; go on while the database is full.
            if not count or (count < _DELETED_AT_ONCE and not self.is_full()):
                break
        self._shrink()
        return deleted

    def _advance_age_limit(self, wanted: float, now: float) -> float:
        """Return the Unix time before which events are deleted: ``wanted``, or earlier after a jump of the clock."""
        if self._age_limit is None:
            with self._writing() as connection:
                first = connection.execute("SELECT end FROM event WHERE end IS NOT NULL ORDER BY id LIMIT 1").fetchone()
            self._age_limit = wanted if first is None else float(first[0])
        else:
            self._age_limit += AGEING * max(now - self._aged_at, 0.0)
        self._age_limit, self._aged_at = min(wanted, self._age_limit), now
        return self._age_limit

    def used_bytes(self) -> int:
        """Return the size of the database in bytes, without free pages and the write-ahead log."""
        assert self._connection is not None  # noqa: S101 - open
        return (pragma(self._connection, "page_count") - pragma(self._connection, "freelist_count")) * PAGE_BYTES

    def file_bytes(self) -> int:
        """Return the size of the database's files on the disk in bytes. For any thread."""
        return sum(_size(self.path.with_name(f"{self.path.name}{suffix}")) for suffix in ("", "-wal", "-shm"))

    def is_full(self) -> bool:
        """Return whether the size limit requires a call of ``prune``."""
        with disk_errors(self.path):
            return self._connection is not None and self.used_bytes() > self._limit_bytes - _MARGIN_BYTES

    def _shrink(self) -> None:
        """Release free pages to the file system if the file exceeds the limit, as after a reduced budget."""
        connection = self._opened()
        with disk_errors(self.path):
            if pragma(connection, "page_count") * PAGE_BYTES > self._limit_bytes:
                # ``execute`` would free only one page, because it stops at the first row of this statement.
                connection.executescript("PRAGMA incremental_vacuum")

    def _opened(self) -> sqlite3.Connection:
        """Return the open connection; open or create the file again if it was moved or deleted."""
        if self._connection is not None and _identity(self.path) != self._identity:
            log.warning("%s: was moved or deleted; a new file is begun", self.path)
            self.close()
        if self._connection is None:
            self._connection = connect_writer(self.path)
            self._identity = _identity(self.path)
        return self._connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Start a transaction. After an error, the connection is closed; the next call opens it again."""
        try:
            with disk_errors(self.path), _transaction(self._opened()):
                assert self._connection is not None  # noqa: S101 - opened above
                yield self._connection
        except OSError:
            self.close()
            raise


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        raise


def _row(event: Event) -> dict[str, Any]:
    figure = event.figure if event.figure is not None and math.isfinite(event.figure.value) else None
    return {
        "id": event.id, "kind": event.kind, "camera": event.camera, "rule": event.rule, "text": event.text,
        "start": event.start, "seen": event.seen, "end": event.end,
        "label": event.label, "score": _finite(event.score), "track": event.track,
        "figure_name": None if figure is None else figure.name,
        "figure_value": None if figure is None else figure.value,
        "figure_bound": None if figure is None else _finite(figure.bound),
    }  # fmt: skip


def _finite(value: float | None) -> float | None:
    """Return the value; None if it is NaN or infinite, which JSON cannot represent."""
    return value if value is not None and math.isfinite(value) else None


def _born(connection: sqlite3.Connection, event: Event) -> dict[str, Any]:
    """Return the initial state of an event: snoozed if its rule at this camera is snoozed, otherwise new."""
    until = connection.execute(
        "SELECT max(snoozed_until) FROM event WHERE camera = ? AND kind = ? AND rule = ? AND snoozed_until > ?",
        (event.camera, event.kind, event.rule, event.start),
    ).fetchone()[0]
    return {"state": "new" if until is None else "snoozed", "snoozed_until": until}


def _next_wake(connection: sqlite3.Connection) -> float:
    """Return the end of the earliest snooze in Unix seconds; infinity if no event is snoozed."""
    until = connection.execute("SELECT min(snoozed_until) FROM event WHERE state = 'snoozed'").fetchone()[0]
    return math.inf if until is None else float(until)


def _record(connection: sqlite3.Connection, event_id: str) -> dict[str, Any] | None:
    cursor = connection.execute(f"SELECT {COLUMNS} FROM event WHERE id = ?", (event_id,))  # noqa: S608
    row = cursor.fetchone()
    if row is None:
        return None
    names = [column[0] for column in cursor.description]
    return event_record(dict(zip(names, row, strict=True)))


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except OSError:
        return 0
