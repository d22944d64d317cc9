"""The other end of the wire: receives overlays and gives the newest of each camera, never an old one.

libzmq cannot keep only the newest message of several parts, so the viewer reads all there is and passes on the last of
each camera. It connects again by itself, without end.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from overlays.render.jpeg import MAX_IMAGE_BYTES, decode_image
from overlays.wire.curve.keys import viewer_keys
from overlays.wire.endpoint import parse_address, without_user
from overlays.wire.message import Header, as_overlay, decode_message
from overlays.wire.subscriber import MAX_TOPICS, LatestMessage, Subscriber
from pipeline.errors import SourceError, WireError, WireVersionError
from pipeline.frames import Image, Overlay

log = logging.getLogger(__name__)

_WAIT_SECONDS: Final = 0.05
"""How long reading waits before it looks whether it should stop."""
_SAME_FRAME_SECONDS: Final = 0.005
"""Two readings of a publisher's clocks differ by less, two frames with one index by more."""


@dataclass(frozen=True, eq=False)
class ReceivedFrame:
    """One message that arrived: what was seen, why, and how fresh it is."""

    header: Header
    payload: bytes
    """The JPEG."""
    received_at_unix: float
    missed: int = 0
    """Frames of this camera since the one given before that never arrived: dropped on the way, or by the camera."""
    skipped: int = 0
    """Frames that did arrive and were passed over because a newer one was there."""

    @property
    def camera(self) -> str:
        """The camera's name."""
        return self.header.camera

    @functools.cached_property
    def image(self) -> Image:
        """The picture, uint8 RGB, (height, width, 3), read-only; decoded when first asked for.

        Raises:
            WireError: it is damaged.
        """
        return decode_image(self.payload)

    def age_seconds(self, now_unix: float | None = None) -> float:
        """Return the seconds from decode at the camera to ``now``; two machines' clocks may differ by more."""
        return (time.time() if now_unix is None else now_unix) - self.header.taken_at_unix

    def overlay(self) -> Overlay:
        """Return it as the overlay it was; its frame is the received picture.

        Raises:
            WireError: the picture is damaged.
        """
        return as_overlay(self.header, self.image, now_unix=time.time(), now_monotonic=time.monotonic())


class Viewer:
    """Watches a publisher: ``with Viewer("tcp://host:5555") as viewer: for received in viewer: ...``.

    Entering, ``messages`` and leaving belong to one thread at a time. Whoever takes longer for a message than the
    publisher needs for the next one misses some, and gets the newest.

    Args:
        address: ``tcp://host:port`` or ``ipc://path``.
        topics: cameras to watch, by the beginnings of their names; "" is all of them.
        key: its own secret key file, where the publisher asks for keys.
        server_key: the publisher's public key then: a file, or its 40 letters.
        maximum_bytes: a part larger than this ends the connection before it is stored; it is made again.
        damaged: what to do with a message that cannot be read: ``skip`` it (counted, and kept in ``last_error``) or
            ``raise`` what is wrong with it; reading may go on after that.
        clock: monotonic seconds.

    Raises:
        SourceError: the address is written wrong, or (on entering) its host is unknown.
        ConfigError: a key is missing or cannot be read.
    """

    def __init__(
        self,
        address: str,
        topics: Sequence[str] = ("",),
        *,
        key: str | Path | None = None,
        server_key: str | Path | None = None,
        maximum_bytes: int = MAX_IMAGE_BYTES,
        damaged: Literal["skip", "raise"] = "skip",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        try:
            place = parse_address(address)
        except ValueError as error:
            raise SourceError(f"{without_user(address)}: {error}") from None
        if place.host == "*" or (not place.path and place.port == 0):
            raise SourceError(f"{address}: a viewer needs a host and a port; for instance tcp://127.0.0.1:5555")
        self.uri = address
        self.damaged = 0
        """Messages that could not be read."""
        self.last_error: WireError | None = None
        """What was wrong with the last of them."""
        self._damaged: Literal["skip", "raise"] = damaged
        self._clock = clock
        keys = viewer_keys(key, server_key)
        self._connection = Subscriber(place, topics, maximum_bytes=maximum_bytes, keys=keys, clock=clock)
        self._received_at = clock()
        self._last: dict[str, Header] = {}

    @property
    def silent_seconds(self) -> float:
        """How long nothing readable has come."""
        return self._clock() - self._received_at

    @property
    def problem(self) -> str:
        """Why nothing comes, in words: nobody there, an unknown key, a wrong server key; empty where all is well."""
        return self._connection.problem

    @property
    def refused(self) -> int:
        """How many handshakes failed."""
        return self._connection.refused

    @property
    def oversized(self) -> int:
        """How often a message beyond ``maximum_bytes`` ended the connection."""
        return self._connection.oversized

    def __enter__(self) -> Self:
        self._connection.open()
        self._received_at = self._clock()
        return self

    def __iter__(self) -> Iterator[ReceivedFrame]:
        return self.messages()

    def messages(self, stop: threading.Event | None = None) -> Iterator[ReceivedFrame]:
        """Give the newest message of each camera as it comes, until ``stop`` is set.

        Damaged messages are counted, said once, and left out, unless the viewer was made to raise them.

        Raises:
            WireVersionError: the publisher is newer than this viewer.
            WireError: a message cannot be read, and ``damaged`` is ``raise``.
        """
        for received in self.messages_or_silence(stop):
            if received is not None:
                yield received

    def messages_or_silence(self, stop: threading.Event | None = None) -> Iterator[ReceivedFrame | None]:
        """Give the same as ``messages``, and None whenever a moment has passed in which nothing new came.

        Raises:
            WireVersionError: the publisher is newer than this viewer.
        """
        while stop is None or not stop.is_set():
            given = 0
            for arrived in self._connection.take(_WAIT_SECONDS).values():
                received = self._read(arrived)
                if received is not None:
                    given += 1
                    yield received
            if not given:
                yield None

    def overlays(self, stop: threading.Event | None = None) -> Iterator[Overlay]:
        """Give the same as ``messages``, as overlays for sinks.

        Raises:
            WireVersionError: the publisher is newer than this viewer.
        """
        for received in self.messages(stop):
            try:
                yield received.overlay()
            except WireError as error:
                self.leave_out(error)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._connection.close()

    def _read(self, arrived: LatestMessage) -> ReceivedFrame | None:
        """Decode a message up to its picture; None for a damaged one, and for a frame that was given before."""
        try:
            header, payload = decode_message(arrived.parts)
        except WireVersionError:
            raise
        except WireError as error:
            self.leave_out(error)
            return None
        self._received_at = self._clock()
        last = self._last.get(header.camera)
        if last is not None and _is_same(last, header):
            return None  # sent again for somebody who joined late
        if last is None and len(self._last) >= MAX_TOPICS:
            self._last.clear()
        self._last[header.camera] = header
        gap = 0 if last is None or header.index <= last.index else header.index - last.index - 1
        skipped = min(arrived.passed_over, gap)
        return ReceivedFrame(header, payload, arrived.at_unix, missed=gap - skipped, skipped=arrived.passed_over)

    def leave_out(self, error: WireError) -> None:
        """Count a message that cannot be read, or raise what is wrong with it."""
        self.last_error = error
        self.damaged += 1
        if self._damaged == "raise":
            raise error
        if self.damaged == 1:
            log.warning("%s: a message cannot be read, and is left out: %s", self.uri, error)


def _is_same(one: Header, other: Header) -> bool:
    """Say whether both tell of the same frame: a publisher that was started again counts from 0 again."""
    if one.silence != other.silence or one.index != other.index:
        return False
    return abs(one.taken_at_unix - other.taken_at_unix) < _SAME_FRAME_SECONDS
