"""Detects what an HTTP address serves, from its response, and opens it."""

from __future__ import annotations

import hashlib
import io
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final, Literal

import av
import av.error
from av.container import InputContainer

from stream.attempt import Attempt
from stream.decode import VideoPacket
from stream.failures import Failure, FailureError, StreamEndedError
from stream.hls import HlsFollower, HlsPart
from stream.http_client import Response, WebClient
from stream.hwaccel import DecoderSelector, Readable
from stream.live import demuxed
from stream.mjpeg import MAX_IMAGE_BYTES, MotionJpeg
from stream.playlist import MAX_PLAYLIST_BYTES, Segment

Kind = Literal["motion jpeg", "still", "hls", "dash", "stream", "recording"]

_HEAD_BYTES: Final = 16
_MAX_HEAD_BYTES: Final = 1 << 16
# Formats that contain further addresses are not allowed: no playlists, no SDP, no file lists.
CONTAINERS: Final = (
    "mpegts,mpeg,mov,mp4,matroska,webm,flv,avi,ogg,asf,gif,apng,h264,hevc,mjpeg,mpjpeg,jpeg_pipe,nut,mxf,ivf,obu,m4v,"
    "rawvideo,yuv4mpegpipe,dv,mpegvideo"
)
_STILLS: Final = "jpeg_pipe,png_pipe,webp_pipe,bmp_pipe,gif,image2"
CONTAINER_OPTIONS: Final = {"analyzeduration": "1000000", "format_whitelist": CONTAINERS}
_IMAGE_SIGNATURES: Final = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"BM", b"RIFF")
_TEXT_TYPES: Final = frozenset({"text/html", "application/xhtml+xml", "application/json"})
_TEXT_MESSAGE: Final = (
    "the server answers with a web page or JSON, not with images: possibly a login page or an error; check the "
    "address, user and password"
)
_MAX_LATE_SECONDS: Final = 1.0  # a frame that is later than this is shown at once, and resets the schedule


@dataclass(frozen=True, slots=True)
class WebOptions:
    """Options for reading an HTTP address."""

    live: bool | None = None
    """True if the address is live; None: detected from the server's answer."""
    allowed_hosts: tuple[str, ...] = ()
    """Other hosts (``HOST`` or ``HOST:PORT``) that the camera may refer to."""
    still_rate: float = 1.0
    """Requests per second to an address that serves a still image."""


class RecordingFoundError(Exception):
    """The address serves a recording, which must be read as a file."""


class WebStream:
    """Opens and reads one HTTP address, one connection at a time. Not thread-safe."""

    def __init__(
        self, client: WebClient, camera: Callable[[], str], options: WebOptions, decoder: DecoderSelector
    ) -> None:
        self._client = client
        self._options = options
        self._decoder = decoder
        self._hls = HlsFollower(client, camera, live=options.live)
        self._following: Segment | None = None  # first segment of the next part of an HLS stream
        self._is_between_parts = False
        self._attempt = Attempt(1.0, 1.0)
        self._body: _Body | None = None
        self._packets: Callable[[InputContainer, threading.Event], Iterator[VideoPacket]] = demuxed

    def open(self, attempt: Attempt) -> AbstractContextManager[InputContainer]:
        """Open the address; raises ``RecordingFoundError`` for a recording."""
        self._attempt = attempt
        return self._opened(attempt)

    def packets(self, container: InputContainer, stop: threading.Event) -> Iterator[VideoPacket]:
        """Yield the packets of the stream that was opened last; raise its error."""
        yield from self._packets(container, stop)
        if self._body is not None:
            self._body.check()
        if self._attempt.at_end == "ended":
            self._hls.check_whole()

    @contextmanager
    def _opened(self, attempt: Attempt) -> Iterator[InputContainer]:
        with ExitStack() as stack:
            if self._is_between_parts:
                yield stack.enter_context(self._part(attempt, self._following))
                return
            response = stack.enter_context(self._client.get(self._client.address, attempt))
            attempt.waits_for = "frame"
            attempt.set_timeout(max(attempt.answer_seconds, 5 * attempt.read_seconds))  # until the container is open
            kind = kind_of(response, live=self._options.live)
            if kind == "recording":
                raise RecordingFoundError
            self._body = None
            attempt.live = self._options.live is not False
            self._packets = demuxed
            if kind == "hls":
                text = response.whole(MAX_PLAYLIST_BYTES).decode("utf-8", "replace").removeprefix("\ufeff")
                self._hls.submit(text, response.url, attempt)
                yield stack.enter_context(self._part(attempt, None))
            elif kind == "still":
                self._packets = self._stills
                attempt.at_end = None if attempt.live else "ended"
                yield stack.enter_context(_still(response.whole(MAX_IMAGE_BYTES)))
            else:
                yield stack.enter_context(self._container(kind, response, attempt))

    def _container(self, kind: Kind, response: Response, attempt: Attempt) -> InputContainer:
        if kind == "dash":
            message = (
                "the address serves a DASH presentation, which is not supported; use the camera's HLS, MJPEG or "
                "rtsp:// address"
            )
            raise FailureError(Failure(message, "never", "codec", hint=""))
        if self._options.live is False:
            attempt.at_end = "ended"
        if kind == "motion jpeg":
            # The first frame contains all parameters, so FFmpeg need not probe further frames.
            options = {"analyzeduration": "0", "fpsprobesize": "0"}
            self._packets = _by_arrival
            return self._demuxer(MotionJpeg(response.read), options=options, form="mpjpeg")
        container = self._demuxer(response)
        if self._options.live is None and container.duration and not self._is_fragmented:
            attempt.live = False  # a stream that declares a duration is no camera
        elif self._options.live is not False:
            attempt.at_end = "lost"
        return container

    @property
    def _is_fragmented(self) -> bool:
        return self._body is not None and self._body.is_fragmented

    def _demuxer(
        self, source: Readable, *, options: dict[str, str] = CONTAINER_OPTIONS, form: str | None = None
    ) -> InputContainer:
        self._body = _Body(source)
        try:
            return self._decoder.open(self._body, options=options, form=form)
        except av.error.FFmpegError:
            self._body.check()
            raise

    @contextmanager
    def _part(self, attempt: Attempt, first: Segment | None) -> Iterator[InputContainer]:
        """Open the HLS segments up to the next discontinuity as one container."""
        self._is_between_parts = False
        attempt.live, attempt.resumes = self._hls.is_live, True
        attempt.read_seconds = max(attempt.read_seconds, self._hls.stall_seconds)
        attempt.record_data()
        part = HlsPart(self._hls, first, attempt)
        self._packets = self._paced if attempt.live else demuxed
        try:
            while not part.submit():
                if attempt.at_end != "next" or attempt.stop.is_set():
                    self._hls.check_whole()
                    raise StreamEndedError
            with self._demuxer(part) as container:
                yield container
        finally:
            part.close()
            self._following = part.following
            self._is_between_parts = attempt.at_end == "next"

    def _paced(self, container: InputContainer, stop: threading.Event) -> Iterator[VideoPacket]:
        """Yield packets at the pace of their timestamps, because a segment arrives at once."""
        started_at: float | None = None
        for packet in demuxed(container, stop):
            if packet.size and packet.dts is not None and packet.time_base is not None:
                due, now = float(packet.dts * packet.time_base), time.monotonic()
                if started_at is None or not -_MAX_LATE_SECONDS < started_at + due - now < self._attempt.read_seconds:
                    started_at = now - due
                if started_at + due > now:
                    stop.wait(started_at + due - now)
            if stop.is_set():
                return
            yield packet

    def _stills(self, container: InputContainer, stop: threading.Event) -> Iterator[VideoPacket]:
        """Request the still image repeatedly; yield each image that differs from the last."""
        attempt, interval = self._attempt, 1.0 / self._options.still_rate
        started_at = due = time.monotonic()
        yield from _at(demuxed(container, stop), 0.0)
        known: dict[str, str] = {}
        last = b""
        while attempt.live and not stop.is_set():
            due = max(due + interval, time.monotonic() - interval)
            stop.wait(max(0.0, due - time.monotonic()))
            if stop.is_set():
                return
            attempt.set_timeout(max(attempt.answer_seconds, attempt.read_seconds))
            with self._client.get(self._client.address, attempt, headers=known) as response:
                content = b"" if response.status == 304 else response.whole(MAX_IMAGE_BYTES)
                if response.status != 304:
                    known = _validators(response)
            attempt.record_data()
            digest = hashlib.blake2b(content).digest()
            if content and digest != last:
                last = digest
                with _still(content) as image:
                    yield from _at(demuxed(image, stop), time.monotonic() - started_at)


def kind_of(response: Response, *, live: bool | None) -> Kind:
    """Return what a response contains; ``live`` overrides the detection."""
    head, media_type = response.peek(_HEAD_BYTES), response.kind
    if head.removeprefix(b"\xef\xbb\xbf").startswith(b"#EXTM3U"):
        return "hls"
    if media_type == "application/dash+xml" or (re.match(rb"\s*<(\?xml|MPD)", head) and "mpd" in response.url.lower()):
        return "dash"
    begin = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if begin.startswith((b"<!doctype html", b"<html")) or (
        media_type in _TEXT_TYPES and begin.startswith((b"<", b"{", b"["))
    ):
        raise FailureError(Failure(_TEXT_MESSAGE, "slow", "corrupt", hint=""))
    has_end = response.length is not None
    is_file = has_end and live is None and not media_type.startswith("multipart/")  # multipart is used by cameras
    has_parts = head.startswith((b"--", b"Content-Type: image/jpeg"[:_HEAD_BYTES]))
    if media_type.startswith("multipart/") or (has_parts and not is_file):
        return "motion jpeg"
    is_jpeg = head.startswith(_IMAGE_SIGNATURES[0])
    is_video = is_jpeg and is_file and media_type.startswith("video/")  # a file of several JPEG images
    is_image = (head.startswith(_IMAGE_SIGNATURES[:2]) and not is_video) or (
        media_type.startswith("image/") and media_type != "image/gif"
    )
    if is_image and (has_end or media_type.startswith("image/")):
        return "still"
    if is_jpeg and not is_video:
        return "motion jpeg"
    return "recording" if (live is None and has_end) or live is False else "stream"


class _Body:
    """A response body for FFmpeg; stores its first bytes and its error.

    After an error FFmpeg may read again; PyAV prints an error that occurs before the previous one was raised.
    """

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._head = bytearray()
        self._error: BaseException | None = None

    def read(self, size: int) -> bytes:
        if self._error is not None:
            return b""
        try:
            part = self._source.read(size)
        except BaseException as error:
            self._error = error
            raise
        if len(self._head) < _MAX_HEAD_BYTES:
            self._head += part
        return part

    def check(self) -> None:
        """Raise the error of the last read, if any."""
        if self._error is not None:
            raise self._error

    @property
    def is_fragmented(self) -> bool:
        """True for fragmented MP4, whose duration is unknown."""
        return b"mvex" in self._head or b"moof" in self._head


def _by_arrival(container: InputContainer, stop: threading.Event) -> Iterator[VideoPacket]:
    """Yield packets with arrival times as timestamps, because FFmpeg assumes 25 frames/s."""
    started_at = time.monotonic()
    for packet in demuxed(container, stop):
        yield from _at(iter([packet]), time.monotonic() - started_at)


def _still(content: bytes) -> InputContainer:
    container = av.open(io.BytesIO(content), "r", options={"format_whitelist": _STILLS})
    for stream in container.streams.video:
        stream.thread_type = "SLICE"  # frame threads would delay the image
    return container


def _at(packets: Iterator[VideoPacket], seconds: float) -> Iterator[VideoPacket]:
    """Yield the packets of a still image with the presentation time ``seconds``."""
    for packet in packets:
        if packet.size and packet.time_base is not None:
            packet.pts = packet.dts = int(seconds / packet.time_base)
            yield packet


def _validators(response: Response) -> dict[str, str]:
    """Return the headers of a conditional request for the same image."""
    headers = {
        "If-None-Match": response.headers.get("ETag"),
        "If-Modified-Since": response.headers.get("Last-Modified"),
    }
    return {key: value for key, value in headers.items() if value and value.isprintable()}
