"""A relay on the loopback interface between FFmpeg and an RTSP camera.

Connected directly, FFmpeg would follow redirects of an RTSP server to any host and send the credentials along, and it
supports Digest with MD5 only. The relay connects to the camera instead: it follows redirects to allowed hosts only,
authenticates, and rebuilds each response, so that FFmpeg sees no redirect. After PLAY, when FFmpeg handles redirects no
longer, the relay only copies bytes.
"""

from __future__ import annotations

import secrets
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Final

from pipeline.rtsp_messages import Message, MessageReader
from pipeline.workers.thread import ThreadWorker
from stream.failures import Failure, FailureError, classify_error
from stream.rtsp_camera import RtspCamera
from stream.rtsp_session import Session

_FIRST_REQUEST_SECONDS: Final = 1.0


@contextmanager
def rtsp_relay(camera: RtspCamera, *, seconds: float) -> Iterator[RtspRelay]:
    """Connect to a camera within ``seconds``; yield the relay between it and FFmpeg.

    Raises:
        OSError: the camera cannot be reached; ``FailureError`` if the cause is known.
    """
    with ExitStack() as stack:
        connected = stack.enter_context(closing(camera.own.connect(seconds)))
        # FFmpeg receives UDP packets with the address family of its connection to the relay.
        host = "::1" if connected.family == socket.AF_INET6 else "127.0.0.1"
        listener = stack.enter_context(socket.create_server((host, 0), family=connected.family))
        relay = stack.enter_context(closing(RtspRelay(camera, listener, connected, seconds)))
        stack.enter_context(ThreadWorker("rtsp relay", relay.run, relay.stop))
        yield relay


class RtspRelay:
    """A server on the loopback interface that relays one camera to FFmpeg."""

    def __init__(self, camera: RtspCamera, listener: socket.socket, connected: socket.socket, seconds: float) -> None:
        self.failure: Failure | None = None
        """Reason why the connection ended, if it is known."""
        host, port = listener.getsockname()[:2]
        self.url = f"rtsp://{f'[{host}]' if ':' in host else host}:{port}/{secrets.token_hex(16)}"
        """The address that FFmpeg connects to: on the loopback interface, with a secret path."""
        self._camera = camera
        self._listener = listener
        self._connected: socket.socket | None = connected
        self._seconds = seconds
        self._wake, self._woken = socket.socketpair()

    def check(self) -> None:
        """Raise the ``FailureError`` that ended the connection, if any."""
        if self.failure is not None:
            raise FailureError(self.failure)

    def stop(self) -> None:
        """End ``run`` after the current connection."""
        self._wake.send(b"x")

    def close(self) -> None:
        """Close the socket pair that wakes ``run``."""
        self._wake.close()
        self._woken.close()

    def run(self) -> None:
        """Serve one connection at a time; FFmpeg opens a second one if a GPU decoder fails."""
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        while self._woken.fileno() not in {number for number, _ in poll.poll()}:
            with self._listener.accept()[0] as client:
                try:
                    self._serve(client)
                except FailureError as error:
                    self.failure = error.failure
                except OSError as error:
                    self.failure = classify_error(error, waited_for="answer", seconds=self._seconds)

    def _serve(self, client: socket.socket) -> None:
        first = _first_request(client, self.url)
        if first is None:
            return
        connected, self._connected = self._connected, None
        session = Session(self._camera, client, connected or self._camera.own.connect(self._seconds), self.url)
        try:
            session.run(first)
        finally:
            session.close()


def _first_request(client: socket.socket, url: str) -> Message | None:
    """Return FFmpeg's first request; None if another process, without the secret path, connected."""
    reader, deadline = MessageReader(), time.monotonic() + _FIRST_REQUEST_SECONDS
    try:
        while not isinstance(message := reader.next(), Message):
            client.settimeout(max(0.01, deadline - time.monotonic()))
            data = client.recv(4096)
            if not data or message is not None or time.monotonic() > deadline:
                return None
            reader.feed(data)
    except OSError:
        return None
    client.settimeout(None)
    return message if secrets.compare_digest(message.target, url) else None
