"""The network: overlays published over ZeroMQ as version 1 of the wire, one JPEG for all viewers of a camera.

An XPUB socket tells who watches: while nobody watches a camera, nothing is compressed, and ``needs_image`` lets the
renderer rest too. Whoever joins late gets the last frame at once. Nobody is waited for: a viewer that does not keep up
misses frames. Who may look in at all is the business of ``overlays.wire.curve``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import zmq

from overlays.encoding_pool import Prepared
from overlays.render.jpeg import bounded_image, encode_image, reusable_jpeg, scale_image
from overlays.sinks.metric_help import ENCODED, VIEWERS
from overlays.sinks.rate_limit import RateLimiter
from overlays.sinks.settings import ZeroMqSettings
from overlays.wire.binding import bind_error_message, check_path
from overlays.wire.curve.allowlist import AllowList
from overlays.wire.curve.authenticator import CurveAuthenticator
from overlays.wire.curve.handshake_errors import REFUSALS, RefusalReason
from overlays.wire.curve.keys import read_pair
from overlays.wire.curve.subscriptions import MAX_TOPICS_PER_CONNECTION, Subscriptions
from overlays.wire.endpoint import parse_address, without_user
from overlays.wire.message import encode, topic_of
from pipeline.errors import SinkError, WireError
from pipeline.frames import Overlay
from pipeline.ports import MetricSample
from pipeline.settings import SinkContext

log = logging.getLogger(__name__)

_QUEUE_MESSAGES: Final = 4
"""Messages that may wait for each viewer: what waits is old."""
_SEND_BUFFER_BYTES: Final = 1 << 20
_SUBSCRIPTION_BYTES: Final = 8192
"""Viewers send nothing but the names they want."""
_HEARD_BUFFER_BYTES: Final = 8 << 10
_BACKLOG: Final = 32
"""Connections that the kernel accepts before libzmq does; it slows down who connects very often."""
_MAX_HEARD: Final = 1000
"""Subscriptions read before the next frame is sent."""
_HEARTBEAT_MS: Final = 500
_HEARTBEAT_TIMEOUT_MS: Final = 1000
_HEARTBEAT_TTL_MS: Final = 2000
_PLAIN_SECONDS: Final = 0.5
"""Frames drawn before somebody joined, or before one was due, have no heat on them; so long they are held back."""
_REBIND_SECONDS: Final = 5.0
_SAY_EVERY_SECONDS: Final = 60.0


class ZeroMqSink:
    """Publishes on ``tcp://host:port`` or ``ipc://path``; the topic is the camera's name.

    Entering, ``put``, ``idle`` and leaving belong to one thread at a time; ``needs_image`` to any.
    """

    lossless = False

    def __init__(
        self,
        settings: ZeroMqSettings | str,
        context: SinkContext | None = None,  # noqa: ARG002 - the same for every sink
        *,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take where to bind.

        Raises:
            SinkError: the address is written wrong, or open to others without keys.
            ConfigError: a key or the list of those who may look in cannot be read.
        """
        self._settings = ZeroMqSettings.of(settings)
        uri = self._settings.uri
        try:
            self._address = parse_address(uri)
        except ValueError as error:
            raise SinkError(f"{without_user(uri)}: {error}") from None
        self._authenticator = _gate(self._settings, is_local=self._address.is_local, clock=clock)
        self.uri = uri
        self.endpoint = uri
        """Where it is bound, once it is: a port of 0 has become a real one."""
        self.encoded = 0
        """How many pictures were compressed."""
        self._wall_clock = wall_clock
        self._clock = clock
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._subscriptions = Subscriptions(self._authenticator.places.serial)
        self._woken: dict[str, float] = {}
        """Since when each camera has been watched, on our clock."""
        self._last: dict[str, Overlay] = {}
        self._packed: dict[str, tuple[Overlay, Overlay, bytes]] = {}
        self._prepared: Prepared[tuple[Overlay, bytes]] = Prepared()
        """Of each camera what was sent last: as it came, as it was sent, and its JPEG."""
        self._rate_limiter = RateLimiter(self._settings.max_rate)
        self._unbound_at: float | None = None
        self._too_many_said_at: float | None = None
        self._pending: set[str] = set()
        """Cameras whose newest viewer has not got a frame yet."""

    def __enter__(self) -> Self:
        check_path(self._address)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        for option, setting in (
            (zmq.XPUB_VERBOSE, 1),
            (zmq.SNDHWM, _QUEUE_MESSAGES),
            (zmq.MAXMSGSIZE, _SUBSCRIPTION_BYTES),
            (zmq.SNDBUF, _SEND_BUFFER_BYTES),
            (zmq.RCVBUF, _HEARD_BUFFER_BYTES),
            (zmq.BACKLOG, _BACKLOG),
            (zmq.LINGER, round(self._settings.linger_seconds * 1000)),
            (zmq.HEARTBEAT_IVL, _HEARTBEAT_MS),
            (zmq.HEARTBEAT_TIMEOUT, _HEARTBEAT_TIMEOUT_MS),
            (zmq.HEARTBEAT_TTL, _HEARTBEAT_TTL_MS),
            (zmq.IPV6, int(self._address.is_ipv6)),
        ):
            self._socket.setsockopt(option, setting)
        try:
            self._authenticator.attach(self._socket)
            self._socket.bind(self.uri)
        except zmq.ZMQError as error:
            self._close(0)
            raise bind_error_message(self.uri, error) from None
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._authenticator.bound(self.endpoint)
        return self

    @property
    def topics(self) -> frozenset[bytes]:
        """What the viewers have subscribed to."""
        return self._subscriptions.topics

    @property
    def accepted_jpeg_quality(self) -> int | None:
        """The quality it sends pictures at, where it sends them in their own size."""
        return self._settings.quality if self._settings.scale == 1.0 else None

    @property
    def viewers(self) -> int:
        """How many connections have subscribed to something."""
        return self._authenticator.viewers

    @property
    def refused(self) -> Mapping[RefusalReason, int]:
        """How many handshakes failed, by kind."""
        return self._authenticator.refused

    def metrics(self) -> list[MetricSample]:
        """Return who looks on, who was refused, and how much was compressed for it."""
        here, refused = ("sink", self.uri), self.refused
        viewers = MetricSample("viewers", self.viewers, VIEWERS, labels=(("kind", "zeromq"), here))
        encoded = MetricSample("jpeg_encodes", self.encoded, ENCODED, "counter", (here,))
        said = "Handshakes that failed, by reason."
        return [viewers, encoded] + [
            MetricSample("handshake_failures", refused.get(kind, 0), said, "counter", (here, ("reason", kind)))
            for kind in REFUSALS
        ]

    def needs_image(self, camera: str) -> bool:
        """Say whether a frame of this camera would be sent now, as far as the last ``put`` or ``idle`` heard."""
        return self._is_watched(camera) and (
            camera in self._pending or self._rate_limiter.is_due(camera, self._clock())
        )

    def prepare(self, overlay: Overlay) -> None:
        """Scale and compress a frame that is sent next, in a thread of its camera."""
        if self.needs_image(overlay.explanation.frame.camera) and not _is_plain(overlay):
            with suppress(WireError):  # ``put`` says so
                self._prepared.add(overlay, "sent", self._compressed(overlay))

    def put(self, overlay: Overlay) -> None:
        """Publish one frame if somebody watches its camera and one is due; never waits for a viewer.

        Raises:
            SinkError: the address was lost.
            WireError: the frame breaks a limit of the wire; the next one is sent.
        """
        camera = overlay.explanation.frame.camera
        self._last[camera] = overlay
        self._handle_subscriptions()
        if self._is_watched(camera) and (camera in self._pending or self._rate_limiter.is_due(camera, self._clock())):
            self._send_if_drawn(camera)
        self._settle()

    def idle(self) -> None:
        """Serve who joined while nothing was put. Call it now and then when frames are rare.

        Raises:
            SinkError: the address was lost.
        """
        self._handle_subscriptions()
        for camera in list(self._last):
            if self._is_unsent(camera) and self._rate_limiter.is_due(camera, self._clock()):
                self._send(camera)
        self._settle()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._close(round(self._settings.linger_seconds * 1000))

    def _is_watched(self, camera: str) -> bool:
        return self._subscriptions.matches(topic_of(camera))

    def _is_unsent(self, camera: str) -> bool:
        """Say whether the newest frame is a drawn one that waits until one is due."""
        sent = self._packed.get(camera)
        return sent is not None and sent[0] is not self._last[camera] and not _is_plain(self._last[camera])

    def _handle_subscriptions(self) -> None:
        """Answer who knocks, and read who came and went; each newcomer is owed the last frame of what it watches."""
        if self._socket is None:
            raise SinkError(f"{self.uri}: is not open")
        self._admit(self._socket)
        before = {camera for camera in self._last if self._is_watched(camera)}
        for _ in range(_MAX_HEARD):
            if not self._socket.poll(0, zmq.POLLIN):
                break
            self._note(self._socket.recv(copy=False))
        self._subscriptions.publish()
        for camera in self._last:
            if not self._is_watched(camera):
                self._woken.pop(camera, None)
                self._pending.discard(camera)
                self._packed.pop(camera, None)
            elif camera not in before or camera not in self._woken:
                self._woken[camera] = self._clock()

    def _note(self, said: zmq.Frame) -> None:
        """Take note of one subscription, or of its end; end a connection that has too many."""
        event = said.bytes
        if event[:1] == b"\x00":
            self._subscriptions.remove(event[1:])
        elif event[:1] == b"\x01":
            descriptor = _descriptor_of(said)
            if descriptor is not None:
                self._authenticator.places.settle(descriptor)
            if self._subscriptions.add(event[1:], descriptor):
                self._pending.update(camera for camera in self._last if topic_of(camera).startswith(event[1:]))
            elif descriptor is not None:
                self._authenticator.end(descriptor)
                self._say_too_many(event[1:])

    def _say_too_many(self, topic: bytes) -> None:
        now = self._clock()
        if self._too_many_said_at is None or now - self._too_many_said_at > _SAY_EVERY_SECONDS:
            self._too_many_said_at = now
            log.warning(
                "%s: a viewer subscribes to too many names (at most %d), the last one %r; it is disconnected",
                self.uri,
                MAX_TOPICS_PER_CONNECTION,
                topic[:40],
            )

    def _admit(self, door: zmq.Socket[bytes]) -> None:
        """Serve the gate; when somebody was taken off the list, hang up on all: the others come back by themselves."""
        if self._authenticator.expelled() and self._unbound_at is None:
            log.warning("%s: somebody was taken off the list; all hang up, and who may comes back", self.uri)
            self._authenticator.closed = False
            self._unbound_at = self._clock()
            door.unbind(self.endpoint)
        if self._unbound_at is None:
            return
        late = self._clock() - self._unbound_at > _REBIND_SECONDS
        if not self._authenticator.closed and not late:
            return
        try:
            door.bind(self.endpoint)
        except zmq.ZMQError as error:
            if late:
                raise bind_error_message(self.endpoint, error) from None
            return
        self._unbound_at = None

    def _settle(self) -> None:
        """Send what was sent last to those who are owed one; where there is nothing yet, a plain one in the end."""
        for camera in sorted(self._pending):
            if camera in self._packed:
                self._resend(camera)
            elif camera in self._last:
                self._send_if_drawn(camera)

    def _send_if_drawn(self, camera: str) -> None:
        """Send the newest frame; one without heat only if a drawn one has been waited for."""
        waited = self._clock() - max(self._woken[camera], self._rate_limiter.due_at(camera))
        if waited > _PLAIN_SECONDS or not _is_plain(self._last[camera]):
            self._send(camera)

    def _send(self, camera: str) -> None:
        overlay = self._last[camera]
        try:
            sent, picture = self._prepared.of(overlay, "sent") or self._compressed(overlay)
        except WireError:
            self._forget(camera)
            raise
        self._packed[camera] = (overlay, sent, picture)
        self.encoded += 1
        self._rate_limiter.record(camera, self._clock())
        self._resend(camera)

    def _forget(self, camera: str) -> None:
        """Forget a frame that cannot be sent: the next one is owed to whoever waits for it."""
        self._last.pop(camera, None)
        self._packed.pop(camera, None)

    def _compressed(self, overlay: Overlay) -> tuple[Overlay, bytes]:
        """Return what is sent of a frame, and its picture as JPEG."""
        picture = bounded_image(scale_image(overlay.image, self._settings.scale))
        sent = Overlay(picture, overlay.explanation, overlay.signal_loss)
        return sent, reusable_jpeg(overlay, self.accepted_jpeg_quality) or encode_image(
            sent.image, self._settings.quality
        )

    def _resend(self, camera: str) -> None:
        _, sent, picture = self._packed[camera]
        try:
            parts = encode(sent, sent_at_unix=self._wall_clock(), now_monotonic=self._clock(), picture=picture)
        except WireError:
            self._forget(camera)
            raise
        self._pending.discard(camera)
        if self._socket is not None:
            # XPUB drops for viewers whose queue is full; it never waits.
            self._socket.send_multipart(parts)

    def _close(self, linger_ms: int) -> None:
        self._authenticator.close()
        if self._socket is not None:
            self._socket.close(linger_ms)
        if self._context is not None:
            self._context.term()
        self._socket = self._context = None


def _is_plain(overlay: Overlay) -> bool:
    return overlay.jpeg is None and overlay.image is overlay.explanation.frame.image


def _descriptor_of(said: zmq.Frame) -> int | None:
    """Return the file descriptor of the connection that a message came by; None where it came by none."""
    try:
        return int(said.get(zmq.SRCFD))
    except (zmq.ZMQError, KeyError):
        return None


def _gate(settings: ZeroMqSettings, *, is_local: bool, clock: Callable[[], float]) -> CurveAuthenticator:
    """Return who guards the door: those with keys on the list, or everybody where that is harmless or asked for."""
    uri, curve = settings.uri, settings.curve
    if curve is not None:
        return CurveAuthenticator(
            uri, read_pair(Path(curve.secret_key_file)), AllowList(Path(curve.authorized_keys)), clock
        )
    if not is_local and not settings.insecure:
        raise SinkError(
            f"{uri}: whoever reaches this address could look in; let only keys in (uv run run.py keys new keys, then "
            "--curve-keys keys), bind tcp://127.0.0.1:port, or say --insecure where the network itself is closed"
        )
    return CurveAuthenticator(uri, None, None, clock)
