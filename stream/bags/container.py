"""The interface of a bag's reader, and the choice of the reader by the file's name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

MAX_RECORD_BYTES: Final = 1 << 30
"""Larger records and chunks are damage: memory is taken for nothing above it."""


class BagDamageError(Exception):
    """A bag is damaged or cut; all messages before the damage were yielded."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic of a bag."""

    name: str
    type_name: str
    """Type of the messages, as the bag spells it: ``sensor_msgs/msg/Image``, ``foxglove.CompressedImage``."""
    encoding: str
    """Encoding of the messages: ``cdr``, ``ros1`` or ``protobuf``."""
    count: int | None = None
    """Number of messages; None: the bag does not state it."""


class BagMessage(NamedTuple):
    """A message as the bag has it."""

    topic: str
    log_ns: int
    """Time at which it was recorded, Unix nanoseconds."""
    data: bytes


class BagReader(ABC):
    """Reads one bag file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @abstractmethod
    def topics(self) -> list[Topic]:
        """Return the topics, as far as a damaged bag shows them.

        Raises:
            BagDamageError: the file is not a bag of this format.
        """

    @abstractmethod
    def messages(self, topic: str | None = None) -> Iterator[BagMessage]:
        """Yield the messages of a topic, or of all topics, in the order of the file.

        Raises:
            BagDamageError: the file is damaged; raised after the last good message.
        """


def reader_of(path: Path) -> BagReader:
    """Return the reader of a bag file by its suffix."""
    suffix = path.suffix.lower()
    if suffix == ".db3":
        from stream.bags.sqlite_file import SqliteBag

        return SqliteBag(path)
    if suffix == ".mcap":
        from stream.bags.mcap_file import McapBag

        return McapBag(path)
    from stream.bags.ros1_file import Ros1Bag

    return Ros1Bag(path)
