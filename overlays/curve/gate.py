"""The server's end of CURVE: admits those whose keys are on the list, and counts and tells who was refused.

libzmq asks whom to admit over ZAP (RFC 27), a socket inside the process. It is answered from the sink's own thread,
which looks every tenth of a second and at every frame.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final

import zmq
from zmq.utils import z85

from overlays.curve.allowed import AllowList
from overlays.curve.handshakes import FAILED, Events, Refusal, Seldom, refusal
from overlays.curve.keys import Pair

log = logging.getLogger(__name__)

_ZAP: Final = "inproc://zeromq.zap.01"
_REREAD_SECONDS: Final = 0.5
_MOST_QUESTIONS: Final = 100
"""Answered in one go: a flood of callers must not keep a frame waiting."""


class Gate:
    """Stands before a socket that binds; without keys it admits everybody, and only counts.

    All of it belongs to the socket's thread, except ``refused`` and ``viewers``, which any thread may read.
    """

    def __init__(self, uri: str, keys: Pair | None, allowed: AllowList | None, clock: Callable[[], float]) -> None:
        self._keys = keys
        self._allowed = allowed
        self._clock = clock
        self._reread_at = clock()
        self._seldom = Seldom(log, uri)
        self._connections: set[int] = set()
        self._admitted: set[bytes] = set()
        self._zap: zmq.Socket[bytes] | None = None
        self._events: Events | None = None
        self._uri = uri
        self.closed = True
        """Whether the socket listens no more: set before it unbinds, waited for before it binds again."""

    @property
    def refused(self) -> Mapping[Refusal, int]:
        """How many handshakes failed, by kind."""
        return dict(self._seldom.counts)

    @property
    def viewers(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def guard(self, door: zmq.Socket[bytes]) -> None:
        """Take a socket's handshakes over, before it binds."""
        self._events = Events(door, FAILED | zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED)
        if self._keys is None:
            return
        self._zap = door.context.socket(zmq.REP)
        self._zap.setsockopt(zmq.LINGER, 0)
        self._zap.bind(_ZAP)
        door.setsockopt(zmq.CURVE_SERVER, 1)
        door.setsockopt(zmq.CURVE_SECRETKEY, self._keys.secret)
        door.setsockopt(zmq.ZAP_DOMAIN, b"recipro-stream")

    def serve(self) -> bool:
        """Answer who knocks and count who was refused; say whether somebody inside may not look in any more."""
        now = self._clock()
        expelled = self._reread(now)
        self._answer()
        for event, value in self._events or ():
            if event == zmq.EVENT_ACCEPTED:
                self._connections.add(value)
            elif event == zmq.EVENT_DISCONNECTED:
                self._connections.discard(value)
            elif event == zmq.EVENT_CLOSED:
                self.closed = True
                self._connections.clear()
            elif event != zmq.EVENT_HANDSHAKE_FAILED_AUTH:  # the answer has told of it, with a name
                self._seldom.note(refusal(event, value, keys=self._keys is not None), now)
        self._seldom.settle(now)
        return expelled

    def close(self) -> None:
        """Let go, before the socket is closed."""
        if self._events is not None:
            self._events.close()
        if self._zap is not None:
            self._zap.close(0)
        self._events = self._zap = None
        self._connections.clear()

    def _reread(self, now: float) -> bool:
        if self._allowed is None or now - self._reread_at < _REREAD_SECONDS:
            return False
        self._reread_at = now
        self._allowed.changed()
        gone = self._admitted - self._allowed.names.keys()
        self._admitted -= gone
        return bool(gone)

    def _answer(self) -> None:
        for _ in range(_MOST_QUESTIONS):
            if self._zap is None or not self._zap.poll(0, zmq.POLLIN):
                return
            version, number, _domain, address, _identity, mechanism, *credentials = self._zap.recv_multipart()
            if self._admits(mechanism, credentials, address):
                answer = (b"200", b"OK")
            else:
                answer = (b"400", b"this key is not on the list")
            self._zap.send_multipart([version, number, *answer, b"", b""])

    def _admits(self, mechanism: bytes, credentials: list[bytes], address: bytes) -> bool:
        if mechanism != b"CURVE" or len(credentials) != 1 or len(credentials[0]) != 32 or self._allowed is None:
            return False
        self._allowed.changed()
        key = z85.encode(credentials[0])
        owner = self._allowed.names.get(key)
        where = address.decode("utf-8", "replace")
        if owner is None:
            self._seldom.note("unknown key", self._clock(), f"{key.decode()} from {where}")
            return False
        log.info("%s: %s looks in, from %s", self._uri, owner, where)
        self._admitted.add(key)
        return True
