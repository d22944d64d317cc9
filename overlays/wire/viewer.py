"""Viewer: receives overlays from a publisher and returns the newest frame of each camera.

libzmq's option CONFLATE does not support multipart messages. The viewer therefore reads all messages and returns the
newest one of each camera. It reconnects until it is closed.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

from overlays.render.jpeg import MAX_IMAGE_BYTES, decode_image
from overlays.wire.curve.keys import viewer_keys
from overlays.wire.endpoint import parse_address, without_user
from overlays.wire.header import Header
from overlays.wire.message import as_overlay, decode_message
from overlays.wire.subscriber import MAX_TOPICS, LatestMessage, Subscriber
from pipeline.errors import SourceError, WireError, WireVersionError
from pipeline.frames import Image, Overlay

log = logging.getLogger(__name__)

_WAIT_SECONDS: Final = 0.05
"""Maximum wait for a message in seconds; afterwards ``stop`` is checked."""
_SAME_FRAME_SECONDS: Final = 0.005
"""Maximum difference of ``taken_at_unix`` between two messages of the same frame, in seconds."""


@dataclass(frozen=True, eq=False)
class ReceivedFrame:
    """One received message: header, encoded image and time of arrival."""

    header: Header
    payload: bytes
    """The image as JPEG."""
    received_at_unix: float
    missed: int = 0
    """Number of frames since the last returned frame that did not arrive."""
    skipped: int = 0
    """Number of frames that arrived, but were replaced by a newer one before they were read."""

    @property
    def camera(self) -> str:
        """The camera's name."""
        return self.header.camera

    @functools.cached_property
    def image(self) -> Image:
        """The image, uint8 RGB, ``(height, width, 3)``, read-only; decoded at the first access.

        Raises:
            WireError: the image is damaged.
        """
        return decode_image(self.payload)

    def age_seconds(self, now_unix: float | None = None) -> float:
        """Return the seconds since the publisher decoded the frame, plus the offset between the machines' clocks."""
        return (time.time() if now_unix is None else now_unix) - self.header.taken_at_unix

    def overlay(self) -> Overlay:
        """Return the overlay of the message, whose frame is the received image.

        Raises:
            WireError: the image is damaged.
        """
        return as_overlay(self.header, self.image, now_unix=time.time(), now_monotonic=time.monotonic())


class Viewer:
    """Receives from a publisher: ``with Viewer("tcp://host:5555") as viewer: for received in viewer: ...``.

    Only one thread at a time may use it. A reader that is slower than the publisher skips frames and receives the
    newest frame.

    Args:
        address: ``tcp://host:port`` or ``ipc://path``.
        topics: prefixes of the camera names to receive; "" selects all cameras.
        key: secret key file of the viewer, if the publisher requires keys.
        server_key: public key of the publisher: a file, or its 40 characters in Z85.
        maximum_bytes: maximum size of a message part; a larger part closes the connection, and the viewer reconnects.
        damaged: action for a message that cannot be decoded: ``skip`` counts it and stores its error in
            ``last_error``; ``raise`` raises the error, after which reading can continue.
        clock: returns monotonic seconds.

    Raises:
        SourceError: the address is invalid, or (on entering) its host is unknown.
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
            endpoint = parse_address(address)
        except ValueError as error:
            raise SourceError(f"{without_user(address)}: {error}") from None
        if endpoint.host == "*" or (not endpoint.path and endpoint.port == 0):
            raise SourceError(f"{address}: a viewer needs a host and a port; for instance tcp://127.0.0.1:5555")
        self.uri = address
        self.damaged = 0
        """Number of messages that could not be decoded."""
        self.last_error: WireError | None = None
        """Error of the last message that could not be decoded."""
        self.superseded = 0
        """Number of dropped messages from workers of a fleet whose lease of the camera had ended."""
        self._damaged: Literal["skip", "raise"] = damaged
        self._clock = clock
        keys = viewer_keys(key, server_key)
        self._connection = Subscriber(endpoint, topics, maximum_bytes=maximum_bytes, keys=keys, clock=clock)
        self._received_at = clock()
        self._last: dict[str, Header] = {}

    @property
    def silent_seconds(self) -> float:
        """Seconds since the last message that could be decoded."""
        return self._clock() - self._received_at

    @property
    def problem(self) -> str:
        """Reason why no message arrives, such as an unknown key; empty if no reason is known."""
        return self._connection.problem

    @property
    def refused(self) -> int:
        """Number of failed handshakes."""
        return self._connection.refused

    @property
    def oversized(self) -> int:
        """Number of connections that were closed because a message exceeded ``maximum_bytes``."""
        return self._connection.oversized

    def __enter__(self) -> Self:
        self._connection.open()
        self._received_at = self._clock()
        return self

    def __iter__(self) -> Iterator[ReceivedFrame]:
        return self.messages()

    def messages(self, stop: threading.Event | None = None) -> Iterator[ReceivedFrame]:
        """Yield the newest message of each camera as it arrives, until ``stop`` is set.

        With ``damaged="skip"``, damaged messages are counted and omitted, and the first is logged.

        Raises:
            WireVersionError: the publisher is newer than this viewer.
            WireError: a message cannot be decoded, and ``damaged`` is ``raise``.
        """
        for received in self.messages_or_none(stop):
            if received is not None:
                yield received

    def messages_or_none(self, stop: threading.Event | None = None) -> Iterator[ReceivedFrame | None]:
        """Yield the messages of ``messages``, and None about every 0.05 s while no message arrives.

        Raises:
            WireVersionError: the publisher is newer than this viewer.
        """
        while stop is None or not stop.is_set():
            has_yielded = False
            for arrived in self._connection.take(_WAIT_SECONDS).values():
                received = self._read(arrived)
                if received is not None:
                    has_yielded = True
                    yield received
            if not has_yielded:
                yield None

    def overlays(self, stop: threading.Event | None = None) -> Iterator[Overlay]:
        """Yield the messages of ``messages`` as overlays for sinks.

        Raises:
            WireVersionError: the publisher is newer than this viewer.
        """
        for received in self.messages(stop):
            try:
                yield received.overlay()
            except WireError as error:
                self._handle_damaged(error)

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def _read(self, arrived: LatestMessage) -> ReceivedFrame | None:
        """Return a message with its image not yet decoded; None if it is damaged, repeated or of an older epoch."""
        try:
            header, payload = decode_message(arrived.parts)
        except WireVersionError:
            raise
        except WireError as error:
            self._handle_damaged(error)
            return None
        self._received_at = self._clock()
        last = self._last.get(header.camera)
        if last is not None and _is_same(last, header):
            return None  # the publisher has repeated it for a viewer that joined late
        if last is not None and (header.epoch or 0) < (last.epoch or 0) and header.epoch is not None:
            self.superseded += 1
            return None
        if last is None and len(self._last) >= MAX_TOPICS:
            self._last.clear()
        self._last[header.camera] = header
        gap = 0 if last is None or header.index <= last.index else header.index - last.index - 1
        skipped = min(arrived.passed_over, gap)
        return ReceivedFrame(header, payload, arrived.at_unix, missed=gap - skipped, skipped=arrived.passed_over)

    def _handle_damaged(self, error: WireError) -> None:
        """Count a message that cannot be decoded; raise its error if ``damaged`` is ``raise``."""
        self.last_error = error
        self.damaged += 1
        if self._damaged == "raise":
            raise error
        if self.damaged == 1:
            log.warning("%s: a message cannot be decoded and is left out: %s", self.uri, error)


def _is_same(first: Header, second: Header) -> bool:
    """Return whether two headers belong to the same frame.

    An equal index does not suffice, because a restarted publisher counts its frames from 0 again.
    """
    if first.silence != second.silence or first.index != second.index:
        return False
    return abs(first.taken_at_unix - second.taken_at_unix) < _SAME_FRAME_SECONDS
