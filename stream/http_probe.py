"""What stands behind a web address, found by asking: motion JPEG, stills, HLS, a live container, or a recording."""

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
_KEPT_BYTES: Final = 1 << 16
# Nothing that names further addresses: no playlists, no SDP, no lists of files.
CONTAINERS: Final = (
    "mpegts,mpeg,mov,mp4,matroska,webm,flv,avi,ogg,asf,gif,apng,h264,hevc,mjpeg,mpjpeg,jpeg_pipe,nut,mxf,ivf,obu,m4v,"
    "rawvideo,yuv4mpegpipe,dv,mpegvideo"
)
_STILLS: Final = "jpeg_pipe,png_pipe,webp_pipe,bmp_pipe,gif,image2"
CONTAINER_OPTIONS: Final = {"analyzeduration": "1000000", "format_whitelist": CONTAINERS}
_IMAGE_MARKS: Final = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"BM", b"RIFF")
_TEXT_TYPES: Final = frozenset({"text/html", "application/xhtml+xml", "application/json"})
_TEXT_WORDS: Final = (
    "it answers with a web page or JSON, not with pictures: perhaps a page to sign in or an error; check the address, "
    "user and password"
)
_LATE_SECONDS: Final = 1.0  # a picture that is later than this is shown, and the others by its time


@dataclass(frozen=True, slots=True)
class WebOptions:
    """How a web address is read."""

    live: bool | None = None
    """Whether it is live; None: found by asking."""
    allowed_hosts: tuple[str, ...] = ()
    """Hosts (``HOST`` or ``HOST:PORT``) that the camera may send its readers to, beside its own."""
    still_rate: float = 1.0
    """Pictures a second asked of an address that gives one still."""


class RecordingFoundError(Exception):
    """The address holds a recording: it is read like a file."""


class WebLine:
    """Opens and reads one web address; one connection at a time, in one thread."""

    def __init__(
        self, client: WebClient, camera: Callable[[], str], options: WebOptions, decoder: DecoderSelector
    ) -> None:
        self._client = client
        self._options = options
        self._decoder = decoder
        self._hls = HlsFollower(client, camera, live=options.live)
        self._following: Segment | None = None  # what the next part of an HLS stream begins with
        self._is_between_parts = False
        self._attempt = Attempt(1.0, 1.0)
        self._body: _Body | None = None
        self._packets: Callable[[InputContainer, threading.Event], Iterator[VideoPacket]] = demuxed

    def open(self, attempt: Attempt) -> AbstractContextManager[InputContainer]:
        """Open what is there; ``RecordingFoundError`` says that it is to be read like a file."""
        self._attempt = attempt
        return self._opened(attempt)

    def packets(self, container: InputContainer, stop: threading.Event) -> Iterator[VideoPacket]:
        """Give the packets of what was opened last. Raises what reading it raises."""
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
            attempt.waits_for = "picture"
            attempt.allow(max(attempt.answer_seconds, 5 * attempt.read_seconds))  # until the container is open
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
            words = "it is a DASH presentation, which is not read; give the camera's HLS, MJPEG or rtsp:// address"
            raise FailureError(Failure(words, "never", "codec", hint=""))
        if self._options.live is False:
            attempt.at_end = "ended"
        if kind == "motion jpeg":
            # The first picture tells all there is to know.
            options = {"analyzeduration": "0", "fpsprobesize": "0"}
            self._packets = _by_arrival
            return self._demuxer(MotionJpeg(response.read), options=options, form="mpjpeg")
        container = self._demuxer(response)
        if self._options.live is None and container.duration and not self._is_fragmented:
            attempt.live = False  # it says how long it is: no camera knows that
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
        """Open the HLS segments up to the next break of clock or format."""
        self._is_between_parts = False
        attempt.live, attempt.resumes = self._hls.is_live, True
        attempt.read_seconds = max(attempt.read_seconds, self._hls.patience_seconds)
        attempt.heard()
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
        """Give packets at the stream's own pace: a segment comes in one burst, its pictures do not."""
        begun: float | None = None
        for packet in demuxed(container, stop):
            if packet.size and packet.dts is not None and packet.time_base is not None:
                due, now = float(packet.dts * packet.time_base), time.monotonic()
                if begun is None or not -_LATE_SECONDS < begun + due - now < self._attempt.read_seconds:
                    begun = now - due
                if begun + due > now:
                    stop.wait(begun + due - now)
            if stop.is_set():
                return
            yield packet

    def _stills(self, container: InputContainer, stop: threading.Event) -> Iterator[VideoPacket]:
        """Ask again and again for the picture at the address; give those that differ from the one before."""
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
            attempt.allow(max(attempt.answer_seconds, attempt.read_seconds))
            with self._client.get(self._client.address, attempt, headers=known) as response:
                content = b"" if response.status == 304 else response.whole(MAX_IMAGE_BYTES)
                if response.status != 304:
                    known = _validators(response)
            attempt.heard()
            digest = hashlib.blake2b(content).digest()
            if content and digest != last:
                last = digest
                with _still(content) as picture:
                    yield from _at(demuxed(picture, stop), time.monotonic() - started_at)


def kind_of(response: Response, *, live: bool | None) -> Kind:
    """Return what an answer holds, by its first bytes, its media type, its length, and what is known of it."""
    head, stated = response.peek(_HEAD_BYTES), response.kind
    if head.removeprefix(b"\xef\xbb\xbf").startswith(b"#EXTM3U"):
        return "hls"
    if stated == "application/dash+xml" or (re.match(rb"\s*<(\?xml|MPD)", head) and "mpd" in response.url.lower()):
        return "dash"
    begin = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if begin.startswith((b"<!doctype html", b"<html")) or (
        stated in _TEXT_TYPES and begin.startswith((b"<", b"{", b"["))
    ):
        raise FailureError(Failure(_TEXT_WORDS, "slow", "corrupt", hint=""))
    has_end = response.length is not None
    is_file = has_end and live is None and not stated.startswith("multipart/")  # a camera says that it sends parts
    has_parts = head.startswith((b"--", b"Content-Type: image/jpeg"[:_HEAD_BYTES]))
    if stated.startswith("multipart/") or (has_parts and not is_file):
        return "motion jpeg"
    is_jpeg = head.startswith(_IMAGE_MARKS[0])
    is_film = is_jpeg and is_file and stated.startswith("video/")  # a file of many JPEGs
    is_picture = (head.startswith(_IMAGE_MARKS[:2]) and not is_film) or (
        stated.startswith("image/") and stated != "image/gif"
    )
    if is_picture and (has_end or stated.startswith("image/")):
        return "still"
    if is_jpeg and not is_film:
        return "motion jpeg"
    return "recording" if (live is None and has_end) or live is False else "stream"


class _Body:
    """What FFmpeg reads: keeps the beginning, and the error that reading ended in.

    FFmpeg may read on after an error; PyAV prints an error that comes before the last one was raised.
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
        if len(self._head) < _KEPT_BYTES:
            self._head += part
        return part

    def check(self) -> None:
        """Raise the error that reading ended in."""
        if self._error is not None:
            raise self._error

    @property
    def is_fragmented(self) -> bool:
        """Whether it is MP4 in fragments, whose duration FFmpeg takes from the fragments it has seen."""
        return b"mvex" in self._head or b"moof" in self._head


def _by_arrival(container: InputContainer, stop: threading.Event) -> Iterator[VideoPacket]:
    """Give packets with the times they arrived at: FFmpeg counts motion JPEG's at 25 a second, whatever their rate."""
    started_at = time.monotonic()
    for packet in demuxed(container, stop):
        yield from _at(iter([packet]), time.monotonic() - started_at)


def _still(content: bytes) -> InputContainer:
    container = av.open(io.BytesIO(content), "r", options={"format_whitelist": _STILLS})
    for stream in container.streams.video:
        stream.thread_type = "SLICE"  # frame threads would hold the picture back
    return container


def _at(packets: Iterator[VideoPacket], seconds: float) -> Iterator[VideoPacket]:
    """Give the packets of a still as those of a stream, shown at ``seconds``."""
    for packet in packets:
        if packet.size and packet.time_base is not None:
            packet.pts = packet.dts = int(seconds / packet.time_base)
            yield packet


def _validators(response: Response) -> dict[str, str]:
    """Return the request headers that ask for a picture only where it has changed."""
    told = {"If-None-Match": response.headers.get("ETag"), "If-Modified-Since": response.headers.get("Last-Modified")}
    return {key: value for key, value in told.items() if value and value.isprintable()}
