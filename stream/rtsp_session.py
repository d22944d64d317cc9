"""One relayed connection: from FFmpeg to the relay, and from the relay to the camera."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import ssl
from typing import Final
from urllib.parse import urljoin, urlsplit

from pipeline.rtsp_messages import Message, MessageReader
from stream.failures import Failure, FailureError
from stream.origin import Origin
from stream.rtsp_camera import RtspCamera, request_address

MAX_REDIRECTS: Final = 5
_CHUNK_BYTES: Final = 1 << 18
_SEND_SECONDS: Final = 5.0
_REMOVED: Final = frozenset({"location", "www-authenticate", "content-length"})
_UNAUTHORISED: Final = re.compile(rb"RTSP/1\.\d 401[^$]*?\r\n\r\n")
_TAIL_BYTES: Final = 2048


class _ClientClosedError(Exception):
    """FFmpeg has closed its connection."""


class Session:
    """Relays one connection between FFmpeg and a camera."""

    def __init__(self, camera: RtspCamera, client: socket.socket, connected: socket.socket, url: str) -> None:
        self._camera = camera
        self._client = client
        self._socket = connected
        self._url = url  # the camera's address as FFmpeg knows it
        self._address = camera.address
        self._origin = camera.own
        self._redirects = 0
        self._requests = MessageReader()
        self._received = MessageReader()
        self._sent = 0  # number of requests sent to the camera
        for opened in (client, connected):
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setblocking(False)

    def close(self) -> None:
        """Close the connection to the camera."""
        self._socket.close()

    def run(self, request: Message) -> None:
        """Relay requests and responses, then the stream, until one side closes."""
        try:
            while True:
                response = self._exchange(request)
                if response is None:
                    return
                self._to_client(response.encode())
                if request.method == "PLAY" and response.status == 200:
                    self._stream()
                    return
                request = self._next_request()
        except _ClientClosedError:
            return

    def _to_client(self, data: bytes) -> None:
        try:
            self._client.sendall(data)
        except OSError:
            while not self._pass_requests_on():  # a TEARDOWN
                pass
            raise _ClientClosedError from None

    def _next_request(self) -> Message:
        while True:
            item = self._requests.next()
            if isinstance(item, Message):
                return item
            if item is None:
                self._read_client()

    def _read_client(self) -> None:
        try:
            data = self._client.recv(65536)
        except OSError:
            data = b""
        if not data:
            raise _ClientClosedError
        self._requests.feed(data)

    def _exchange(self, request: Message) -> Message | None:
        """Send a request; return the rebuilt response, None if the camera closed the connection."""
        while True:
            response = self._ask(request)
            if response is not None and response.status == 401 and self._origin == self._camera.own:
                headers = response.get_all("www-authenticate")
                if self._camera.accepts(headers):
                    response = self._ask(request)
                elif failure := self._camera.refusal(headers):
                    raise FailureError(failure)
            if response is None:
                return None
            if not 300 <= (response.status or 0) < 400:
                return self._rebuilt(request, response)
            self._follow(request, response.get("location"))

    def _ask(self, request: Message) -> Message | None:
        """Send a request; return the response, None if the camera closed the connection."""
        self._send(self._for_camera(request))
        while True:
            item = self._received.next()
            if isinstance(item, Message) and item.status is not None:
                return item
            if item is None:  # packets and requests of the camera before the response are dropped
                data = self._receive()
                if data is None:
                    return None
                self._received.feed(data)

    def _for_camera(self, request: Message) -> bytes:
        target = request.target
        if target == self._url or target.startswith((f"{self._url}/", f"{self._url}?")):
            target = self._address + target[len(self._url) :]
        self._sent += 1
        answer = self._camera.authorization(request.method, target) if self._origin == self._camera.own else ""
        headers = request.replaced(CSeq=str(self._sent), Authorization=answer)
        return Message(f"{request.method} {target} RTSP/1.0", headers, request.body).encode()

    def _rebuilt(self, request: Message, response: Message) -> Message:
        """Return ``response`` with FFmpeg's sequence number, without redirects and authentication."""
        changed = {"CSeq": request.get("cseq")}
        transport = response.get("transport")
        if transport and "TCP" not in transport.upper():
            # FFmpeg sends its receiver reports to this address.
            peer = self._socket.getpeername()[0]
            stated = re.search(r"(?i);\s*source=([^;,]*)", transport)
            source = stated[1] if stated and self._camera.allowed.has(stated[1].lower()) else peer
            changed["Transport"] = re.sub(r"(?i);\s*source=[^;,]*", "", transport) + f";source={source}"
        reason = response.start.partition(" ")[2].strip()[3:].strip()
        headers = response.replaced(without=_REMOVED, **changed)
        return Message(f"RTSP/1.0 {response.status} {reason}", headers, response.body)

    def _follow(self, request: Message, location: str) -> None:
        """Connect to the address of a redirect. Raises ``FailureError`` if its host is not allowed."""
        self._redirects += 1
        if self._redirects > MAX_REDIRECTS:
            raise FailureError(Failure(f"the camera redirects more than {MAX_REDIRECTS} times", "slow", "refused"))
        try:
            address = urljoin(self._address, location) if location else ""
            parts = urlsplit(address)
        except ValueError:
            raise FailureError(Failure("the camera redirects to an invalid address", "slow", "refused")) from None
        origin = Origin.of(parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(), "rtsp")
        self._camera.allowed.check(origin)
        if request.method not in {"OPTIONS", "DESCRIBE"}:
            message = (
                f"the camera redirects a {request.method} request, which is not supported; use the address it "
                "redirects to"
            )
            raise FailureError(Failure(message, "slow", "refused", hint=""))
        self._socket.close()
        self._socket = origin.connect(_SEND_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        self._received = MessageReader()
        self._origin = origin
        self._address = request_address(parts, origin)

    def _stream(self) -> None:
        """Copy the stream to FFmpeg and its requests to the camera."""
        self._to_client(self._received.rest())
        poll = _both(self._client, self._socket)
        tail = b""
        while True:
            ready = {self._socket.fileno()} if _pending(self._socket) else {number for number, _ in poll.poll()}
            if self._client.fileno() in ready and self._pass_requests_on():
                return
            if self._socket.fileno() in ready:
                data = self._read()
                if data is None:
                    return
                self._to_client(data)
                tail = self._renew(tail + data)

    def _renew(self, data: bytes) -> bytes:
        """Use a new nonce from the response to a keep-alive request; return bytes to prepend next time."""
        match = _UNAUTHORISED.search(data)
        if match:
            reader = MessageReader()
            reader.feed(match[0])
            answer = reader.next()
            if isinstance(answer, Message):
                self._camera.accepts(answer.get_all("www-authenticate"))
            return b""
        return data[-_TAIL_BYTES:]

    def _pass_requests_on(self) -> bool:
        """Forward FFmpeg's requests and receiver reports; return whether FFmpeg closed the connection."""
        try:
            data = self._client.recv(65536)
        except OSError:
            return True
        self._requests.feed(data)
        while (item := self._requests.next()) is not None:
            with contextlib.suppress(OSError):
                self._send(self._for_camera(item) if isinstance(item, Message) else item)
        return not data

    def _receive(self) -> bytes | None:
        """Wait for the camera's next bytes, None at its end. Raises ``_ClientClosedError``."""
        poll = _both(self._client, self._socket)
        while True:
            ready = {self._socket.fileno()} if _pending(self._socket) else {number for number, _ in poll.poll()}
            if self._client.fileno() in ready:
                self._read_client()
            if self._socket.fileno() in ready and (received := self._read()) != b"":
                return received

    def _read(self) -> bytes | None:
        """Return the bytes received from the camera, possibly none; None at the end."""
        try:
            return self._socket.recv(_CHUNK_BYTES) or None
        except (BlockingIOError, ssl.SSLWantReadError):
            return b""

    def _send(self, data: bytes) -> None:
        self._socket.settimeout(_SEND_SECONDS)
        try:
            self._socket.sendall(data)
        finally:
            self._socket.setblocking(False)


def _both(client: socket.socket, camera: socket.socket) -> select.poll:
    poll = select.poll()
    poll.register(client, select.POLLIN)
    poll.register(camera, select.POLLIN)
    return poll


def _pending(connected: socket.socket) -> bool:
    return isinstance(connected, ssl.SSLSocket) and connected.pending() > 0
