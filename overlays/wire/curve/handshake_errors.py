"""What a failed handshake means, in words, for either end; and saying so now and then instead of every time.

libzmq tells a socket's monitor that a handshake failed and little more; which end has which keys tells the rest. Pure,
but for ``SocketMonitor``, which reads a monitor.
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
_SEALED: Final = int(zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC)
_MAX_EVENTS: Final = 1000
"""Events taken in one go."""

REFUSALS: Final[tuple[RefusalReason, ...]] = get_args(RefusalReason)

_AT_SERVER: Final[dict[RefusalReason, str]] = {
    "unknown key": "a viewer with a key that is not on the list was refused",
    "wrong server key": "a viewer was refused: it was given another server's key (its --server-key is not ours)",
    "no keys": "a viewer without keys was refused: this stream asks for them (view --key, --server-key)",
    "keys not asked for": "a viewer came with keys, and this stream has none (stream --curve-keys DIR): refused",
    "hung up": "somebody hung up in the handshake: a viewer with other keys, or without, or a port scan",
    "not ZeroMQ": "somebody spoke something else than ZeroMQ: a browser, or a port scan",
}


def refusal(event: int, value: int, *, keys: bool) -> RefusalReason:
    """Return what a failed handshake means to a server, with or without keys."""
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return "unknown key"
    if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
        return "hung up"
    if value == MISMATCH:
        return "no keys" if keys else "keys not asked for"
    return "wrong server key" if keys and value == _SEALED else "not ZeroMQ"


def refused_because(event: int, value: int, *, keys: bool) -> str:
    """Return what a failed handshake means to a viewer, with or without keys."""
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return "the server does not know this viewer's key; have its public half put on the server's list"
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == MISMATCH:
        if keys:
            return "the server asks for no keys; leave --key and --server-key away, if that is what it should do"
        return "the server admits only viewers with keys; give --key and --server-key"
    if value == errno.ETIMEDOUT:
        return "somebody answers there, but not with ZeroMQ's handshake"
    if keys:
        return (
            "the server hung up in the handshake; most likely the server key given here is not this server's, or it "
            "has as many viewers as it takes"
        )
    return (
        "the server hung up in the handshake; most likely it admits only viewers with keys (--key, --server-key), or "
        "it has as many viewers as it takes"
    )


class RateLimitedLog:
    """Counts refusals, and says each kind at once, then at most every ``every_seconds``, with its count."""

    def __init__(self, log: logging.Logger, uri: str, every_seconds: float = 10.0) -> None:
        self.counts: Counter[RefusalReason] = Counter()
        self._log = log
        self._uri = uri
        self._every_seconds = every_seconds
        self._said_at: dict[RefusalReason, float] = {}
        self._unsaid: dict[RefusalReason, int] = {}
        self._detail: dict[RefusalReason, str] = {}

    def record(self, kind: RefusalReason, now: float, detail: str = "") -> None:
        """Count one."""
        self.counts[kind] += 1
        self._unsaid[kind] = self._unsaid.get(kind, 0) + 1
        self._detail[kind] = detail
        self.flush(now)

    def flush(self, now: float) -> None:
        """Say what is due."""
        for kind, count in list(self._unsaid.items()):
            said_at = self._said_at.get(kind)
            if said_at is not None and now - said_at < self._every_seconds:
                continue
            often = "" if count == 1 else f" ({count} times since it was last said)"
            detail = self._detail.get(kind, "")
            self._log.warning("%s: %s%s%s", self._uri, _AT_SERVER[kind], f": {detail}" if detail else "", often)
            self._said_at[kind] = now
            del self._unsaid[kind]


class SocketMonitor:
    """A socket's monitor, read without waiting. Make it before the socket binds or connects."""

    def __init__(self, watched: zmq.Socket[bytes], wanted: int) -> None:
        place = f"inproc://monitor-{id(watched)}"
        self._watched = watched
        watched.monitor(place, wanted)
        self._socket: zmq.Socket[bytes] = watched.context.socket(zmq.PAIR)
        # A full monitor would hold up the connections themselves; these are small.
        self._socket.setsockopt(zmq.RCVHWM, 100_000)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(place)

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """What can be polled for events."""
        return self._socket

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for _ in range(_MAX_EVENTS):
            if not self._socket.poll(0, zmq.POLLIN):
                return
            event, value = struct.unpack("=HI", self._socket.recv_multipart()[0])
            yield event, value

    def close(self) -> None:
        """Stop watching."""
        for _ in self:  # a monitor that waits for room cannot be stopped
            pass
        self._watched.disable_monitor()
        self._socket.close(0)
