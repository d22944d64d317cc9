"""Push sink: the drawn images of each camera as a live H.264 stream at an RTSP or RTMP server.

MediaMTX, go2rtc, Frigate, OBS and others accept the stream, and convert it to WebRTC, HLS or SRT. Each camera has its
own thread and connection. Only the newest frame is sent: frames that a slow or lost server does not accept are dropped
and counted.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from overlays.sinks.login import read_login
from overlays.sinks.push.address import CAMERA, ServerAddress, parse_server
from overlays.sinks.push.connection import Publisher
from overlays.sinks.push.rtmp import RtmpPublisher
from overlays.sinks.push.rtsp import Login, RtspPublisher
from overlays.sinks.push.stream import CameraStream, Numbered
from overlays.sinks.rate_limit import RateLimiter
from overlays.sinks.settings import PushSettings, RtmpPushSettings, RtspPushSettings
from overlays.wire.endpoint import without_user
from pipeline.errors import FrameError, SinkError
from pipeline.frames import Overlay
from pipeline.ports import MetricSample, Sink
from pipeline.settings import SinkContext
from pipeline.workers.queue import QueueWorker

log = logging.getLogger(__name__)

_QUEUED_FRAMES: Final = 4
"""Maximum number of frames of a camera that wait for the encoder; the oldest are dropped."""
_END_SECONDS: Final = 1.0
"""Time to send the waiting frames at the end of the run."""
_WAIT_SECONDS: Final = 0.01


class _Camera:
    """The stream of a camera and its thread."""

    def __init__(self, stream: CameraStream) -> None:
        self.stream = stream
        self._worker: QueueWorker[Numbered] = QueueWorker(
            stream.url,
            stream.handle,
            depth=_QUEUED_FRAMES,
            idle=stream.idle,
            skips=lambda error: isinstance(error, FrameError),
        )
        self._worker.__enter__()

    @property
    def error(self) -> BaseException | None:
        """The error that ended the thread."""
        return self._worker.error

    @property
    def lost(self) -> int:
        """Number of images that were not sent."""
        return self.stream.counts.lost + self._worker.dropped + self._worker.refused

    def put(self, overlay: Overlay) -> None:
        """Queue an image; never waits."""
        number = self.stream.newest + 1
        self.stream.newest = number
        self._worker.put(Numbered(overlay, number))

    def close(self) -> None:
        """End the thread, then the stream."""
        self._worker.__exit__(None, None, None)
        self.stream.close()


class PushSink(Sink):
    """Publishes to ``rtsp://HOST/PATH`` or ``rtmp://HOST/APP/KEY``; ``{camera}`` is replaced by the camera's name.

    ``put``, ``forget_camera`` and ``__exit__`` are for one thread at a time; ``problem``, ``account`` and ``metrics``
    for any thread.
    """

    def __init__(
        self,
        settings: PushSettings | str,
        context: SinkContext | None = None,
        *,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Check the options; the first frame of a camera opens its connection.

        Args:
            settings: the address and the options.
            context: the expected cameras, the credentials and the stream key.
            wall_clock: returns Unix seconds.
            clock: returns monotonic seconds.

        Raises:
            ConfigError: the credentials file is not one line, user:password.
            SinkError: the address is invalid or contains a password, the CA file cannot be read, or several cameras
                would have the same path.
        """
        is_rtmp = (settings if isinstance(settings, str) else settings.uri).lower().startswith("rtmp")
        self._settings = RtmpPushSettings.of(settings) if is_rtmp else RtspPushSettings.of(settings)  # type: ignore[arg-type]
        context = context or SinkContext()
        uri, key = self._settings.uri, context.secrets.get("key_file")
        try:
            self._address = parse_server(uri, "" if key is None else key.text.strip())
        except ValueError as error:
            raise SinkError(f"{without_user(uri).partition('://')[0]}://…: {error}") from None
        self.uri = self._address.shown(self._address.path)
        self._context = _tls_context(self._address, self._settings.ca_file)
        if len(context.cameras) > 1 and not self._address.is_for_every_camera:
            raise SinkError(
                f"{self.uri}: {len(context.cameras)} cameras would share this path; put {CAMERA} into it, which stands "
                "for the camera's name"
            )
        login = read_login(context.secrets.get("credentials_file"))
        self._login = None if login is None else Login(*login)
        self._wall_clock, self._clock = wall_clock, clock
        self._rate_limiter = RateLimiter(self._settings.max_rate)
        self._cameras: dict[str, _Camera] = {}
        self._paths: dict[str, str] = {}
        for camera in context.cameras:
            self._path(camera)
        self._refused: set[str] = set()
        """Cameras without a path."""
        self._ended = [0, 0]
        """Numbers of sent and lost images of cameras that left."""
        self._pause = threading.Event()

    def needs_image(self, camera: str) -> bool:
        """Return whether this camera has a path."""
        return camera not in self._refused

    def put(self, overlay: Overlay) -> None:
        """Queue an image for its camera's thread; never waits for the server.

        Raises:
            SinkError: the camera's thread has ended with an unexpected exception.
        """
        frame, now = overlay.explanation.frame, self._clock()
        if overlay.signal_loss is None:
            if not self._rate_limiter.is_due(frame.camera, now):
                return
            self._rate_limiter.record(frame.camera, now)
        camera = self._camera(frame.camera)
        if camera is None:
            return
        if camera.error is not None:
            raise SinkError(f"{camera.stream.url}: the stream has ended ({camera.error}); start the run again")
        camera.put(overlay)

    def forget_camera(self, camera: str) -> None:
        """End the stream of a camera that left; another camera may use its path."""
        left = self._cameras.pop(camera, None)
        if left is not None:
            self._close([left])
        self._paths.pop(camera, None)
        self._refused.discard(camera)

    def on_run_end(self) -> None:
        """Send the waiting frames, for at most a second, and end all streams."""
        self._close(list(self._cameras.values()))
        self._cameras.clear()

    def __exit__(self, *_: object) -> None:
        self.on_run_end()

    @property
    def problem(self) -> str:
        """Reasons why streams do not reach the server; empty while all do."""
        cameras = [(name, camera.stream) for name, camera in tuple(self._cameras.items())]
        reasons = {f"{name}: {stream.reason}" for name, stream in cameras if not stream.is_open}
        return "; ".join(sorted(reasons))

    @property
    def account(self) -> str:
        """One-line summary of sent and lost images."""
        cameras = tuple(self._cameras.values())
        sent = self._ended[0] + sum(camera.stream.counts.sent for camera in cameras)
        lost = self._ended[1] + sum(camera.lost for camera in cameras)
        return f"{sent} images sent, {lost} lost"

    def metrics(self) -> list[MetricSample]:
        """Return the state and the counts of each stream."""
        samples = []
        for name, camera in tuple(self._cameras.items()):
            labels, counts = (("sink", self.uri), ("camera", name)), camera.stream.counts
            samples += [
                MetricSample(
                    "push_open", float(camera.stream.is_open), "1 while a server takes a stream.", labels=labels
                ),
                MetricSample("push_sent", counts.sent, "Images sent to a media server.", "counter", labels),
                MetricSample("push_lost", camera.lost, "Images that reached no media server.", "counter", labels),
                MetricSample("push_bytes", counts.sent_bytes, "Bytes of images sent.", "counter", labels),
                MetricSample("push_connections", counts.connections, "Connections to a server.", "counter", labels),
            ]
        return samples

    def _camera(self, name: str) -> _Camera | None:
        """Return the stream of a camera, which its first frame creates; None if the camera has no path."""
        if name not in self._cameras:
            path = self._path(name)
            if path is None:
                return None
            seconds = self._settings.timeout_seconds
            make = partial(_publisher, self._address, path, self._login, seconds, self._context)
            url = self._address.shown(path)
            self._cameras[name] = _Camera(
                CameraStream(url, self._settings, make, wall_clock=self._wall_clock, clock=self._clock)
            )
        return self._cameras[name]

    def _path(self, camera: str) -> str | None:
        """Return the path of a camera; None if another camera has the path."""
        if camera not in self._paths:
            if self._paths and not self._address.is_for_every_camera:
                if camera not in self._refused:
                    self._refused.add(camera)
                    log.error(
                        "%s: %s is not published, because another camera uses the path; put %s into the path",
                        self.uri,
                        camera,
                        CAMERA,
                    )
                return None
            self._paths[camera] = self._address.path_of(camera, self._paths.values())
        return self._paths[camera]

    def _close(self, cameras: list[_Camera]) -> None:
        for camera in cameras:
            camera.stream.end()
        deadline = time.monotonic() + _END_SECONDS
        while time.monotonic() < deadline and not all(camera.stream.is_idle or camera.error for camera in cameras):
            self._pause.wait(_WAIT_SECONDS)
        for camera in cameras:
            if not camera.stream.is_idle:
                camera.stream.abort()
        for camera in cameras:
            camera.close()
            self._ended[0] += camera.stream.counts.sent
            self._ended[1] += camera.lost


def _tls_context(address: ServerAddress, ca_file: str | None) -> ssl.SSLContext | None:
    """Return what verifies the server's certificate; None without TLS. Raises ``SinkError``."""
    uri = address.shown(address.path)
    if not address.uses_tls:
        if ca_file is not None:
            raise SinkError(f"{uri}: ca_file {ca_file}: is for TLS; write {address.scheme}s:// and the port for TLS")
        return None
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise SinkError(
            f"{uri}: ca_file {ca_file}: cannot be read ({error}); it should hold the certificate of the server's "
            "authority, as PEM"
        ) from None


def _publisher(
    address: ServerAddress, path: str, login: Login | None, seconds: float, context: ssl.SSLContext | None
) -> Publisher:
    """Return a publisher for a new connection."""
    if address.is_rtmp:
        return RtmpPublisher(address, path, seconds, context)
    return RtspPublisher(address, path, login, seconds, context)
