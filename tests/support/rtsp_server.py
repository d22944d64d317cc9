"""A small RTSP server that causes faults on command.

    with Feed() as feed, RtspServer(feed) as server:
        source = build_source(server.url())
        ...
        server.faults.stalled = True

H.264 over TCP, interleaved (RFC 2326, 6184); digest authentication (RFC 2617); loopback only. One thread per server,
one encoder for any number of servers.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Self
from urllib.parse import quote, urlsplit

from tests.support import rtp
from tests.support.cable import enter
from tests.support.feed import Feed, Picture
from tests.support.loops import LoopThread

_MOST_WAITING_BYTES: Final = 1 << 20  # buffer of a slow client; beyond it frames are dropped
_REASONS: Final = {200: "OK", 302: "Found", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found",
                   461: "Unsupported Transport", 501: "Not Implemented"}  # fmt: skip
_REALM, _NONCE = "ground", "5eed"


@dataclass
class Faults:
    """The current faults. A test changes them while the server runs; they apply to what is sent from then on."""

    stalled: bool = False
    """Connections stay open, requests are answered, no frame is sent."""
    silent: bool = False
    """No request is answered."""
    answer_delay_seconds: float = 0.0
    """Delay of each answer."""
    drop_share: float = 0.0
    """Fraction of the RTP packets that are lost; their sequence numbers are used."""
    corrupt_share: float = 0.0
    """Fraction of the RTP packets with changed bytes in their payload."""
    time_shift_seconds: float = 0.0
    """Added to the timestamps of the frames; a change causes a jump."""
    description: bytes | None = None
    """Sent in place of the SDP."""
    answer: bytes | None = None
    """Sent instead of any answer, before the connection is closed."""
    redirect: Callable[[str, str], str | None] | None = None
    """Returns the address to which a request with a method and a path is redirected (302)."""
    moved_path: bool = False
    """Every path is unknown: 404."""
    keys_on_join: bool = True
    """True if a new client causes a keyframe, as with most cameras; else it waits for the next."""


@dataclass
class _Request:
    method: str
    uri: str
    headers: dict[str, str]

    @property
    def path(self) -> str:
        return urlsplit(self.uri).path.rstrip("/") or "/"


@dataclass
class Counts:
    """Counters of the server."""

    connections: int = 0
    played: int = 0
    pictures_left_out: int = 0
    """Frames dropped for slow clients."""
    packets_dropped: int = 0
    packets_corrupted: int = 0
    requests: list[str] = field(default_factory=list)
    authorized: int = 0
    """Requests with credentials."""


class RtspServer:
    """Serves one feed on one port."""

    def __init__(
        self,
        feed: Feed,
        *,
        path: str = "/live",
        user: str | None = None,
        password: str = "",
        algorithm: str = "MD5",
        seed: int = 0,
        host: str = "127.0.0.1",
        namespace: str | None = None,
    ) -> None:
        """Create a server; ``feed`` must run, credentials are required by digest authentication if given.

        ``namespace``: the network namespace where ``host`` is; None: the process's own.
        """
        self.host = host
        self._namespace = namespace
        self.feed = feed
        self.path = path
        self.user = user
        self.algorithm = algorithm
        self.password = password
        """May be changed while it runs."""
        self.faults = Faults()
        self.counts = Counts()
        self.port = 0
        self._chance = random.Random(seed)
        self._thread = LoopThread("rtsp server")
        self._server: asyncio.Server | None = None
        self._viewers: set[_Viewer] = set()

    def url(self, path: str | None = None, *, credentials: bool = True, password: str | None = None) -> str:
        """Return the address, with valid credentials where the server requires them."""
        known = f"{self.user}:{quote(self.password if password is None else password, safe='')}@"
        return f"rtsp://{known if self.user and credentials else ''}{self.host}:{self.port}{path or self.path}"

    @property
    def viewers(self) -> int:
        """Number of connected clients."""
        return len(self._viewers)

    def __enter__(self) -> Self:
        self._thread.__enter__()
        try:
            if self._namespace is not None:
                namespace = self._namespace
                self._thread.call(lambda: enter(namespace))
            self.come_back()
        except BaseException:
            self._thread.__exit__(None, None, None)
            raise
        self.feed.listen(self, lambda image: self._thread.soon(self._send, image))
        return self

    def __exit__(self, *_: object) -> None:
        self.feed.forget(self)
        self.die()
        self._thread.__exit__(None, None, None)

    def description(self) -> bytes:
        """Return the SDP (RFC 4566) of the feed's current format."""
        parameters = self.feed.parameters
        assert parameters is not None  # a feed that has been entered has them
        codec = f"packetization-mode=1;profile-level-id={parameters.profile};sprop-parameter-sets={parameters.sprop}"
        lines = [
            "v=0", "o=- 1 1 IN IP4 127.0.0.1", "s=ground", "t=0 0", "a=control:*",
            f"m=video 0 RTP/AVP {rtp.PAYLOAD_TYPE}", f"a=rtpmap:{rtp.PAYLOAD_TYPE} H264/{rtp.CLOCK_HZ}",
            f"a=fmtp:{rtp.PAYLOAD_TYPE} {codec}",
            f"a=framerate:{self.feed.rate}", "a=control:track1", "",
        ]  # fmt: skip
        return "\r\n".join(lines).encode()

    def die(self) -> None:
        """Stop listening and drop every connection, like a camera that loses power."""
        self._thread.call(self._stop_listening)
        self.close()

    def come_back(self) -> None:
        """Listen again, on the same port."""

        async def listen() -> asyncio.Server:
            return await asyncio.get_running_loop().create_server(
                lambda: _Viewer(self), self.host, self.port, reuse_address=True
            )

        if self._server is None:
            self._server = self._thread.wait_for(listen())
            self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Close every connection (FIN); accept new ones."""
        self._thread.call(lambda: [viewer.end() for viewer in list(self._viewers)])

    def reset(self) -> None:
        """Reset every connection (RST); accept new ones."""
        self._thread.call(lambda: [viewer.end(reset=True) for viewer in list(self._viewers)])

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _send(self, image: Picture) -> None:
        if self.faults.stalled:
            return
        watching = [viewer for viewer in self._viewers if viewer.wants(image)]
        pieces = list(rtp.payloads(image.units)) if watching else []
        timestamp = round((image.millis / 1000 + self.faults.time_shift_seconds) * rtp.CLOCK_HZ)
        for viewer in watching:
            viewer.send(pieces, timestamp, self._damage)

    def _damage(self, payload: bytes) -> bytes | None:
        """Return the payload after transmission; None where it is lost."""
        if self.faults.drop_share and self._chance.random() < self.faults.drop_share:
            self.counts.packets_dropped += 1
            return None
        if self.faults.corrupt_share and self._chance.random() < self.faults.corrupt_share and len(payload) > 8:
            self.counts.packets_corrupted += 1
            changed = bytearray(payload)
            for _ in range(3):
                changed[self._chance.randrange(4, len(changed))] ^= self._chance.randrange(1, 256)
            return bytes(changed)
        return payload


class _Viewer(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: RtspServer) -> None:
        self._server = server
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._playing = False
        self._began = False
        self._channel = 0
        self._sequence = 0
        self._source = random.randrange(1 << 32)
        self._methods: dict[str, Callable[[_Request], tuple[int, dict[str, str], bytes]]] = {
            "OPTIONS": lambda _: (200, {"Public": ", ".join(self._methods)}, b""),
            "DESCRIBE": self._describe,
            "SETUP": self._setup,
            "PLAY": self._play,
            "PAUSE": self._pause,
            "GET_PARAMETER": lambda _: (200, {}, b""),
            "TEARDOWN": self._teardown,
        }

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server._viewers.add(self)
        self._server.counts.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._server._viewers.discard(self)

    def end(self, *, reset: bool = False) -> None:
        assert self._transport
        self._server._viewers.discard(self)
        if reset:
            plug = self._transport.get_extra_info("socket")
            plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()
        else:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while self._buffer:
            if self._buffer[:1] == b"$":  # receiver reports
                if len(self._buffer) < 4 or len(self._buffer) < 4 + int.from_bytes(self._buffer[2:4], "big"):
                    return
                self._buffer = self._buffer[4 + int.from_bytes(self._buffer[2:4], "big") :]
                continue
            head, gap, rest = self._buffer.partition(b"\r\n\r\n")
            if not gap:
                return
            lines = head.decode("utf-8", "replace").split("\r\n")
            fields = (line.partition(":") for line in lines[1:])
            headers = {name.strip().lower(): value.strip() for name, _, value in fields}
            length = int(headers.get("content-length", "0"))
            if len(rest) < length:
                return
            self._buffer = rest[length:]
            parts = lines[0].split(" ")
            self._answer(_Request(parts[0], parts[1] if len(parts) > 1 else "", headers))

    def _answer(self, request: _Request) -> None:
        faults = self._server.faults
        self._server.counts.requests.append(request.method)
        self._server.counts.authorized += "authorization" in request.headers
        if faults.silent:
            return
        if faults.answer is not None:
            self._write_later(faults.answer)
            asyncio.get_running_loop().call_later(faults.answer_delay_seconds, self.end)
            return
        status, headers, body = self._judged(request)
        headers = {"CSeq": request.headers.get("cseq", "0"), "Session": "1;timeout=60", **headers}
        if body:
            headers["Content-Length"] = str(len(body))
        lines = [f"RTSP/1.0 {status} {_REASONS[status]}", *(f"{name}: {value}" for name, value in headers.items())]
        self._write_later(("\r\n".join(lines) + "\r\n\r\n").encode() + body)
        if request.method == "TEARDOWN":
            self._playing = False

    def _write_later(self, answer: bytes) -> None:
        delay = self._server.faults.answer_delay_seconds
        if delay:
            asyncio.get_running_loop().call_later(delay, self._write, answer)
        else:
            self._write(answer)

    def _write(self, answer: bytes) -> None:
        if self._transport and not self._transport.is_closing():
            self._transport.write(answer)

    def _judged(self, request: _Request) -> tuple[int, dict[str, str], bytes]:
        server = self._server
        if request.method not in self._methods:
            return 501, {}, b""
        if server.faults.redirect and (target := server.faults.redirect(request.method, request.path)):
            return 302, {"Location": target}, b""
        if request.method == "OPTIONS":
            return self._methods["OPTIONS"](request)
        if server.user is not None and not self._knows(request):
            algorithm = f", algorithm={server.algorithm}" if server.algorithm != "MD5" else ""
            return 401, {"WWW-Authenticate": f'Digest realm="{_REALM}", nonce="{_NONCE}"{algorithm}'}, b""
        if server.faults.moved_path or request.path not in {server.path, f"{server.path}/track1"}:
            return 404, {}, b""
        return self._methods[request.method](request)

    def _knows(self, request: _Request) -> bool:
        fields = dict(re.findall(r'(\w+)="([^"]*)"', request.headers.get("authorization", "")))
        digest = {"MD5": _md5, "SHA-256": _sha256}[self._server.algorithm]
        who = digest(f"{self._server.user}:{_REALM}:{self._server.password}")
        what = digest(f"{request.method}:{fields.get('uri', '')}")
        is_right = fields.get("uri") == request.uri and fields.get("response") == digest(f"{who}:{_NONCE}:{what}")
        return is_right and fields.get("username") == self._server.user

    def _describe(self, request: _Request) -> tuple[int, dict[str, str], bytes]:
        body = self._server.faults.description
        if body is None:
            body = self._server.description()
        return 200, {"Content-Type": "application/sdp", "Content-Base": f"{request.uri}/"}, body

    def _setup(self, request: _Request) -> tuple[int, dict[str, str], bytes]:
        transport = request.headers.get("transport", "")
        if "TCP" not in transport:
            return 461, {}, b""
        match = re.search(r"interleaved=(\d+)-", transport)
        self._channel = int(match[1]) if match else 0
        channels = f"{self._channel}-{self._channel + 1}"
        return 200, {"Transport": f"RTP/AVP/TCP;unicast;interleaved={channels};ssrc={self._source:08X}"}, b""

    def _play(self, _request: _Request) -> tuple[int, dict[str, str], bytes]:
        self._playing, self._began = True, False
        self._server.counts.played += 1
        if self._server.faults.keys_on_join:
            self._server.feed.ask_key()
        return 200, {"Range": "npt=now-"}, b""

    def _pause(self, _request: _Request) -> tuple[int, dict[str, str], bytes]:
        self._playing = False
        return 200, {}, b""

    def _teardown(self, _request: _Request) -> tuple[int, dict[str, str], bytes]:
        asyncio.get_running_loop().call_soon(self.end)
        return 200, {}, b""

    def wants(self, image: Picture) -> bool:
        """Return whether to send the frame to this client: from its first keyframe on, while its buffer has space."""
        if not self._playing or self._transport is None or self._transport.is_closing():
            return False
        if self._transport.get_write_buffer_size() > _MOST_WAITING_BYTES:
            self._server.counts.pictures_left_out += 1
            self._began = False
            return False
        self._began = self._began or image.key
        return self._began

    def send(self, pieces: list[tuple[bytes, bool]], timestamp: int, damage: Callable[[bytes], bytes | None]) -> None:
        assert self._transport
        sent = []
        for piece, last in pieces:
            self._sequence += 1
            arrived = damage(piece)
            if arrived is not None:
                packet = rtp.packet(
                    arrived, sequence=self._sequence, timestamp=timestamp, source=self._source, last=last
                )
                sent.append(rtp.interleaved(self._channel, packet))
        if sent:
            self._transport.write(b"".join(sent))


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
