"""Web sink: a page that shows every camera with its explanation, and endpoints for Prometheus and health checks.

One message has the image of a frame without drawings, and the heat map of the same frame as a small grid; the browser
draws the heat map over the image. Without viewers, no image is compressed.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self, get_args

import uvicorn

from overlays.encoding_pool import PreparedImages
from overlays.render.jpeg import bounded_image, encode_image, reusable_jpeg, scale_image
from overlays.sinks.events import EventsSink
from overlays.sinks.settings import WebSettings
from overlays.web.app import make_app
from overlays.web.auth import (
    AccessPolicy,
    PageAddress,
    check_host,
    check_networks,
    check_origin,
    check_prefix,
    parse_page_address,
)
from overlays.web.broadcast import VIDEO_KINDS, Broadcaster, Kind, WebFrame
from overlays.web.clip import PacketBuffer, RenderStyle
from overlays.web.events import ClipFinder, EventState
from overlays.web.fleet import FleetAccess, FleetState
from overlays.web.framing import pack, pack_video
from overlays.web.listener import listen
from overlays.web.server import PageProtocol, Server
from overlays.web.state import SMALL_PIXELS, WebState
from overlays.web.status import StatusBoard
from overlays.web.tokens import PageTokens
from overlays.web.video import MAX_SIDE_PIXELS, VideoEncoders, VideoUnit
from overlays.wire.endpoint import without_user
from overlays.wire.text import replace_undecodable
from pipeline.errors import FrameError, SinkError, WireError
from pipeline.frames import Image, Overlay, Pixels
from pipeline.ports import MetricSample, Sink
from pipeline.result import RunResult
from pipeline.settings import SinkContext
from pipeline.workers.thread import ThreadWorker

log = logging.getLogger(__name__)

_PING_SECONDS: Final = 5.0
_PONG_SECONDS: Final = 10.0
_MAX_MESSAGE_BYTES: Final = 1 << 16
"""Maximum size of a message from a client, which normally has little more than a camera's name."""
_KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
_VIDEO_OF: Final[dict[str, Kind]] = {kind.removesuffix("-video"): kind for kind in VIDEO_KINDS}


class WebSink(Sink):
    """Serves ``http://host:port``.

    ``__enter__``, ``put``, ``idle`` and ``__exit__`` are for one thread at a time; ``needs_image`` for any thread.
    """

    def __init__(
        self,
        settings: WebSettings | str,
        context: SinkContext | None = None,
        *,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Check the options; ``__enter__`` starts the server.

        Args:
            settings: the address, picture quality, host names and the proxy's prefix.
            context: the expected cameras, which the page shows before their first frames, the token and the colours.
            wall_clock: returns Unix seconds.
            clock: returns monotonic seconds.

        Raises:
            SinkError: the address or an option is invalid.
        """
        self._settings, self._context = WebSettings.of(settings), context or SinkContext()
        uri = self._settings.uri
        self._wall_clock, self._clock = wall_clock, clock
        try:
            self._address = parse_page_address(uri)
            self._tokens = PageTokens(uri, self._context.secrets)
            self._embed_origins = frozenset(check_origin(origin) for origin in self._settings.embed_origins)
            self._root_path = check_prefix(self._settings.root_path)
            self._proxies = check_networks(["127.0.0.1", "::1", *self._settings.trusted_proxies])
            self._hosts = frozenset(check_host(host).strip("[]") for host in self._settings.allowed_hosts)
        except ValueError as error:
            raise SinkError(f"{without_user(uri)}: {error}") from None
        self.uri = uri
        self.endpoint = uri
        """The address of the page, final after entering: port 0 is replaced by the real port."""
        self.encoded = 0
        """Number of images that were compressed as JPEG."""
        self.video_encoded = 0
        """Number of images that were encoded as H.264."""
        self._encoders = VideoEncoders(is_limited=self._settings.video == "auto", clock=clock)
        self._video_stopped = False
        self._units: PreparedImages[tuple[Image, VideoUnit]] = PreparedImages()
        self._broadcaster = Broadcaster()
        self._status_board = StatusBoard(self._context.cameras, clock)
        self._packets = PacketBuffer()
        self._last: dict[tuple[str, Kind], tuple[int, Overlay]] = {}
        """The newest frame and its number, by camera and kind."""
        self._packed: dict[tuple[str, Kind], WebFrame] = {}
        self._prepared: PreparedImages[tuple[Pixels, bytes]] = PreparedImages()
        self._logged: set[str] = set()
        self._events = EventState()
        self._fleet = FleetState()
        self._worker: ThreadWorker | None = None
        self._page: WebState | None = None

    def on_run_start(self, result: RunResult) -> None:
        """Store the state of the run, whose counters are shown on the page and in /metrics."""
        self._status_board.outcome = result
        events = (part for part in result.parts if isinstance(part, EventsSink))
        self._events.access = next(events, None)
        self._events.is_starting = False
        self._events.clips = [part for part in result.parts if isinstance(part, ClipFinder)]
        self._fleet.access = next((part for part in result.parts if isinstance(part, FleetAccess)), None)

    def __enter__(self) -> Self:
        address, settings = self._address, self._settings
        self._tokens.check(settings, address)
        listener = listen(self.uri, address)
        port = int(listener.getsockname()[1])
        self.endpoint = f"http://{f'[{address.host}]' if ':' in address.host else address.host}:{port}"
        access = AccessPolicy(
            PageAddress(address.host, port), allowed_hosts=self._hosts, embed_origins=self._embed_origins,
            root_path=self._root_path, **self._tokens.as_fields(),
        )  # fmt: skip
        self._page = WebState(
            access,
            self._broadcaster,
            self._status_board,
            self._packets,
            RenderStyle(self._context.colormap, self._context.opacity),
            painted=self._context.painted,
            queries=self._context.queries if settings.why else None,
            setup=self._context.setup if settings.edit else None,
            edits_in_clear=settings.insecure,
            video=settings.video,
            video_given_up=lambda: self._encoders.given_up,
            video_encoded=lambda: self.video_encoded,
            events=self._events,
            fleet=self._fleet,
            newest=self._newest,
            encoded=lambda: self.encoded,
            uri=self.uri,
            token_source=self._tokens.current,
        )
        self._worker = _server_thread(self._page, listener, self._proxies).__enter__()
        log.info("the page: %s", self.endpoint)
        return self

    def _newest(self, camera: str) -> Overlay | None:
        """Return the newest overlay of a camera, possibly a signal-loss overlay. For any thread."""
        last = self._last.get((camera, "painted"))
        return None if last is None else last[1]

    def metrics(self) -> list[MetricSample]:
        """Return the numbers of viewers, compressed images and refused requests."""
        return [] if self._page is None else self._page.metrics()

    @property
    def accepted_jpeg_quality(self) -> int | None:
        """The JPEG quality of the images."""
        return self._settings.quality

    def needs_image(self, camera: str) -> bool:
        """Return whether this camera's MJPEG stream has viewers; the page needs no drawn image."""
        return self._broadcaster.has_viewers(replace_undecodable(camera), "painted")

    def prepare(self, overlay: Overlay) -> None:
        """Compress a frame in each size that a viewer needs now, in the thread of its camera."""
        camera = replace_undecodable(overlay.explanation.frame.camera)
        for kind in _KINDS:
            if (kind == "painted" or overlay.signal_loss is None) and self._broadcaster.is_wanted(camera, -1, kind):
                if kind in VIDEO_KINDS and (unit := self._encoded(camera, overlay, kind)) is not None:
                    self._units.add(overlay, kind, unit)
                    continue
                with contextlib.suppress(WireError):  # ``put`` logs it
                    self._prepared.add(overlay, kind, self._compressed(overlay, kind))

    def put(self, overlay: Overlay) -> None:
        """Send one frame to the viewers that are ready for it; never waits for a viewer.

        Raises:
            SinkError: the server has ended.
        """
        if self._worker is None or self._worker.ended:
            if self._worker is None:
                raise SinkError(f"{self.uri}: is not open; use it in a with block")
            raise SinkError(f"{self.uri}: the page's server has ended ({self._worker.error})")
        self._status_board.update(overlay)
        camera = replace_undecodable(overlay.explanation.frame.camera)
        for kind in _KINDS:
            if kind == "painted" or overlay.signal_loss is None:
                number, _ = self._last.get((camera, kind), (0, overlay))
                self._last[camera, kind] = (number + 1, overlay)
        self.idle()

    def idle(self) -> None:
        """Send the last frame to viewers that were not ready for it, and to new viewers."""
        for (camera, kind), (number, overlay) in list(self._last.items()):
            if self._broadcaster.is_wanted(camera, number, kind):
                self._serve(camera, number, overlay, kind)
        if self._encoders.count:
            self._encoders.keep(lambda camera, size: self._broadcaster.has_viewers(camera, _VIDEO_OF[size]))
        if self._encoders.given_up and not self._video_stopped:
            self._video_stopped = True
            self._broadcaster.stop_video()

    def forget_camera(self, camera: str) -> None:
        """Remove a camera from the page."""
        self._status_board.forget(camera)
        name = replace_undecodable(camera)
        self._packets.forget(name)
        self._encoders.forget(name)
        for kind in _KINDS:
            self._last.pop((name, kind), None)
            self._packed.pop((name, kind), None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if self._page is not None:
            self._page.stopped.set()
        self._broadcaster.close()
        if self._worker is not None:
            self._worker.__exit__(kind, error, trace)
        self._last.clear()
        self._packed.clear()

    def _serve(self, camera: str, number: int, overlay: Overlay, kind: Kind) -> None:
        frame = self._packed.get((camera, kind))
        needs_key = frame is not None and not frame.is_key and self._broadcaster.key_reason(camera, kind)[0]
        if frame is None or frame.number != number or needs_key:
            try:
                frame = self._frame(camera, number, overlay, kind)
            except WireError as error:
                if camera not in self._logged:
                    self._logged.add(camera)
                    log.warning("%s: a frame cannot be shown and is left out: %s", self.uri, error)
                del self._last[camera, kind]
                return
            self._packed[camera, kind] = frame
            if kind == "painted" or frame.unit >= 0:
                self._buffer_for_clip(camera, overlay)
            else:
                self._packets.add(camera, overlay.explanation.frame.captured_at, frame.packed)
        self._broadcaster.publish(frame)

    def _frame(self, camera: str, number: int, overlay: Overlay, kind: Kind) -> WebFrame:
        """Return a frame for viewers of a kind; as JPEG if H.264 cannot encode its size. Raises ``WireError``."""
        if kind in VIDEO_KINDS:
            found = self._units.of(overlay, kind)
            is_new, _ = self._broadcaster.key_reason(camera, kind)
            if found is None or (is_new and not found[1].is_key):
                found = self._encoded(camera, overlay, kind)
            if found is not None:
                image, unit = found
                plain, times = Overlay(image, overlay.explanation), (self._wall_clock(), self._clock())
                packed = pack_video(plain, unit, sent_at_unix=times[0], now_monotonic=times[1])
                return WebFrame(camera, kind, number, packed, unit.number, unit.is_key)
        packed = self._other_size(camera, number, overlay, kind) or self._pack(overlay, kind)
        return WebFrame(camera, kind, number, packed)

    def _encoded(self, camera: str, overlay: Overlay, kind: Kind) -> tuple[Image, VideoUnit] | None:
        """Return the image of a frame and its H.264 unit; None if H.264 cannot encode its size."""
        image = self._plain_image(overlay, kind)
        if max(image.shape[:2]) > MAX_SIDE_PIXELS:
            return None
        is_new, is_lost = self._broadcaster.key_reason(camera, kind)
        size = kind.removesuffix("-video")
        try:
            unit = self._encoders.encode(camera, size, image, is_new=is_new, is_lost=is_lost)
        except FrameError as error:
            log.debug("%s: %s", self.uri, error)
            return None
        self.video_encoded += 1
        return image, unit

    def _buffer_for_clip(self, camera: str, overlay: Overlay) -> None:
        """Add a JPEG without drawings to the clip buffer if no viewer of the camera receives such a JPEG."""
        captured_at = overlay.explanation.frame.captured_at
        if overlay.signal_loss is None and self._packets.is_due(camera, captured_at):
            try:
                self._packets.add(camera, captured_at, self._pack(overlay, "plain"))
            except WireError as error:
                log.debug("%s: a frame cannot be buffered for a clip: %s", self.uri, error)

    def _other_size(self, camera: str, number: int, overlay: Overlay, kind: Kind) -> bytes | None:
        """Return a frame that is packed as the other of ``plain`` and ``small``, if both are equal for its size."""
        other = self._packed.get((camera, "plain" if kind == "small" else "small"))
        if kind not in {"plain", "small"} or max(overlay.explanation.frame.pixels.shape[:2]) > SMALL_PIXELS:
            return None
        return other.packed if other is not None and other.number == number else None

    def _pack(self, overlay: Overlay, kind: Kind) -> bytes:
        self.encoded += 1
        image, jpeg = self._prepared.of(overlay, kind) or self._compressed(overlay, kind)
        if kind == "painted":
            return jpeg
        plain = Overlay(image, overlay.explanation)
        return pack(plain, jpeg, sent_at_unix=self._wall_clock(), now_monotonic=self._clock())

    def _compressed(self, overlay: Overlay, kind: Kind) -> tuple[Pixels, bytes]:
        """Return the image of a frame for viewers of a kind, and its JPEG."""
        quality = self._settings.quality
        if kind == "painted":
            jpeg = reusable_jpeg(overlay, quality)
            return overlay.pixels, encode_image(bounded_image(overlay.image), quality) if jpeg is None else jpeg
        image = self._plain_image(overlay, kind)
        return image, encode_image(image, quality)

    @staticmethod
    def _plain_image(overlay: Overlay, kind: Kind) -> Image:
        """Return the image of a frame without heat map, in the size for viewers of a kind."""
        image = bounded_image(overlay.explanation.frame.image)
        if kind.startswith("small"):
            image = scale_image(image, min(1.0, SMALL_PIXELS / max(image.shape[:2])))
        return image


def _server_thread(page: WebState, listener: socket.socket, proxies: list[str]) -> ThreadWorker:
    """Return the thread of the server; it ends within a second after it is stopped."""

    async def read_token() -> None:
        page.read_token()

    config = uvicorn.Config(
        make_app(page),
        loop="asyncio",
        http=PageProtocol,
        ws="websockets-sansio",
        ws_max_size=_MAX_MESSAGE_BYTES,
        ws_ping_interval=_PING_SECONDS,
        ws_ping_timeout=_PONG_SECONDS,
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=True,
        forwarded_allow_ips=proxies,
        timeout_graceful_shutdown=1,
        callback_notify=read_token,
        timeout_notify=1,
    )
    server = Server(config)

    def stop() -> None:
        server.should_exit = True

    def serve() -> None:
        with listener:
            server.run(sockets=[listener])

    return ThreadWorker("page", serve, stop)
