"""RTSP client that publishes a stream by ANNOUNCE and RECORD, interleaved in its TCP connection (RFC 2326)."""

from __future__ import annotations

import base64
import re
import secrets
import ssl
import time
from dataclasses import dataclass
from typing import Final, NoReturn

from overlays.h264 import AccessUnit
from overlays.sinks.push.address import ServerAddress
from overlays.sinks.push.connection import Deadline, Publisher, PushError, ServerSocket
from overlays.sinks.push.rtp import PAYLOAD_TYPE, RtpPacketizer
from pipeline.http_auth import Challenge, authorization, challenges, strongest
from pipeline.rtsp_messages import Message, MessageReader

_REPORT_SECONDS: Final = 2.0
"""Interval of sender reports, and of requests that check whether the server still answers."""
_UNAUTHORISED: Final = 401
_REASONS: Final = {
    _UNAUTHORISED: "wrong or missing user name or password (401 unauthorised); write them to the credentials_file",
    403: "this user may not publish to this path (403 forbidden); check the server's permissions",
    404: "the server has no such path (404 not found); check the path, and the server's list of paths",
    405: "the server does not take streams (405 method not allowed); check its address",
    461: "the server does not take RTP over TCP (461 unsupported transport); allow TCP in its settings",
}


@dataclass(frozen=True, slots=True)
class Login:
    """User and password."""

    user: str
    password: str


class RtspPublisher(Publisher):
    """Publishes one stream at ``rtsp://HOST/PATH`` or ``rtsps://HOST/PATH``."""

    def __init__(
        self,
        address: ServerAddress,
        path: str,
        login: Login | None,
        seconds: float,
        context: ssl.SSLContext | None = None,
    ) -> None:
        """Set the server; ``open`` connects.

        Args:
            address: the server.
            path: the path of this stream.
            login: user and password; None if the server requires none.
            seconds: time limit of each step.
            context: verifies the server's certificate; None: no TLS.
        """
        self._url = f"{address.scheme}://{address.host_port}/{path}"
        self._login, self._seconds = login, seconds
        self._socket = ServerSocket(address.host, address.port, seconds, context)
        self._reader = MessageReader()
        self._challenge: Challenge | None = None
        self._answered = self._requests = self._count = 0
        self._asked_at = self._reported_at = float("-inf")
        self._session = ""
        random = secrets.SystemRandom()
        self._packetizer = RtpPacketizer(random.getrandbits(32), random.getrandbits(16), random.getrandbits(32))

    def open(self, first: AccessUnit, size: tuple[int, int]) -> None:
        """Connect and announce a stream; see ``Publisher``."""
        self._socket.connect()
        sdp = session_description(self._url, first, size)
        self._request("ANNOUNCE", self._url, {"Content-Type": "application/sdp"}, sdp.encode())
        transport = {"Transport": "RTP/AVP/TCP;unicast;interleaved=0-1;mode=record"}
        setup = self._request("SETUP", f"{self._url}/streamid=0", transport)
        self._session = setup.get("session").partition(";")[0].strip()
        self._request("RECORD", self._url, {"Range": "npt=0.000-"})

    def send(self, unit: AccessUnit, captured_unix: float) -> None:
        """Send one access unit; see ``Publisher``."""
        now = time.monotonic()
        data = bytearray()
        for packet in self._packetizer.packets(unit):
            data += b"$\x00" + len(packet).to_bytes(2, "big") + packet
        if now - self._reported_at >= _REPORT_SECONDS:
            self._reported_at = now
            report = self._packetizer.sender_report(unit.ticks, captured_unix)
            data += b"$\x01" + len(report).to_bytes(2, "big") + report
        self._socket.send(bytes(data))

    def serve(self) -> None:
        """Read received data, and check whether the server still answers; see ``Publisher``."""
        while data := self._socket.receive_waiting():
            self._reader.feed(data)
            while (item := self._reader.next()) is not None:
                self._handle(item)
        now = time.monotonic()
        if self._answered < self._requests:
            if now - self._asked_at > self._seconds:
                raise PushError(f"the server does not answer or take data for {self._seconds:g} s")
        elif now - self._asked_at >= _REPORT_SECONDS:
            self._asked_at = now
            self._send_request("OPTIONS", self._url, {})  # also keeps the session

    def abort(self) -> None:
        """End every wait of the other thread; see ``Publisher``."""
        self._socket.abort()

    def close(self) -> None:
        """Send TEARDOWN and close the connection, without waiting for the answer."""
        try:
            if self._session and not self._socket.is_full():
                self._send_request("TEARDOWN", self._url, {})
        except OSError:
            pass  # the server is gone already
        finally:
            self._socket.close()

    def _request(self, method: str, target: str, headers: dict[str, str], body: bytes = b"") -> Message:
        """Return the successful answer to a request; log in if the server requires it."""
        answer = self._exchange(method, target, headers, body)
        if answer.status == _UNAUTHORISED and self._login is not None and self._challenge is None:
            self._challenge = strongest(challenges(answer.get_all("www-authenticate")))
            if self._challenge is None:
                raise PushError(
                    "the server requires an authentication scheme other than Digest and Basic (401)", is_slow=True
                )
            answer = self._exchange(method, target, headers, body)
        if answer.status != 200:
            _refuse(answer.status or 0, method)
        return answer

    def _exchange(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Message:
        number = self._send_request(method, target, headers, body)
        deadline = Deadline(self._seconds)
        while True:
            item = self._reader.next()
            if item is None:
                deadline.check()
                self._reader.feed(self._socket.receive())
                continue
            self._handle(item)
            if isinstance(item, Message) and item.status is not None and self._answered == number:
                return item

    def _send_request(self, method: str, target: str, headers: dict[str, str], body: bytes = b"") -> int:
        self._requests += 1
        lines = {"CSeq": str(self._requests), "User-Agent": "recipro-stream"} | headers
        if self._session:
            lines["Session"] = self._session
        if self._challenge is not None and self._login is not None:
            self._count += 1
            lines["Authorization"] = authorization(
                self._challenge,
                user=self._login.user,
                password=self._login.password,
                method=method,
                target=target,
                count=self._count,
                cnonce=secrets.token_hex(8),
            )
        self._socket.send(Message(f"{method} {target} RTSP/1.0", tuple(lines.items()), body).encode())
        return self._requests

    def _handle(self, item: Message | bytes) -> None:
        """Record the number of an answer; receiver reports and requests of the server are ignored."""
        if isinstance(item, Message) and item.status is not None and re.fullmatch(r"\d{1,9}", item.get("cseq")):
            self._answered = max(self._answered, int(item.get("cseq")))


def session_description(url: str, first: AccessUnit, size: tuple[int, int]) -> str:
    """Return the description (SDP, RFC 4566) of a stream that begins with the key frame ``first``.

    Raises:
        PushError: ``first`` has no parameter sets.
    """
    sets = first.parameter_sets()
    if sets is None:
        raise PushError("the encoder gave no parameter sets")
    sprop = ",".join(base64.b64encode(unit).decode() for unit in sets)
    profile = sets[0][1:4].hex().upper()
    host = url.partition("://")[2].partition("/")[0]
    family = "IP6" if host.startswith("[") else "IP4"
    lines = [
        "v=0",
        f"o=- 0 0 IN {family} {'::1' if family == 'IP6' else '127.0.0.1'}",
        "s=recipro-stream",
        f"c=IN {family} {'::' if family == 'IP6' else '0.0.0.0'}",  # noqa: S104 - the server does not send to it
        "t=0 0",
        f"m=video 0 RTP/AVP {PAYLOAD_TYPE}",
        f"a=rtpmap:{PAYLOAD_TYPE} H264/90000",
        f"a=fmtp:{PAYLOAD_TYPE} packetization-mode=1; profile-level-id={profile}; sprop-parameter-sets={sprop}",
        f"a=framesize:{PAYLOAD_TYPE} {size[0]}-{size[1]}",
        "a=control:streamid=0",
    ]
    return "\r\n".join(lines) + "\r\n"


def _refuse(status: int, method: str) -> NoReturn:
    reason = _REASONS.get(status, f"the server refuses {method} with status {status}; its log may have the reason")
    raise PushError(reason, is_slow=400 <= status < 500)
