"""ZeroMQ sink: publishes overlays as version 1 of the wire format, one JPEG for all viewers of a camera.

An XPUB socket reports the subscriptions, so that frames of a camera without viewers are neither compressed nor drawn
(``needs_image``). A new viewer gets the last frame at once. The sink never waits for a viewer: a slow viewer misses
frames. ``overlays.wire.curve`` decides which viewers may connect.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

import zmq

from overlays.encoding_pool import PreparedImages
from overlays.render.jpeg import bounded_image, encode_image, reusable_jpeg, scale_image
from overlays.render.passages import PREFIX
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
from overlays.wire.message import encode, encode_passage, topic_of
from pipeline.errors import SinkError, WireError
from pipeline.frames import Overlay
from pipeline.passages.passage import PassageCursor
from pipeline.ports import MetricSample, Sink
from pipeline.settings import SinkContext

log = logging.getLogger(__name__)

_QUEUE_MESSAGES: Final = 4
"""Maximum number of messages queued per viewer; it is small, because queued messages are old when they arrive."""
_SEND_BUFFER_BYTES: Final = 1 << 20
_SUBSCRIPTION_BYTES: Final = 8192
"""Maximum size of a message from a viewer, which has only the name of a subscription."""
_RECEIVE_BUFFER_BYTES: Final = 8 << 10
_BACKLOG: Final = 32
"""Maximum number of connections that wait in the kernel; it slows down clients that connect very often."""
_MAX_SUBSCRIPTIONS_PER_FRAME: Final = 1000
"""Maximum number of subscriptions read before the next frame is sent."""
_HEARTBEAT_MS: Final = 500
_HEARTBEAT_TIMEOUT_MS: Final = 1000
_HEARTBEAT_TTL_MS: Final = 2000
_PLAIN_SECONDS: Final = 0.5
"""Delay of frames without a heat map, which were drawn before a viewer subscribed or before a frame was due."""
_REBIND_SECONDS: Final = 5.0
_LOG_SECONDS: Final = 60.0
_PARTS: Final = PREFIX.encode()


class ZeroMqSink(Sink):
    """Publishes on ``tcp://host:port`` or ``ipc://path``; the topic is the camera's name.

    ``__enter__``, ``put``, ``idle`` and ``__exit__`` are for one thread at a time; ``needs_image`` for any thread.
    """

    def __init__(
        self,
        settings: ZeroMqSettings | str,
        context: SinkContext | None = None,  # noqa: ARG002 - the same for every sink
        *,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Check the options and read the keys; ``__enter__`` binds the socket.

        Args:
            settings: the address, picture quality, scale, rate, CURVE keys, linger time and ``insecure``.
            context: not used.
            wall_clock: returns Unix seconds.
            clock: returns monotonic seconds.

        Raises:
            SinkError: the address is invalid, or other machines can reach it and there are no keys.
            ConfigError: a key or the list of authorized keys cannot be read.
        """
        self._settings = ZeroMqSettings.of(settings)
        uri = self._settings.uri
        try:
            self._address = parse_address(uri)
        except ValueError as error:
            raise SinkError(f"{without_user(uri)}: {error}") from None
        self._authenticator = _build_authenticator(self._settings, is_local=self._address.is_local, clock=clock)
        self.uri = uri
        self.endpoint = uri
        """The bound address, final after entering: port 0 is replaced by the real port."""
        self.encoded = 0
        """Number of images that were compressed."""
        self._wall_clock = wall_clock
        self._clock = clock
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._subscriptions = Subscriptions(self._authenticator.connections.serial)
        self._watched_since: dict[str, float] = {}
        """Time since which each camera has been subscribed to, on ``clock``."""
        self._last: dict[str, Overlay] = {}
        self._packed: dict[str, tuple[Overlay, Overlay, bytes]] = {}
        """The last message of each camera: the received overlay, the sent overlay, and its JPEG."""
        self._prepared: PreparedImages[tuple[Overlay, bytes]] = PreparedImages()
        self._rate_limiter = RateLimiter(self._settings.max_rate)
        self._unbound_at: float | None = None
        self._too_many_logged_at: float | None = None
        self._passages = PassageCursor()
        self._pending: set[str] = set()
        """Cameras whose newest viewer has not received a frame yet."""

    def __enter__(self) -> Self:
        check_path(self._address)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        for option, setting in (
            (zmq.XPUB_VERBOSE, 1),
            (zmq.SNDHWM, _QUEUE_MESSAGES),
            (zmq.MAXMSGSIZE, _SUBSCRIPTION_BYTES),
            (zmq.SNDBUF, _SEND_BUFFER_BYTES),
            (zmq.RCVBUF, _RECEIVE_BUFFER_BYTES),
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
        """The topics that viewers are subscribed to."""
        return self._subscriptions.topics

    @property
    def accepted_jpeg_quality(self) -> int | None:
        """The JPEG quality of the published images; None if they are scaled."""
        return self._settings.quality if self._settings.scale == 1.0 else None

    @property
    def viewers(self) -> int:
        """Number of connections with a subscription."""
        return self._authenticator.viewers

    @property
    def refused(self) -> Mapping[RefusalReason, int]:
        """Number of failed handshakes by reason."""
        return self._authenticator.refused

    def metrics(self) -> list[MetricSample]:
        """Return the numbers of viewers, compressed images and failed handshakes."""
        label, refused = ("sink", self.uri), self.refused
        viewers = MetricSample("viewers", self.viewers, VIEWERS, labels=(("kind", "zeromq"), label))
        encoded = MetricSample("jpeg_encodes", self.encoded, ENCODED, "counter", (label,))
        help_text = "Handshakes that failed, by reason."
        return [viewers, encoded] + [
            MetricSample("handshake_failures", refused.get(kind, 0), help_text, "counter", (label, ("reason", kind)))
            for kind in REFUSALS
        ]

    def needs_image(self, camera: str) -> bool:
        """Return whether a frame of this camera would be sent now, by the last known subscriptions."""
        return self._is_watched(camera) and (
            camera in self._pending or self._rate_limiter.is_due(camera, self._clock())
        )

    def prepare(self, overlay: Overlay) -> None:
        """Scale and compress the frame that is sent next, in the thread of its camera."""
        if self.needs_image(overlay.explanation.frame.camera) and not _is_plain(overlay):
            with suppress(WireError):  # ``put`` raises it again
                self._prepared.add(overlay, "sent", self._compressed(overlay))

    def put(self, overlay: Overlay) -> None:
        """Publish one frame if its camera has viewers and a frame is due; never waits for a viewer.

        Raises:
            SinkError: the address could not be bound again.
            WireError: the frame exceeds a limit of the wire format; the next frame is sent.
        """
        camera = overlay.explanation.frame.camera
        self._last[camera] = overlay
        self._handle_subscriptions()
        self._send_passages(overlay)
        if self._is_watched(camera) and (camera in self._pending or self._rate_limiter.is_due(camera, self._clock())):
            self._send_if_rendered(camera)
        self._serve_pending()

    def idle(self) -> None:
        """Serve viewers that joined since the last frame. Call it regularly while frames are rare.

        Raises:
            SinkError: the address could not be bound again.
        """
        self._handle_subscriptions()
        for camera in list(self._last):
            if self._is_unsent(camera) and self._rate_limiter.is_due(camera, self._clock()):
                self._send(camera)
        self._serve_pending()

    def forget_camera(self, camera: str) -> None:
        """Remove the last frame of a camera that left, so that new viewers do not get it."""
        for held in (self._last, self._packed, self._watched_since):
            held.pop(camera, None)
        self._pending.discard(camera)
        self._passages.forget(camera)

    def __exit__(self, *_: object) -> None:
        self._close(round(self._settings.linger_seconds * 1000))

    def _is_watched(self, camera: str) -> bool:
        return self._subscriptions.matches(topic_of(camera))

    def _is_unsent(self, camera: str) -> bool:
        """Return whether the newest frame is drawn and waits until the next frame is due."""
        sent = self._packed.get(camera)
        return sent is not None and sent[0] is not self._last[camera] and not _is_plain(self._last[camera])

    def _handle_subscriptions(self) -> None:
        """Read new and ended subscriptions; send new viewers the last frame of each subscribed camera."""
        if self._socket is None:
            raise SinkError(f"{self.uri}: is not open")
        self._disconnect_revoked(self._socket)
        before = {camera for camera in self._last if self._is_watched(camera)}
        for _ in range(_MAX_SUBSCRIPTIONS_PER_FRAME):
            if not self._socket.poll(0, zmq.POLLIN):
                break
            self._handle_event(self._socket.recv(copy=False))
        self._subscriptions.publish()
        for camera in self._last:
            if not self._is_watched(camera):
                self._watched_since.pop(camera, None)
                self._pending.discard(camera)
                self._packed.pop(camera, None)
            elif camera not in before or camera not in self._watched_since:
                self._watched_since[camera] = self._clock()

    def _handle_event(self, message: zmq.Frame) -> None:
        """Record one new or ended subscription; close a connection with too many subscriptions."""
        event = message.bytes
        if event[:1] == b"\x00":
            self._subscriptions.remove(event[1:])
        elif event[:1] == b"\x01":
            descriptor = _descriptor_of(message)
            if descriptor is not None:
                self._authenticator.connections.mark_as_viewer(descriptor)
            if self._subscriptions.add(event[1:], descriptor):
                self._pending.update(camera for camera in self._last if topic_of(camera).startswith(event[1:]))
            elif descriptor is not None:
                self._authenticator.end(descriptor)
                self._log_too_many(event[1:])

    def _log_too_many(self, topic: bytes) -> None:
        now = self._clock()
        if self._too_many_logged_at is None or now - self._too_many_logged_at > _LOG_SECONDS:
            self._too_many_logged_at = now
            log.warning(
                "%s: a viewer subscribes to too many names (at most %d), the last one %r; it is disconnected",
                self.uri,
                MAX_TOPICS_PER_CONNECTION,
                topic[:40],
            )

    def _disconnect_revoked(self, publisher: zmq.Socket[bytes]) -> None:
        """Disconnect all viewers after the key of a connected viewer was revoked; authorized viewers reconnect.

        libzmq cannot close the connection of one key, so the socket is unbound, closed and bound again.
        """
        if self._authenticator.has_revoked() and self._unbound_at is None:
            log.warning("%s: the key of a viewer was revoked; all viewers are disconnected, authorized ones reconnect",
                        self.uri)  # fmt: skip
            self._authenticator.closed = False
            self._unbound_at = self._clock()
            publisher.unbind(self.endpoint)
        if self._unbound_at is None:
            return
        is_late = self._clock() - self._unbound_at > _REBIND_SECONDS
        if not self._authenticator.closed and not is_late:
            return
        try:
            publisher.bind(self.endpoint)
        except zmq.ZMQError as error:
            if is_late:
                raise bind_error_message(self.endpoint, error) from None
            return
        self._unbound_at = None

    def _serve_pending(self) -> None:
        """Send the last message to viewers that have none; without a message, send the last frame when it is due."""
        for camera in sorted(self._pending):
            if camera in self._packed:
                self._resend(camera)
            elif camera in self._last:
                self._send_if_rendered(camera)

    def _send_if_rendered(self, camera: str) -> None:
        """Send the newest frame; a frame without a heat map is sent only after a wait."""
        waited = self._clock() - max(self._watched_since[camera], self._rate_limiter.due_at(camera))
        if waited > _PLAIN_SECONDS or not _is_plain(self._last[camera]):
            self._send(camera)

    def _send_passages(self, overlay: Overlay) -> None:
        """Publish each part and crossing once, if a viewer subscribes to a topic that begins with ``parts/``.

        They are not sent if viewers only subscribe to all topics, because these viewers may understand only frames.
        """
        explanation, times = overlay.explanation, (self._wall_clock(), self._clock())
        passages, topic = self._passages.take(explanation), topic_of(PREFIX + explanation.frame.camera)
        if self._socket is None or not self._subscriptions.matches(topic):
            return
        for passage in passages if any(each.startswith(_PARTS) for each in self.topics) else ():
            self._socket.send_multipart(encode_passage(passage, explanation, times, self._settings.quality))

    def _send(self, camera: str) -> None:
        overlay = self._last[camera]
        try:
            sent, jpeg = self._prepared.of(overlay, "sent") or self._compressed(overlay)
        except WireError:
            self._forget(camera)
            raise
        self._packed[camera] = (overlay, sent, jpeg)
        self.encoded += 1
        self._rate_limiter.record(camera, self._clock())
        self._resend(camera)

    def _forget(self, camera: str) -> None:
        """Discard a frame that cannot be sent; waiting viewers get the next frame."""
        self._last.pop(camera, None)
        self._packed.pop(camera, None)

    def _compressed(self, overlay: Overlay) -> tuple[Overlay, bytes]:
        """Return the overlay in the size in which it is sent, and its JPEG."""
        jpeg = reusable_jpeg(overlay, self.accepted_jpeg_quality)
        if jpeg is not None:
            return overlay, jpeg
        image = bounded_image(scale_image(overlay.image, self._settings.scale))
        return Overlay(image, overlay.explanation, overlay.signal_loss), encode_image(image, self._settings.quality)

    def _resend(self, camera: str) -> None:
        _, sent, jpeg = self._packed[camera]
        try:
            parts = encode(sent, sent_at_unix=self._wall_clock(), now_monotonic=self._clock(), jpeg=jpeg)
        except WireError:
            self._forget(camera)
            raise
        self._pending.discard(camera)
        if self._socket is not None:
            # XPUB drops messages for viewers whose queue is full; it never waits.
            self._socket.send_multipart(parts)

    def _close(self, linger_ms: int) -> None:
        self._authenticator.close()
        if self._socket is not None:
            self._socket.close(linger_ms)
        if self._context is not None:
            self._context.term()
        self._socket = self._context = None


def _is_plain(overlay: Overlay) -> bool:
    return overlay.jpeg is None and not overlay.is_drawn


def _descriptor_of(message: zmq.Frame) -> int | None:
    """Return the file descriptor of the connection that a message came from; None if it is not known."""
    try:
        return int(message.get(zmq.SRCFD))
    except (zmq.ZMQError, KeyError):
        return None


def _build_authenticator(settings: ZeroMqSettings, *, is_local: bool, clock: Callable[[], float]) -> CurveAuthenticator:
    """Return an authenticator; it has no keys if the address is local or ``insecure`` is set."""
    uri, curve = settings.uri, settings.curve
    if curve is not None:
        return CurveAuthenticator(
            uri, read_pair(Path(curve.secret_key_file)), AllowList(Path(curve.authorized_keys)), clock
        )
    if not is_local and not settings.insecure:
        raise SinkError(
            f"{uri}: every machine that reaches this address could view the stream; admit only keys (uv run run.py "
            "keys new keys, then --curve-keys keys), bind tcp://127.0.0.1:port, or set --insecure if the network "
            "itself is closed"
        )
    return CurveAuthenticator(uri, None, None, clock)
