"""The base class of live sources: connects, reads, and reconnects after each lost connection.

It serves webcams, RTSP cameras and web streams. One thread opens, reads and closes the container: closing it in another
thread while it decodes would crash the process.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Self, cast

import av
import av.error
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext

from pipeline.errors import ConnectionLostError
from pipeline.frames import Frame
from pipeline.ports import Health, Source, State
from stream.attempt import Attempt
from stream.clock import StreamClock
from stream.convert import ColoursRefusedError, PixelAspect
from stream.corruption import CorruptionTracker
from stream.decode import VideoDecoder, VideoPacket, drop_bad_extradata, packets_of, video_stream
from stream.failures import Failure, FailureError, StreamEndedError, classify_error
from stream.gpu_frames import FrameConverter
from stream.h264 import FrameNumbers
from stream.hwaccel import DecoderSelector
from stream.limits import ImageTooLargeError
from stream.reconnect import Backoff, ConnectTimeoutPolicy

log = logging.getLogger(__name__)

_SUSPECT_PACKETS = 300  # 10 s at 30 frames/s; for cameras that send no further keyframe
_MIN_FRAMES = 5  # after more frames in a connection the read timeout is not increased
_MAX_READ_SECONDS = 32.0  # maximum of the automatic increase of the read timeout
_FINITE_ATTEMPTS = 5
_NEAR_END_SECONDS = 1.5  # a finite stream that stops within this distance of its end has ended


@dataclass(frozen=True, slots=True)
class ConnectionSpec:
    """Settings of the connection to a live stream."""

    open: Callable[[Attempt], AbstractContextManager[InputContainer]]
    """Opens the stream within the attempt's time limits; leaving the context manager closes the container."""
    packets: Callable[[InputContainer, threading.Event], Iterator[VideoPacket]]
    """Reads the stream; raises FFmpeg's errors."""
    open_timeout_seconds: float
    read_timeout_seconds: float
    attempts: int | None = None
    """Number of failed attempts in a row after which the source fails; None: no limit."""
    first_attempts: int | None = None
    """Replaces ``attempts`` until the first frame arrives; None: ``attempts`` applies."""
    backoff: Backoff = field(default_factory=Backoff)
    decoder: DecoderSelector = field(default_factory=DecoderSelector)
    """The decoder that ``open`` uses."""
    rng: random.Random = field(default_factory=random.Random)


class SourceConnectionLostError(Exception):
    """A connection has ended."""

    def __init__(self, failure: Failure, *, ended: bool = False) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.ended = ended
        """True if the stream itself has ended."""


class LiveSource(Source):
    """The frames of a live stream, across any number of connections.

    Entering raises ``SourceError`` if decoding requires a GPU and none is available. ``frames`` raises
    ``ConnectionLostError`` if the stream cannot be read, or after the last attempt. Frame indices and times continue
    across connections.
    """

    def __init__(self, *, uri: str, camera: str, spec: ConnectionSpec) -> None:
        """Create the source; ``uri``, used in messages, must contain no credentials."""
        self.live = True
        """True if the stream goes on while nobody reads it; connecting may change the value before the first frame."""
        self.uri = uri
        self.camera = camera
        self._spec = spec
        self._connect_timeouts = ConnectTimeoutPolicy(spec.open_timeout_seconds)
        self._answer_seconds: float | None = None  # typical time of the server's answers; None: no connection yet
        self._read_seconds = spec.read_timeout_seconds
        self._resumes = False  # whether a finite stream can continue where the connection was lost
        self._connection_frames = 0  # frames of this connection
        self._max_gap_seconds = 0.0  # between two frames of this connection
        self._short_connections = 0  # connections in a row that stalled after a few frames
        self._continues = False  # whether this connection continues where the last one ended
        self._failures = 0  # attempts in a row without a frame
        self._delivered_frames = False  # whether this connection has given a frame
        self._index = 0
        self._clock = StreamClock()
        self._last_pts: float | None = None

    def __enter__(self) -> Self:
        self._spec.decoder.check()  # checked here, because reconnecting would not help
        return self

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield frames, and reconnect as needed, until ``stop`` is set.

        Raises:
            ConnectionLostError: the stream cannot be read, or all attempts failed.
        """
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
                self._adapt_read_timeout(lost.failure)
                self._continues = False
                if not self._delivered_frames:
                    self._failures += 1
                self._wait(lost.failure, stop, 0.0 if self._delivered_frames else time.monotonic() - started_at)
            else:
                self._continues = self._index > 0

    def _connection(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield the frames of one connection, up to the next part of the stream.

        Raises:
            SourceConnectionLostError: the connection was lost, or the stream ended.
        """
        spec = self._spec
        seconds = self._connect_timeouts.timeout_seconds(self._failures, self._answer_seconds)
        attempt = Attempt(seconds, self._read_seconds, stop)
        self._delivered_frames, self._connection_frames, self._max_gap_seconds = False, 0, 0.0
        since = time.monotonic()
        try:
            with spec.open(attempt) as container:
                if stop.is_set():
                    return
                attempt.waits_for, self.live, self._resumes = "frame", attempt.live, attempt.resumes
                yield from self._decode(container, attempt, answered_in=time.monotonic() - since)
                if not stop.is_set() and attempt.at_end != "next":
                    ended = self._has_ended(container) if attempt.at_end is None else attempt.at_end == "ended"
                    raise SourceConnectionLostError(Failure("the stream ended", cause="ended"), ended=ended)
        except (ImageTooLargeError, ColoursRefusedError) as error:
            raise SourceConnectionLostError(Failure(str(error), "slow", "codec")) from None
        except (av.error.FFmpegError, OSError) as error:
            # FFmpeg's RTSP demuxer reports a timeout of the answer as various errors: EPERM, invalid data.
            timed_out = attempt.waits_for == "answer" and time.monotonic() - since >= seconds
            is_classified = isinstance(error, FailureError)
            failure = classify_error(
                TimeoutError() if timed_out and not is_classified else error,
                waited_for=attempt.waits_for,
                seconds=attempt.timeout_seconds,
            )
            raise SourceConnectionLostError(failure, ended=isinstance(error, StreamEndedError)) from error

    def _adapt_read_timeout(self, failure: Failure) -> None:
        """Increase the read timeout if the camera's frame interval is longer than it."""
        base = self._spec.read_timeout_seconds
        if self._connection_frames > _MIN_FRAMES and self._max_gap_seconds < base:
            self._short_connections, self._read_seconds = 0, base
        elif self._connection_frames and failure.cause == "stalled":
            self._short_connections += 1
        if self._short_connections >= 2 and self._connection_frames and self._read_seconds < _MAX_READ_SECONDS:
            self._short_connections = 0
            self._read_seconds = min(2 * self._read_seconds, _MAX_READ_SECONDS)
            log.warning(
                "%s: the interval of its frames is longer than %g s; the read timeout is increased to %g s "
                "(read_timeout_seconds sets it)",
                self.camera,
                base,
                self._read_seconds,
            )

    def _decode(self, container: InputContainer, attempt: Attempt, answered_in: float) -> Iterator[Frame]:
        stream = video_stream(container)
        if stream is None:
            raise SourceConnectionLostError(Failure("the stream contains no video", cause="codec"))
        context = cast("VideoCodecContext | None", stream.codec_context)  # PyAV's stub excludes None: unknown codecs
        if context is None:
            raise SourceConnectionLostError(Failure("the codec of its video is unknown", "slow", "codec"))
        stream.thread_type = "SLICE"  # each frame thread would delay the video by one frame
        self.rate = float(stream.average_rate) if stream.average_rate else None
        if drop_bad_extradata(context):
            log.info(
                "%s: the parameter sets in its description are wrong; those in the stream are used instead", self.camera
            )
        numbers = FrameNumbers(context.extradata) if context.name == "h264" else None
        decoding = VideoDecoder(
            trust=CorruptionTracker(window_packets=_SUSPECT_PACKETS),
            numbers=numbers,
            max_pixels=self._spec.decoder.max_pixels,
            camera=self.camera,
        )
        decoder = self._spec.decoder
        converter = FrameConverter(decoder.copy_planes, self.camera)
        aspect = PixelAspect(stream, max_pixels=decoder.max_pixels)
        self._clock.restart()
        corrupt_before, self._last_pts, last_at = self.health.corrupt, None, 0.0
        packets = self._monitored(self._spec.packets(container, attempt.stop), decoding, attempt)
        for frame in decoding.run(packets, attempt.stop):
            if not self._delivered_frames and (failure := decoder.verify_first_frame(context, self.camera)):
                raise SourceConnectionLostError(failure)
            image, captured_at = converter.convert(frame, aspect.now()), time.monotonic()
            self._note_live(corrupt=corrupt_before + decoding.corrupt, answered_in=answered_in)
            self._last_pts = None if frame.pts is None else frame.time
            pts = self._clock.to_seconds(self._last_pts, arrived_at=captured_at if self.live else None)
            index, self._index = self._index, self._index + 1
            if self._connection_frames:
                self._max_gap_seconds = max(self._max_gap_seconds, captured_at - last_at)
            self._connection_frames, last_at = self._connection_frames + 1, captured_at
            yield Frame(image, self.camera, index, captured_at, pts)

    def _monitored(
        self, packets: Iterator[VideoPacket], decoding: VideoDecoder, attempt: Attempt
    ) -> Iterator[VideoPacket]:
        """Yield packets; if none of them can be decoded, report a stall, later fail."""
        frames = 0
        since = time.monotonic()
        attempt.record_data()
        for packet in packets:
            now, limit = time.monotonic(), attempt.read_seconds
            if now - attempt.last_data_at >= limit:
                # When FFmpeg times out, it first returns the packet that it buffered.
                raise SourceConnectionLostError(classify_error(TimeoutError(), waited_for="frame", seconds=limit))
            if decoding.intact_frames != frames:
                frames, since = decoding.intact_frames, now
            elif now - since > 5 * limit:
                message = f"packets arrive, but no frame could be decoded for {5 * limit:g} s"
                raise SourceConnectionLostError(Failure(message, cause="corrupt"))
            elif now - since > limit and self.health.state != "stalled":
                stall = Failure("packets arrive, but no frame can be decoded: waiting for a keyframe", cause="corrupt")
                self._set_state("stalled", stall)
            yield packet
            attempt.record_data()

    def _note_live(self, *, corrupt: int, answered_in: float) -> None:
        """Set the state to live at a connection's first frame; count reconnects."""
        reconnects = self.health.reconnects
        if not self._delivered_frames:
            reconnects += 1 if self._index > 0 and not self._continues else 0
            self._delivered_frames, self._failures = True, 0
            self._answer_seconds = self._connect_timeouts.record(self._answer_seconds, answered_in)
        health = Health("live", reconnects=reconnects, corrupt=corrupt)
        if health != self.health:
            if self.health.reason:
                log.info("%s: live again", self.camera)
            self.health = health

    def _has_ended(self, container: InputContainer) -> bool:
        """Return whether a stream with a known duration was read to its end."""
        if not container.duration:
            return False
        start = (container.start_time or 0) / av.time_base
        end = start + container.duration / av.time_base
        return self._last_pts is not None and self._last_pts > end - _NEAR_END_SECONDS

    def _wait(self, failure: Failure, stop: threading.Event, spent_seconds: float) -> None:
        """Wait until the next attempt; the last one took ``spent_seconds``.

        Raises:
            ConnectionLostError: there are no attempts left, or retrying cannot help.
        """
        attempts = self._spec.attempts
        if self._index == 0 and self._spec.first_attempts is not None:
            attempts = self._spec.first_attempts
        if not self.live:  # a finite stream must end at some time
            attempts = min(attempts or _FINITE_ATTEMPTS, _FINITE_ATTEMPTS if self._resumes or not self._index else 0)
        if failure.retry_class == "never" or (attempts is not None and self._failures >= attempts):
            tried = f" (attempt {self._failures} of {attempts})" if attempts and failure.retry_class != "never" else ""
            self._set_state("failed", failure)
            live_hint = "for a camera, set live: true" if self._spec.first_attempts and not self._index else ""
            message = "; ".join(filter(None, (f"{self.uri}: {failure.message}{tried}", failure.hint, live_hint)))
            raise ConnectionLostError(message) from None  # FFmpeg's error contains the address with its password
        delay = self._spec.backoff.delay_seconds(
            self._failures, self._spec.rng, retry_class=failure.retry_class, spent_seconds=spent_seconds
        )
        self._set_state("waiting", failure)
        stop.wait(delay)
        if not stop.is_set():
            self._set_state("connecting", failure)

    def _set_state(self, state: State, failure: Failure) -> None:
        # The messages differ only in the number of seconds
        is_repeated = failure.cause == self.health.cause == "timeout"
        if failure.message != self.health.reason and not is_repeated and state != "ended":
            log.warning("%s: %s%s", self.camera, failure.message, "; reconnecting" if state == "waiting" else "")
        self.health = replace(self.health, state=state, reason=failure.message, cause=failure.cause)


def demuxed(container: InputContainer, stop: threading.Event) -> Iterator[VideoPacket]:
    """Yield the packets of the stream that ``video_stream`` chooses, until stopped."""
    stream = video_stream(container)
    if stream is None:
        return
    for packet in packets_of(container, stream):
        if stop.is_set():
            return
        yield packet
