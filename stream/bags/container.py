"""The interface of bag readers, and the choice of a reader by the file's suffix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

MAX_RECORD_BYTES: Final = 1 << 30
"""Maximum size of a record or chunk in bytes; a larger one counts as damage and is not loaded."""


class BagDamageError(Exception):
    """A bag is damaged or cut off; the readable messages were yielded before."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic of a bag."""

    name: str
    type_name: str
    """Message type as written in the bag: ``sensor_msgs/msg/Image``, ``foxglove.CompressedImage``."""
    encoding: str
    """Encoding of the messages: ``cdr``, ``ros1`` or ``protobuf``."""
    count: int | None = None
    """Number of messages; None: the bag does not state it."""


class BagMessage(NamedTuple):
    """A message, not decoded."""

    topic: str
    log_ns: int
    """Time at which the message was recorded, in Unix nanoseconds."""
    data: bytes


class BagReader(ABC):
    """Reads one bag file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @abstractmethod
    def topics(self) -> list[Topic]:
        """Return the topics; for a damaged bag, those that can be found.

        Raises:
            BagDamageError: the file is not a bag of this format.
        """

    @abstractmethod
    def messages(self, topic: str | None = None) -> Iterator[BagMessage]:
        """Yield the messages of a topic, or of all topics, in the order of the file.

        Raises:
            BagDamageError: the file is damaged; raised after the last readable message.
        """


def reader_of(path: Path) -> BagReader:
    """Return the reader for a bag file, by its suffix."""
    suffix = path.suffix.lower()
    if suffix == ".db3":
        from stream.bags.sqlite_file import SqliteBag

        return SqliteBag(path)
    if suffix == ".mcap":
        from stream.bags.mcap_file import McapBag

        return McapBag(path)
    from stream.bags.ros1_file import Ros1Bag

    return Ros1Bag(path)
