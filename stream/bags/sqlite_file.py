"""Reader of ROS 2 bags in SQLite: ``*.db3``."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Final
from urllib.parse import quote

import zstandard

from stream.bags.container import MAX_RECORD_BYTES, BagDamageError, BagMessage, BagReader, Topic

_ZSTD: Final = b"\x28\xb5\x2f\xfd"
"""Magic number of a compressed message; an uncompressed message in CDR starts with a zero byte."""
_RECOVER: Final = "try `sqlite3 FILE.db3 .recover | sqlite3 REPAIRED.db3`"


class SqliteBag(BagReader):
    """Reads ``*.db3`` files; each message may be compressed."""

    def topics(self) -> list[Topic]:
        """Return the topics in the table ``topics``."""
        with self._connection() as database, _damage():
            rows = database.execute("SELECT name, type, serialization_format FROM topics ORDER BY id").fetchall()
        return [Topic(str(name), str(type_name), str(encoding)) for name, type_name, encoding in rows]

    def messages(self, topic: str | None = None) -> Iterator[BagMessage]:
        """Yield the messages in the order of writing, up to the first damaged page."""
        query = (
            "SELECT topics.name, messages.timestamp, messages.data FROM messages "
            "JOIN topics ON messages.topic_id = topics.id WHERE ? IS NULL OR topics.name = ? ORDER BY messages.id"
        )
        with self._connection() as database, _damage():
            for name, log_ns, data in database.execute(query, (topic, topic)):
                yield BagMessage(str(name), int(log_ns), _unpacked(data))

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        address = f"file:{quote(str(self._path.absolute()))}?mode=ro&immutable=1"
        with closing(sqlite3.connect(address, uri=True, check_same_thread=False)) as database:
            database.execute("PRAGMA writable_schema=ON")  # without it SQLite refuses a file that is cut off
            with _damage():
                _refuse_views(database)
            yield database


def _refuse_views(database: sqlite3.Connection) -> None:
    """Raise ``ValueError`` if a table is a view: a malicious view could yield rows endlessly."""
    query = "SELECT name FROM sqlite_master WHERE type = 'view' AND lower(name) IN ('topics', 'messages')"
    if (found := database.execute(query).fetchone()) is not None:
        raise ValueError(f"{found[0]} is a view, but must be a table")


@contextmanager
def _damage() -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, zstandard.ZstdError, ValueError, TypeError, OverflowError) as error:
        raise BagDamageError(f"cut off or damaged ({error}); {_RECOVER}") from None


def _unpacked(data: object) -> bytes:
    if not isinstance(data, bytes):
        raise TypeError("a message is not of type BLOB")
    if not data.startswith(_ZSTD):
        return data
    size = zstandard.frame_content_size(data)
    if size > MAX_RECORD_BYTES:
        raise ValueError(f"a message of {size} bytes exceeds the limit of {MAX_RECORD_BYTES}")
    return zstandard.ZstdDecompressor().decompress(data, max_output_size=MAX_RECORD_BYTES if size < 0 else 0)
