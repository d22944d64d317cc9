"""Reasons of failed handshakes at servers and viewers, their rate-limited log, and the socket monitor.

libzmq's monitor reports few details, so the reason is derived from the event and from whether this end has keys.
"""

from __future__ import annotations

import errno
import logging
import struct
from collections import Counter
from collections.abc import Iterator
from typing import Final, Literal, get_args

import zmq

RefusalReason = Literal["unknown key", "wrong server key", "no keys", "keys not asked for", "hung up", "not ZeroMQ"]

FAILED: Final = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
MISMATCH: Final = int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH)
_CRYPTOGRAPHIC: Final = int(zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC)
_MAX_EVENTS: Final = 1000
"""Maximum number of events per iteration over a monitor."""

REFUSALS: Final[tuple[RefusalReason, ...]] = get_args(RefusalReason)

_AT_SERVER: Final[dict[RefusalReason, str]] = {
    "unknown key": "a viewer whose key is not on the list was refused",
    "wrong server key": "a viewer was refused: its --server-key is the key of another server",
    "no keys": "a viewer without keys was refused: this stream requires them (view --key, --server-key)",
    "keys not asked for": "a viewer with keys was refused: this stream has no keys (stream --curve-keys DIR)",
    "hung up": "a client closed the connection in the handshake: a viewer with other or no keys, or a port scan",
    "not ZeroMQ": "a client sent data that is not ZeroMQ: a browser, or a port scan",
}


def refusal(event: int, value: int, *, keys: bool) -> RefusalReason:
    """Return the reason of a failed handshake at a server.

    Args:
        event: the monitor's event, one of ``FAILED``.
        value: the value of the event.
        keys: True if the server has keys.
    """
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return "unknown key"
    if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
        return "hung up"
    if value == MISMATCH:
        return "no keys" if keys else "keys not asked for"
    return "wrong server key" if keys and value == _CRYPTOGRAPHIC else "not ZeroMQ"


def refused_because(event: int, value: int, *, keys: bool) -> str:
    """Return the reason of a failed handshake at a viewer, with the remedy; ``keys``: True if the viewer has keys."""
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return "the server does not know this viewer's key; add the viewer's public key to the server's list"
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == MISMATCH:
        if keys:
            return "the server uses no keys; omit --key and --server-key if that is intended"
        return "the server admits only viewers with keys; give --key and --server-key"
    if value == errno.ETIMEDOUT:
        return "a server accepts the connection, but does not answer with ZeroMQ's handshake"
    if keys:
        return (
            "the server closed the connection in the handshake; most likely the server key given here is not this "
            "server's, or it has its maximum number of viewers"
        )
    return (
        "the server closed the connection in the handshake; most likely it admits only viewers with keys (--key, "
        "--server-key), or it has its maximum number of viewers"
    )


class RateLimitedLog:
    """Counts refusals by reason, and logs each reason at most once every ``every_seconds``, with its count."""

    def __init__(self, log: logging.Logger, uri: str, every_seconds: float = 10.0) -> None:
        self.counts: Counter[RefusalReason] = Counter()
        self._log = log
        self._uri = uri
        self._every_seconds = every_seconds
        self._logged_at: dict[RefusalReason, float] = {}
        self._unlogged: dict[RefusalReason, int] = {}
        self._detail: dict[RefusalReason, str] = {}

    def record(self, kind: RefusalReason, now: float, detail: str = "") -> None:
        """Count one refusal, and log its reason if ``every_seconds`` have passed since the last time."""
        self.counts[kind] += 1
        self._unlogged[kind] = self._unlogged.get(kind, 0) + 1
        self._detail[kind] = detail
        self.flush(now)

    def flush(self, now: float) -> None:
        """Log all counted reasons whose last log message is older than ``every_seconds``."""
        for kind, count in list(self._unlogged.items()):
            logged_at = self._logged_at.get(kind)
            if logged_at is not None and now - logged_at < self._every_seconds:
                continue
            repeats = "" if count == 1 else f" ({count} times since the last message)"
            detail = self._detail.get(kind, "")
            self._log.warning("%s: %s%s%s", self._uri, _AT_SERVER[kind], f": {detail}" if detail else "", repeats)
            self._logged_at[kind] = now
            del self._unlogged[kind]


class SocketMonitor:
    """Reads the events of a socket without waiting. Create it before the socket binds or connects."""

    def __init__(self, watched: zmq.Socket[bytes], events: int) -> None:
        address = f"inproc://monitor-{id(watched)}"
        self._watched = watched
        watched.monitor(address, events)
        self._socket: zmq.Socket[bytes] = watched.context.socket(zmq.PAIR)
        # A full monitor queue would block libzmq's connections, so the queue is large; its messages are small.
        self._socket.setsockopt(zmq.RCVHWM, 100_000)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(address)

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """The socket to poll for events."""
        return self._socket

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for _ in range(_MAX_EVENTS):
            if not self._socket.poll(0, zmq.POLLIN):
                return
            event, value = struct.unpack("=HI", self._socket.recv_multipart()[0])
            yield event, value

    def close(self) -> None:
        """Stop monitoring."""
        for _ in self:  # empty the queue first: a monitor with a full queue cannot be stopped
            pass
        self._watched.disable_monitor()
        self._socket.close(0)
