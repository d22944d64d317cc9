"""Schema of the event database (SQLite): tables, migrations, connections and disk errors."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from pipeline.errors import SinkError

APPLICATION_ID: Final = 0x72635374
"""``PRAGMA application_id`` of event databases, which distinguishes them from other programs' files."""
PAGE_BYTES: Final = 4096
WAL_BYTES: Final = 4 << 20
"""Maximum size of the write-ahead log between two checkpoints, in bytes."""
BUSY_SECONDS: Final = 2.0
LONG_SECONDS: Final = 3600
"""Duration in seconds above which events have a separate index, so that a query finds long events by their end."""
MIGRATIONS: Final = (
    """
    CREATE TABLE event (
        id TEXT NOT NULL PRIMARY KEY,
        kind TEXT NOT NULL,
        camera TEXT NOT NULL,
        rule TEXT NOT NULL,
        text TEXT NOT NULL,
        start REAL NOT NULL,
        seen REAL NOT NULL,
        end REAL,
        label TEXT,
        score REAL,
        track INTEGER,
        figure_name TEXT,
        figure_value REAL,
        figure_bound REAL,
        images TEXT NOT NULL DEFAULT '',
        interrupted INTEGER NOT NULL DEFAULT 0,
        state TEXT NOT NULL DEFAULT 'new',
        by TEXT NOT NULL DEFAULT '',
        acted REAL,
        snoozed_until REAL,
        note TEXT NOT NULL DEFAULT ''
    );
    CREATE INDEX event_camera ON event (camera, id);
    CREATE INDEX event_kind ON event (kind, id);
    CREATE INDEX event_label ON event (label, id);
    CREATE INDEX event_state ON event (state, id);
    CREATE INDEX event_open ON event (id) WHERE end IS NULL;
    CREATE INDEX event_long ON event (id) WHERE end IS NULL OR end - start > 3600;
    CREATE INDEX event_snoozed ON event (camera, kind, rule, snoozed_until) WHERE snoozed_until IS NOT NULL;
    CREATE TABLE evidence (
        id TEXT NOT NULL PRIMARY KEY REFERENCES event ON DELETE CASCADE,
        plain BLOB,
        heat BLOB,
        figures TEXT NOT NULL
    );
    """,
    """
    ALTER TABLE event ADD COLUMN version INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX event_rule ON event (camera, kind, rule, id) WHERE end IS NOT NULL;
    """,
)
"""Migration script of each schema version, from version 1. ``PRAGMA user_version`` contains a file's version."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Convert SQLite errors to ``OSError`` with the matching error number."""
    try:
        yield
    except sqlite3.Error as error:
        number = _error_number(error, path)
        reason = f"{os.strerror(number)}: {error}" if number == errno.EIO else os.strerror(number)
        raise OSError(number, reason) from error


def _error_number(error: sqlite3.Error, path: Path) -> int:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_CANTOPEN:
        return errno.EACCES if path.parent.is_dir() else errno.ENOENT
    numbers = {
        sqlite3.SQLITE_FULL: errno.ENOSPC,
        sqlite3.SQLITE_READONLY: errno.EROFS,
        sqlite3.SQLITE_BUSY: errno.EBUSY,
        sqlite3.SQLITE_LOCKED: errno.EBUSY,
    }
    return numbers.get(code, errno.EIO)


def connect_writer(path: Path) -> sqlite3.Connection:
    """Open the database for writing; create it if it is missing, and migrate its schema to the newest version.

    Raises:
        SinkError: another program or a newer version of this program wrote the file, or the file is damaged.
        OSError: the file cannot be opened or written.
    """
    with disk_errors(path):
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            _check_owner(connection, path)
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_BYTES // PAGE_BYTES}")
            connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
            connection.execute("PRAGMA foreign_keys = ON")
            _migrate(connection)
        except BaseException:
            connection.close()
            raise
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """Return a read-only connection, which does not wait for writers; raises ``OSError`` if the file cannot be read."""
    with disk_errors(path):
        address = f"file:{quote(os.fsencode(path.resolve()))}?mode=ro"
        connection = sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
        connection.row_factory = sqlite3.Row
        return connection


def _check_owner(connection: sqlite3.Connection, path: Path) -> None:
    try:
        tables = pragma(connection, "schema_version")
        owner, version = pragma(connection, "application_id"), pragma(connection, "user_version")
    except sqlite3.DatabaseError as error:
        refuse_damaged(error, path)
        raise
    if tables and owner != APPLICATION_ID:
        raise SinkError(f"{path}: is a database of another program; choose another file")
    if version > len(MIGRATIONS):
        raise SinkError(
            f"{path}: its schema has version {version}, and this program supports versions up to {len(MIGRATIONS)}; "
            "update the program, or choose another file"
        )


def refuse_damaged(error: BaseException | None, path: Path) -> None:
    """Raise ``SinkError`` if a SQLite error means that the file is damaged or not a database."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}:
        raise SinkError(f"{path}: is not a database, or is damaged ({error}); move it away") from None


def _migrate(connection: sqlite3.Connection) -> None:
    """Run the migrations that the file lacks, each in one transaction that also sets the version."""
    version = pragma(connection, "user_version")
    for number, script in enumerate(MIGRATIONS[version:], version + 1):
        stamp = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {number};"
        try:
            connection.executescript(f"BEGIN IMMEDIATE; {script}; {stamp} COMMIT;")
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def pragma(connection: sqlite3.Connection, name: str) -> int:
    """Return the integer value of a pragma."""
    row: tuple[Any, ...] = connection.execute(f"PRAGMA {name}").fetchone()
    return int(row[0])
