"""RTMP client that publishes a stream (Adobe, "Real-Time Messaging Protocol", 1.0; H.264 in the format of FLV)."""

from __future__ import annotations

import secrets
import ssl
import struct
from collections.abc import Callable
from typing import Final

from overlays.h264 import PPS, SEI, SPS, AccessUnit
from overlays.sinks.push.address import SECRET, ServerAddress
from overlays.sinks.push.amf0 import Amf0Error, Value, decode, encode
from overlays.sinks.push.chunks import ChunkReader, RtmpMessage, to_chunks
from overlays.sinks.push.connection import Deadline, Publisher, PushError, ServerClosedError, ServerSocket
from overlays.sinks.timeline import TICKS_PER_SECOND

_VERSION: Final = 3
_HANDSHAKE_BYTES: Final = 1536
_FIRST_CHUNK_BYTES: Final = 128
_CHUNK_BYTES: Final = 1 << 16
_CONTROL_STREAM, _COMMAND_STREAM, _VIDEO_STREAM = 2, 3, 6
_SET_CHUNK_SIZE, _USER_CONTROL, _VIDEO, _DATA, _COMMAND = 1, 4, 9, 18, 20
_PING_REQUEST, _PING_RESPONSE = 6, 7
_AVC: Final = 7
_KEY_FRAME, _INTER_FRAME = 1 << 4, 2 << 4
_CONNECT, _CREATE_STREAM, _PUBLISH = 1.0, 4.0, 5.0
"""Transaction numbers."""


class RtmpPublisher(Publisher):
    """Publishes one stream at ``rtmp://HOST/APP/KEY`` or ``rtmps://HOST/APP/KEY``."""

    def __init__(
        self, address: ServerAddress, path: str, seconds: float, context: ssl.SSLContext | None = None
    ) -> None:
        """Set the server; ``open`` connects.

        Args:
            address: the server.
            path: application and key of this stream.
            seconds: time limit of each step.
            context: verifies the server's certificate; None: no TLS.
        """
        self._app, self._key = address.split(path)
        self._url = f"{address.scheme}://{address.host_port}/{self._app}"
        self._seconds = seconds
        self._socket = ServerSocket(address.host, address.port, seconds, context)
        self._reader = ChunkReader()
        self._chunk_bytes = _FIRST_CHUNK_BYTES
        self._stream = 0
        self._refusal = ""
        """The likely reason if the server refuses the current step."""

    def open(self, first: AccessUnit, size: tuple[int, int]) -> None:
        """Connect and announce a stream; see ``Publisher``."""
        self._socket.connect()
        self._shake_hands()
        self._set_chunk_size()
        try:
            self._publish()
            self._send_description(first, size)
        except ServerClosedError as error:  # some servers refuse without an answer
            raise PushError(f"{error}; {self._refusal}", is_slow=True) from None

    def _publish(self) -> None:
        """Connect to the application, then publish the stream. Raises ``PushError``."""
        self._refusal = f"it may refuse the application {self._app!r}; check the address"
        client = {"app": self._app, "type": "nonprivate", "flashVer": "FMLE/3.0 (compatible; recipro-stream)"}
        self._command("connect", _CONNECT, client | {"tcUrl": self._url})
        self._wait(_CONNECT)
        self._refusal = "it may refuse the stream; check the stream key and the permissions"
        self._command("releaseStream", 2.0, None, self._key)
        self._command("FCPublish", 3.0, None, self._key)
        self._command("createStream", _CREATE_STREAM, None)
        answer = self._wait(_CREATE_STREAM)
        self._stream = int(answer[3]) if len(answer) > 3 and isinstance(answer[3], float) else 1
        self._command("publish", _PUBLISH, None, self._key, "live")
        self._wait_until_published()

    def send(self, unit: AccessUnit, captured_unix: float) -> None:  # noqa: ARG002 - RTMP has no clock of the wall
        """Send one access unit; see ``Publisher``."""
        units = [nal_unit for nal_unit in unit.nal_units if nal_unit[0] & 31 not in {SPS, PPS, SEI}]
        body = b"".join(struct.pack(">I", len(nal_unit)) + nal_unit for nal_unit in units)
        kind = _KEY_FRAME if unit.is_key else _INTER_FRAME
        header = bytes((kind | _AVC, 1, 0, 0, 0))  # NAL units; decoded and shown at the same time
        self._send_video(header + body, round(unit.ticks * 1000 / TICKS_PER_SECOND))

    def serve(self) -> None:
        """Answer the server's ping requests; see ``Publisher``."""
        while data := self._socket.receive_waiting():
            self._reader.feed(data)
            while (message := self._reader.next()) is not None:
                self._handle(message)

    def abort(self) -> None:
        """End all waiting calls of another thread; see ``Publisher``."""
        self._socket.abort()

    def close(self) -> None:
        """End the stream and close the connection, without waiting."""
        try:
            if self._stream and not self._socket.is_full():
                self._command("FCUnpublish", 6.0, None, self._key)
                self._command("deleteStream", 7.0, None, float(self._stream))
        except OSError:
            pass  # the server is gone already
        finally:
            self._socket.close()

    def _shake_hands(self) -> None:
        self._socket.send(bytes((_VERSION,)) + bytes(8) + secrets.token_bytes(_HANDSHAKE_BYTES - 8))
        received, deadline = bytearray(), Deadline(self._seconds)
        while len(received) < 1 + 2 * _HANDSHAKE_BYTES:
            deadline.check()
            received += self._socket.receive()
        if received[0] != _VERSION:
            raise PushError("the server does not speak RTMP; check host and port", is_slow=True)
        self._socket.send(bytes(received[1 : 1 + _HANDSHAKE_BYTES]))
        self._reader.feed(bytes(received[1 + 2 * _HANDSHAKE_BYTES :]))

    def _set_chunk_size(self) -> None:
        self._send(RtmpMessage(_SET_CHUNK_SIZE, struct.pack(">I", _CHUNK_BYTES)), _CONTROL_STREAM)
        self._chunk_bytes = _CHUNK_BYTES

    def _command(self, name: str, number: float, *values: Value) -> None:
        stream = self._stream if name == "publish" else 0
        self._send(RtmpMessage(_COMMAND, encode([name, number, *values]), stream), _COMMAND_STREAM)

    def _send_description(self, first: AccessUnit, size: tuple[int, int]) -> None:
        """Send the image size and the parameter sets."""
        facts: dict[str, Value] = {"width": float(size[0]), "height": float(size[1]), "videocodecid": float(_AVC)}
        data = encode(["@setDataFrame", "onMetaData", facts | {"encoder": "recipro-stream"}])
        self._send(RtmpMessage(_DATA, data, self._stream), _VIDEO_STREAM)
        header = bytes((_KEY_FRAME | _AVC, 0, 0, 0, 0))
        self._send_video(header + decoder_configuration(first), 0)

    def _send_video(self, payload: bytes, milliseconds: int) -> None:
        self._send(RtmpMessage(_VIDEO, payload, self._stream, milliseconds), _VIDEO_STREAM)

    def _send(self, message: RtmpMessage, chunk_stream: int) -> None:
        self._socket.send(to_chunks(message, chunk_stream, self._chunk_bytes))

    def _wait(self, number: float) -> list[Value]:
        """Return the successful answer to a command."""
        answer = self._next_command(lambda values: values[:1] != ["onStatus"] and values[1:2] == [number])
        if answer[0] != "_result":
            raise self._refused(answer)
        return answer

    def _wait_until_published(self) -> None:
        answer = self._next_command(lambda values: values[:1] in (["onStatus"], ["_error"]))
        facts = answer[3] if len(answer) > 3 and isinstance(answer[3], dict) else {}
        if facts.get("code") != "NetStream.Publish.Start":
            raise self._refused(answer)

    def _next_command(self, is_wanted: Callable[[list[Value]], bool]) -> list[Value]:
        """Return the next command for which ``is_wanted`` returns True."""
        deadline = Deadline(self._seconds)
        while True:
            message = self._reader.next()
            if message is None:
                deadline.check()
                self._reader.feed(self._socket.receive())
                continue
            values = self._handle(message)
            if values and is_wanted(values):
                return values

    def _handle(self, message: RtmpMessage) -> list[Value]:
        """Answer a ping request; return the values of a command, or an empty list for other messages."""
        if message.kind == _USER_CONTROL and message.payload[:2] == struct.pack(">H", _PING_REQUEST):
            answer = struct.pack(">H", _PING_RESPONSE) + message.payload[2:6]
            self._send(RtmpMessage(_USER_CONTROL, answer), _CONTROL_STREAM)
        if message.kind != _COMMAND:
            return []
        try:
            return decode(message.payload)
        except Amf0Error as error:
            raise PushError(f"the server sends a command that cannot be read ({error})") from None

    def _refused(self, answer: list[Value]) -> PushError:
        """Return the error for a negative answer, with the server's text without the stream key."""
        facts = answer[3] if len(answer) > 3 and isinstance(answer[3], dict) else {}
        text = str(facts.get("description", "")).replace(self._key, SECRET)
        words = "".join(letter if letter.isprintable() else "?" for letter in text)[:120]
        return PushError(f"the server answers {words or 'with an error'}; {self._refusal}", is_slow=True)


def decoder_configuration(first: AccessUnit) -> bytes:
    """Return the parameter sets of a key frame in the format of MP4 and FLV (ISO/IEC 14496-15, 5.3.3).

    Raises:
        PushError: ``first`` has no parameter sets.
    """
    sets = first.parameter_sets()
    if sets is None:
        raise PushError("the encoder gave no parameter sets")
    sps, pps = sets
    head = bytes((1, sps[1], sps[2], sps[3], 0xFF, 0xE1))  # lengths of 4 bytes; one sequence parameter set
    return head + struct.pack(">H", len(sps)) + sps + b"\x01" + struct.pack(">H", len(pps)) + pps
