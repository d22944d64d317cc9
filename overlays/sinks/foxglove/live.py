"""Foxglove sink: ``foxglove://127.0.0.1:8765``, a WebSocket server to which Foxglove connects during the run.

It has the same topics and messages as the MCAP file. A message is encoded only while a viewer subscribes to its topic.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

import foxglove
from foxglove.websocket import WebSocketServer

from overlays.encoding_pool import PreparedImages
from overlays.sinks.foxglove.messages import TOPICS, frame_jpeg, sample_of
from overlays.sinks.settings import FoxgloveSettings
from overlays.wire.endpoint import Endpoint, parse_address, without_user
from pipeline.errors import SinkError, WireError
from pipeline.frames import Overlay
from pipeline.ports import Sink
from pipeline.settings import SinkContext
from pipeline.workers.thread import ThreadWorker

log = logging.getLogger(__name__)
logging.getLogger("foxglove").setLevel(logging.WARNING)  # it logs each step of its start and end
logging.getLogger("foxglove.websocket.connected_client.poller").addFilter(
    lambda record: not record.getMessage().startswith("Error sending")  # each waiting message of a lost viewer
)

_SCHEME: Final = "foxglove://"
_BACKLOG: Final = 32
"""Maximum number of messages that wait for a slow viewer; the oldest are dropped."""
_CLOSE_SECONDS: Final = 1.0
"""Time that viewers have to close their connection at the end; the SDK itself would wait without a limit."""
_OPEN_FILES: Final = Path("/dev/fd")


class FoxgloveSink(Sink):
    """Serves the topics of every camera. Viewers get the frames that are sent after they subscribe.

    The protocol has no authentication, so the server listens only on loopback addresses.
    """

    def __init__(
        self,
        settings: FoxgloveSettings | str,
        context: SinkContext | None = None,
        *,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set the options; ``__enter__`` starts the server.

        Args:
            settings: the address, and the quality of the images.
            context: the expected cameras, if known; their topics are advertised before the first frame.
            wall_clock: returns Unix seconds.
            clock: returns monotonic seconds; with ``wall_clock`` it converts ``captured_at`` to Unix time.

        Raises:
            SinkError: the address is malformed, or other machines can reach it.
        """
        self._settings = FoxgloveSettings.of(settings)
        self.uri = without_user(self._settings.uri)
        self.endpoint = self.uri
        """The address for viewers, ``ws://HOST:PORT``; valid after ``__enter__``."""
        self._address = _local_address(self.uri)
        self._cameras = (context or SinkContext()).cameras
        self._wall_clock, self._clock = wall_clock, clock
        self._context = foxglove.Context()
        self._server: WebSocketServer | None = None
        self._channels: dict[str, list[foxglove.Channel]] = {}
        """The channels of each camera, in the order of ``TOPICS``."""
        self._jpegs = PreparedImages[bytes]()

    def __enter__(self) -> Self:
        address = self._address
        try:
            self._server = foxglove.start_server(
                name="recipro-stream",
                host=address.host,
                port=address.port,
                context=self._context,
                message_backlog_size=_BACKLOG,
            )
        except (RuntimeError, OSError) as error:
            raise SinkError(
                f"{self.uri}: cannot be served ({error}); if the port is in use, choose another port, or stop the "
                "program that uses it (ss -ltnp shows which)"
            ) from None
        host = f"[{address.host}]" if address.is_ipv6 else address.host
        self.endpoint = f"ws://{host}:{self._server.port}"
        log.info("Foxglove: open a connection to %s", self.endpoint)
        for camera in self._cameras:
            self._advertise(camera)
        return self

    def prepare(self, overlay: Overlay) -> None:
        """Compress the frame without drawings if its topic has a viewer, in the thread of the frame's camera."""
        channels = self._channels.get(overlay.explanation.frame.camera)
        if channels is not None and channels[0].has_sinks():
            with suppress(WireError):  # ``put`` raises it again
                self._jpegs.add(overlay, "frame", frame_jpeg(overlay.explanation, self._settings.quality))

    def put(self, overlay: Overlay) -> None:
        """Send one frame to the viewers of its topics; never waits for a viewer.

        Raises:
            WireError: the frame cannot be encoded as JPEG, or its explanation as JSON; the sink continues.
        """
        if overlay.signal_loss is not None:
            return
        channels = self._advertise(overlay.explanation.frame.camera)
        watched = [pair for pair in zip(TOPICS, channels, strict=True) if pair[1].has_sinks()]
        if not watched:
            return
        quality = self._settings.quality
        jpeg = self._jpegs.of(overlay, "frame")
        sample = sample_of(overlay, self._wall_clock(), self._clock(), jpeg=jpeg, quality=quality)
        for topic, channel in watched:
            for message in topic.messages(sample):
                channel.log(message, log_time=sample.captured_ns)

    def forget_camera(self, camera: str) -> None:
        """Remove the topics of a camera that left."""
        for channel in self._channels.pop(camera, ()):
            channel.close()

    def _advertise(self, camera: str) -> list[foxglove.Channel]:
        """Return the channels of a camera; the first call creates them."""
        if camera not in self._channels:
            self._channels[camera] = [
                foxglove.Channel(
                    topic.name(camera),
                    schema=foxglove.Schema(name=topic.schema_name, encoding=topic.schema_encoding, data=topic.schema()),
                    message_encoding=topic.encoding,
                    context=self._context,
                )
                for topic in TOPICS
            ]
        return self._channels[camera]

    def __exit__(self, *_: object) -> None:
        for channels in self._channels.values():
            for channel in channels:
                channel.close()
        self._channels.clear()
        if self._server is not None:
            server, self._server = self._server, None
            _stop(server, self.uri)


def _stop(server: WebSocketServer, uri: str) -> None:
    """Stop the server; shut down the connections of viewers that do not answer in time."""
    port, ended = server.port, threading.Event()

    def stop() -> None:
        try:
            server.stop()
        finally:
            ended.set()

    def cut() -> None:
        if not ended.wait(_CLOSE_SECONDS):
            log.warning("%s: a viewer does not answer; its connection is closed", uri)
            _shut_connections(port)

    with ThreadWorker(f"end of {uri}", stop, cut):
        pass


def _shut_connections(port: int) -> None:
    """Shut down the connections that this process has accepted on a port; the SDK has no function for it."""
    with suppress(OSError):  # Windows has no such folder
        for path in _OPEN_FILES.iterdir():
            with suppress(OSError):  # closed meanwhile, or no socket
                _shut_if_accepted(os.dup(int(path.name)), port)


def _shut_if_accepted(file: int, port: int) -> None:
    """Shut down the socket with descriptor ``file`` if it is a connection on a port; close the descriptor."""
    try:
        link = socket.socket(fileno=file)
    except OSError:
        os.close(file)
        raise
    with link:
        if link.family in {socket.AF_INET, socket.AF_INET6} and link.getsockname()[1] == port:
            link.shutdown(socket.SHUT_RDWR)


def _local_address(uri: str) -> Endpoint:
    """Return the address of a URI. Raises ``SinkError``."""
    try:
        address = parse_address(f"tcp://{uri[len(_SCHEME) :]}")
    except ValueError:
        raise SinkError(
            f"{uri}: write the address as foxglove://HOST:PORT, such as foxglove://127.0.0.1:8765"
        ) from None
    if not address.is_local:
        raise SinkError(
            f"{uri}: Foxglove's protocol has no token, so only this machine may reach it; serve at "
            f"foxglove://127.0.0.1:{address.port} and reach it through SSH: ssh -L {address.port}:127.0.0.1:"
            f"{address.port} HOST"
        )
    return address
