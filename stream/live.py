"""A camera that may go away and come back: connect, read, lose, wait, connect again.

What cameras, RTSP and web streams share. The container is opened, read and closed in one thread, the one that asks for
frames: closing it from another while it decodes would crash the process.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self, cast

import av
import av.error
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext

from pipeline.errors import ConnectionLostError
from pipeline.frames import Frame
from pipeline.ports import Health, State
from stream.attempt import Attempt
from stream.clock import StreamClock
from stream.convert import PixelAspect, RgbConverter
from stream.corruption import CorruptionTracker
from stream.decode import VideoDecoder, VideoPacket, drop_bad_extradata, packets_of, video_stream
from stream.failures import Failure, FailureError, StreamEndedError, classify_error
from stream.h264 import FrameNumbers
from stream.hwaccel import DecoderSelector
from stream.limits import ImageTooLargeError
from stream.reconnect import Backoff, ConnectTimeoutPolicy

log = logging.getLogger(__name__)

_DOUBT_PACKETS = 300  # 10 s at 30 per second: a camera without further key pictures is believed again
_ENOUGH_IMAGES = 5  # a connection that gave more of them keeps the read timeout
_MAX_READ_SECONDS = 32.0  # no camera's pictures are waited for longer than that, unless it is asked for
_FINITE_ATTEMPTS = 5
_NEAR_END_SECONDS = 1.5  # a finite stream that stops so close to its end has ended


@dataclass(frozen=True, slots=True)
class ConnectionSpec:
    """How to get at a live stream."""

    open: Callable[[Attempt], AbstractContextManager[InputContainer]]
    """Opens it within the attempt's limits; the container closes on leaving."""
    packets: Callable[[InputContainer, threading.Event], Iterator[VideoPacket]]
    """Reads it; raises FFmpeg's errors."""
    open_timeout_seconds: float
    read_timeout_seconds: float
    attempts: int | None = None
    """How many attempts in a row may fail before it is given up; None: never."""
    first_attempts: int | None = None
    """The same, before it has ever been live; None: ``attempts``."""
    backoff: Backoff = field(default_factory=Backoff)
    decoder: DecoderSelector = field(default_factory=DecoderSelector)
    """What ``open`` opens it with."""
    rng: random.Random = field(default_factory=random.Random)


class SourceConnectionLostError(Exception):
    """One connection is over."""

    def __init__(self, failure: Failure, *, ended: bool = False) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.ended = ended
        """Whether the stream came to its natural end."""


class LiveSource:
    """Frames of something live, across as many connections as it takes.

    Entering raises ``SourceError`` where a card must decode and there is none; ``frames`` raises
    ``ConnectionLostError`` where the stream cannot be had at all, or was given up. Frame indices count on across
    connections; a frame's time goes on by the time that passed.
    """

    frames_total: int | None = None

    def __init__(self, *, uri: str, camera: str, spec: ConnectionSpec) -> None:
        """Take ``uri`` and ``camera`` for show, without credentials; ``spec`` gets at it."""
        self.live = True
        """Whether it goes on when nobody reads; what is found on connecting may say otherwise, before any frame."""
        self.uri = uri
        self.camera = camera
        self.rate: float | None = None
        self._spec = spec
        self._health = Health()
        self._connect_timeouts = ConnectTimeoutPolicy(spec.open_timeout_seconds)
        self._answer_seconds: float | None = None  # what its answers took, in seconds; None: it has never been live
        self._read_seconds = spec.read_timeout_seconds
        self._resumes = False  # whether a finite stream goes on where it was lost
        self._given = 0  # pictures of this connection
        self._longest_gap_seconds = 0.0  # between two pictures of this connection
        self._short_lives = 0  # connections in a row that fell silent after a picture or two
        self._continues = False  # whether this connection takes up where the last one ended
        self._failures = 0  # attempts in a row that gave no picture
        self._delivered_frames = False  # whether this connection gave one
        self._index = 0
        self._clock = StreamClock()
        self._last_pts: float | None = None

    @property
    def health(self) -> Health:
        """How it does right now."""
        return self._health

    def __enter__(self) -> Self:
        self._spec.decoder.check()  # to connect again and again brings no card
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Nothing is left open: each connection closes in the thread that opened it."""

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Give frames, reconnecting as long as it takes; ends within the read timeout once ``stop`` is set."""
        while not stop.is_set():
            started_at = time.monotonic()
            try:
                yield from self._connection(stop)
            except SourceConnectionLostError as lost:
                if stop.is_set():
                    return
                if lost.ended:
                    self._set_state("ended", lost.failure)
                    return
                self._learn_pace(lost.failure)
                self._continues = False
                if not self._delivered_frames:
                    self._failures += 1
                self._wait(lost.failure, stop, 0.0 if self._delivered_frames else time.monotonic() - started_at)
            else:
                self._continues = self._index > 0

    def _connection(self, stop: threading.Event) -> Iterator[Frame]:
        """Give the frames of one connection; where the next is to follow, ends.

        Else raises ``SourceConnectionLostError`` or is stopped.
        """
        spec = self._spec
        seconds = self._connect_timeouts.timeout_seconds(self._failures, self._answer_seconds)
        attempt = Attempt(seconds, self._read_seconds, stop)
        self._delivered_frames, self._given, self._longest_gap_seconds = False, 0, 0.0
        since = time.monotonic()
        try:
            with spec.open(attempt) as container:
                if stop.is_set():
                    return
                attempt.waits_for, self.live, self._resumes = "picture", attempt.live, attempt.resumes
                yield from self._images(container, attempt, answered_in=time.monotonic() - since)
                if not stop.is_set() and attempt.at_end != "next":
                    ended = self._has_ended(container) if attempt.at_end is None else attempt.at_end == "ended"
                    raise SourceConnectionLostError(Failure("the stream ended", cause="ended"), ended=ended)
        except ImageTooLargeError as error:
            raise SourceConnectionLostError(Failure(str(error), "slow", "codec")) from None
        except (av.error.FFmpegError, OSError) as error:
            # FFmpeg's RTSP calls a wait for an answer that it cut short by whatever name: EPERM, invalid data.
            cut_short = attempt.waits_for == "answer" and time.monotonic() - since >= seconds
            known = isinstance(error, FailureError)
            told = classify_error(
                TimeoutError() if cut_short and not known else error,
                waited_for=attempt.waits_for,
                seconds=attempt.allowed_seconds,
            )
            raise SourceConnectionLostError(told, ended=isinstance(error, StreamEndedError)) from error

    def _learn_pace(self, failure: Failure) -> None:
        """Wait longer for a camera whose pictures come more rarely than the read timeout allows."""
        base = self._spec.read_timeout_seconds
        if self._given > _ENOUGH_IMAGES and self._longest_gap_seconds < base:
            self._short_lives, self._read_seconds = 0, base
        elif self._given and failure.cause == "stalled":
            self._short_lives += 1
        if self._short_lives >= 2 and self._given and self._read_seconds < _MAX_READ_SECONDS:
            self._short_lives = 0
            self._read_seconds = min(2 * self._read_seconds, _MAX_READ_SECONDS)
            log.warning(
                "%s: its pictures come more rarely than every %g s; it may be silent for %g s from now on "
                "(read_timeout_seconds sets that)",
                self.camera,
                base,
                self._read_seconds,
            )

    def _images(self, container: InputContainer, attempt: Attempt, answered_in: float) -> Iterator[Frame]:
        stream = video_stream(container)
        if stream is None:
            raise SourceConnectionLostError(Failure("it carries no video", cause="codec"))
        context = cast("VideoCodecContext | None", stream.codec_context)  # its stub does not know of unknown codecs
        if context is None:
            raise SourceConnectionLostError(
                Failure("what it carries is in a codec that is not known here", "slow", "codec")
            )
        stream.thread_type = "SLICE"  # frame threads hold back one picture each
        self.rate = float(stream.average_rate) if stream.average_rate else None
        if drop_bad_extradata(context):
            log.info("%s: its description holds wrong parameter sets; those in the stream are used", self.camera)
        numbers = FrameNumbers(context.extradata) if context.name == "h264" else None
        decoding = VideoDecoder(
            trust=CorruptionTracker(window_packets=_DOUBT_PACKETS),
            numbers=numbers,
            max_pixels=self._spec.decoder.max_pixels,
        )
        rgb, aspect = RgbConverter(), PixelAspect(stream, max_pixels=self._spec.decoder.max_pixels)
        self._clock.restart()
        corrupt_before, self._last_pts, last_at = self._health.corrupt, None, 0.0
        packets = self._monitored(self._spec.packets(container, attempt.stop), decoding, attempt)
        for picture in decoding.run(packets, attempt.stop):
            if not self._delivered_frames and (refused := self._spec.decoder.verify_first_frame(context, self.camera)):
                raise SourceConnectionLostError(refused)
            self._note_live(corrupt=corrupt_before + decoding.corrupt, answered_in=answered_in)
            self._last_pts = None if picture.pts is None else picture.time
            image, captured_at = rgb.convert(picture, aspect.now()), time.monotonic()
            pts = self._clock.to_seconds(self._last_pts, arrived_at=captured_at if self.live else None)
            index, self._index = self._index, self._index + 1
            if self._given:
                self._longest_gap_seconds = max(self._longest_gap_seconds, captured_at - last_at)
            self._given, last_at = self._given + 1, captured_at
            yield Frame(image, self.camera, index, captured_at, pts)

    def _monitored(
        self, packets: Iterator[VideoPacket], decoding: VideoDecoder, attempt: Attempt
    ) -> Iterator[VideoPacket]:
        """Pass packets on; say so, and in the end give up, where they come but no picture does."""
        pictures = 0
        since = time.monotonic()
        attempt.heard()
        for packet in packets:
            now, limit = time.monotonic(), attempt.read_seconds
            if now - attempt.heard_at >= limit:
                # On its timeout FFmpeg first gives the picture it had held back, as if it had just come.
                raise SourceConnectionLostError(classify_error(TimeoutError(), waited_for="picture", seconds=limit))
            if decoding.images != pictures:
                pictures, since = decoding.images, now
            elif now - since > 5 * limit:
                words = f"packets come, but no picture could be decoded for {5 * limit:g} s"
                raise SourceConnectionLostError(Failure(words, cause="corrupt"))
            elif now - since > limit and self._health.state != "stalled":
                waiting = Failure("packets come, but no picture: waiting for a key picture", cause="corrupt")
                self._set_state("stalled", waiting)
            yield packet
            attempt.heard()

    def _note_live(self, *, corrupt: int, answered_in: float) -> None:
        """Say that a picture came. A reconnect counts from its first picture: being open proves nothing."""
        reconnects = self._health.reconnects
        if not self._delivered_frames:
            reconnects += 1 if self._index > 0 and not self._continues else 0
            self._delivered_frames, self._failures = True, 0
            self._answer_seconds = self._connect_timeouts.record(self._answer_seconds, answered_in)
        health = Health("live", reconnects=reconnects, corrupt=corrupt)
        if health != self._health:
            if self._health.reason:
                log.info("%s: live again", self.camera)
            self._health = health

    def _has_ended(self, container: InputContainer) -> bool:
        """Say whether a stream of known length was read to its end; a camera has no length, its end is a loss."""
        if not container.duration:
            return False
        start = (container.start_time or 0) / av.time_base
        end = start + container.duration / av.time_base
        return self._last_pts is not None and self._last_pts > end - _NEAR_END_SECONDS

    def _wait(self, failure: Failure, stop: threading.Event, spent_seconds: float) -> None:
        """Wait until the next attempt; the last one took ``spent_seconds``.

        Raises ``ConnectionLostError`` where there is to be none.
        """
        attempts = self._spec.attempts
        if self._index == 0 and self._spec.first_attempts is not None:
            attempts = self._spec.first_attempts
        if not self.live:  # who waits for the end of something finite is not kept waiting for ever
            attempts = min(attempts or _FINITE_ATTEMPTS, _FINITE_ATTEMPTS if self._resumes or not self._index else 0)
        if failure.retry_class == "never" or (attempts is not None and self._failures >= attempts):
            tried = f" (attempt {self._failures} of {attempts})" if attempts and failure.retry_class != "never" else ""
            self._set_state("failed", failure)
            doubt = "where it is a camera: live: true" if self._spec.first_attempts and not self._index else ""
            message = "; ".join(filter(None, (f"{self.uri}: {failure.message}{tried}", failure.hint, doubt)))
            raise ConnectionLostError(message) from None  # FFmpeg's error names the address, password and all
        delay = self._spec.backoff.delay_seconds(
            self._failures, self._spec.rng, retry_class=failure.retry_class, spent_seconds=spent_seconds
        )
        self._set_state("waiting", failure)
        stop.wait(delay)
        if not stop.is_set():
            self._set_state("connecting", failure)

    def _set_state(self, state: State, failure: Failure) -> None:
        still_silent = failure.cause == self._health.cause == "timeout"  # only for how long each time differs
        if failure.message != self._health.reason and not still_silent and state != "ended":
            log.warning("%s: %s%s", self.camera, failure.message, "; it is tried again" if state == "waiting" else "")
        self._health = replace(self._health, state=state, reason=failure.message, cause=failure.cause)


def demuxed(container: InputContainer, stop: threading.Event) -> Iterator[VideoPacket]:
    """Give the packets of the video that ``video_stream`` chooses, until it ends or ``stop`` is set."""
    stream = video_stream(container)
    if stream is None:
        return
    for packet in packets_of(container, stream):
        if stop.is_set():
            return
        yield packet
