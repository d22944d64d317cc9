"""Tests of the live source, on FFmpeg's virtual camera: without network and real delays."""

import threading

import av
import av.error
import pytest

from pipeline.errors import ConnectionLostError
from stream.failures import classify_error
from stream.live import ConnectionSpec, LiveSource, demuxed
from stream.reconnect import Backoff

AT_ONCE = Backoff(min_seconds=0.001, max_seconds=0.002, slow_seconds=0.001)


class Script:
    """A camera whose attempts follow a list: a number of images, or an error."""

    footage = "testsrc=size=64x48:rate=25"

    def __init__(self, *attempts):
        self.attempts = list(attempts)
        self.opened = []
        self.waits = []

    def open(self, attempt_):
        self.waits.append(attempt_.answer_seconds)
        attempt = self.attempts.pop(0)
        if isinstance(attempt, Exception):
            raise attempt
        container = av.open(f"{self.footage},trim=end_frame={attempt}", format="lavfi")
        self.opened.append(container)
        return container

    def source(self, *, attempts=None, packets=demuxed, open_timeout=1.0):
        line = ConnectionSpec(self.open, packets, open_timeout, 1.0, attempts=attempts, backoff=AT_ONCE)
        return LiveSource(uri="script:", camera="script", spec=line)

    def all_closed(self):
        for container in self.opened:
            with pytest.raises(AssertionError):
                container.bit_rate  # noqa: B018 - asks the container whether it is open
        return True


def refused():
    return av.error.ConnectionRefusedError(111, "refused", "rtsp://me:secret@door")


def take(source, count):
    stop, frames = threading.Event(), []
    for frame in source.frames(stop):
        frames.append(frame)
        if len(frames) == count:
            stop.set()
    return frames


def test_live_end_of_stream_reconnects():
    script = Script(3, refused(), 5, 4)
    source = script.source()
    frames = take(source, 9)
    assert [f.index for f in frames] == list(range(9))
    assert source.health.reconnects == 2
    assert source.health.state == "live"
    times = [f.pts_seconds for f in frames]
    assert times == sorted(set(times))
    assert script.all_closed()


def test_live_fails_after_attempts_without_secrets():
    source = Script(refused(), refused(), refused()).source(attempts=3)
    with pytest.raises(ConnectionLostError) as caught:
        take(source, 1)
    assert "connection refused" in str(caught.value)
    assert "attempt 3 of 3" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert source.health.state == "failed"


def test_live_frame_resets_attempts():
    source = Script(refused(), 2, refused(), 2, refused(), refused()).source(attempts=2)
    frames = []
    with pytest.raises(ConnectionLostError):
        frames.extend(frame for frame in source.frames(threading.Event()))
    assert source._index == 4


def test_live_permanent_failure_is_not_retried():
    script = Script(av.error.ProtocolNotFoundError(1, "no such protocol"), 5)
    with pytest.raises(ConnectionLostError, match="does not support the protocol"):
        take(script.source(), 1)
    assert script.attempts == [5]


def test_while_it_waits_it_says_why_and_a_stop_ends_the_wait():
    stop, seen = threading.Event(), []

    class Watched(LiveSource):
        def _set_state(self, state, reason):
            super()._set_state(state, reason)
            if state == "waiting":
                seen.append(self.health)
                stop.set()

    line = ConnectionSpec(Script(refused()).open, demuxed, 1.0, 1.0, backoff=Backoff(50.0, 60.0, 60.0))
    assert list(Watched(uri="script:", camera="script", spec=line).frames(stop)) == []
    assert [(health.state, health.reason.split(":")[0]) for health in seen] == [("waiting", "connection refused")]


def test_live_connect_timeout_adapts_to_answers():
    script = Script(refused(), refused(), 2, *[refused() for _ in range(5)], 2)
    take(script.source(open_timeout=60.0), 4)
    assert script.waits[:3] == [60.0] * 3
    assert [seconds == 60.0 for seconds in script.waits[3:]] == [False, False, False, True, False, False]


def test_live_timeout_is_logged_once(caplog):
    silent = [av.error.ExitError(1, "x") for _ in range(6)]
    take(Script(2, *silent, 2).source(open_timeout=60.0), 4)
    messages = [record.getMessage().split(";")[0] for record in caplog.records if record.levelname == "WARNING"]
    assert [line.partition(" for ")[0] for line in messages] == ["script: the stream ended", "script: no answer"]


def test_live_left_early_closes_connection():
    script = Script(50)
    frames = script.source().frames(threading.Event())
    next(frames)
    frames.close()
    assert script.all_closed()


def test_live_stall_is_lost_with_duration():
    def stalls(container, stop):
        for number, packet in enumerate(demuxed(container, stop)):
            if number == 2:
                raise av.error.ExitError(1, "Immediate exit requested")
            yield packet

    source = Script(9, refused()).source(attempts=1, packets=stalls)
    reasons = []
    wait = source._wait
    source._wait = lambda failure, *more: (reasons.append(failure.message), wait(failure, *more))
    frames = []
    with pytest.raises(ConnectionLostError):
        frames.extend(source.frames(threading.Event()))
    assert reasons[0] == "no frame for 1 s"


def test_packets_without_pictures_are_called_a_stall(monkeypatch):
    class Now:
        value = 0.0

        @classmethod
        def monotonic(cls):
            cls.value += 0.6
            return cls.value

    monkeypatch.setattr("stream.live.time", Now)
    monkeypatch.setattr("stream.decode.VideoDecoder._decode", lambda _self, _packet: iter(()))
    source = Script(50, refused()).source(attempts=1)
    states = []
    say = source._set_state
    source._set_state = lambda state, failure: (states.append((state, failure.message)), say(state, failure))
    with pytest.raises(ConnectionLostError, match="no frame could be decoded for 5 s"):
        take(source, 1)
    assert states[0] == ("stalled", "packets arrive, but no frame can be decoded: waiting for a keyframe")


@pytest.mark.parametrize(
    ("error", "message", "pace", "cause"),
    [
        (av.error.HTTPUnauthorizedError(1, "x"), "user name or password", "slow", "unauthorised"),
        (av.error.HTTPForbiddenError(1, "x"), "403", "slow", "unauthorised"),
        (av.error.HTTPNotFoundError(1, "x"), "check the path", "slow", "not found"),
        (av.error.HTTPServerError(1, "x"), "5xx", "quick", "server"),
        (av.error.ConnectionRefusedError(1, "x"), "refused", "quick", "refused"),
        (av.error.TimeoutError(1, "x"), "no answer for 2 s", "quick", "timeout"),
        (av.error.ExitError(1, "x"), "no answer for 2 s", "quick", "timeout"),
        (av.error.EOFError(1, "x"), "ended", "quick", "ended"),
        (av.error.InvalidDataError(1, "x"), "not a video", "quick", "corrupt"),
        (av.error.OSError(5, "Input/output error"), "unknown host name", "quick", "unreachable"),
        (av.error.BugError(1, "strange"), "BugError: strange", "quick", "unreachable"),
    ],
)
def test_classify_error_gives_message_retry_class_and_cause(error, message, pace, cause):
    failure = classify_error(error, waited_for="answer", seconds=2.0)
    assert message in failure.message
    assert (failure.retry_class, failure.cause) == (pace, cause)


def test_live_loss_and_return_are_logged_once(caplog):
    caplog.set_level("INFO")
    source = Script(2, refused(), refused(), refused(), 2).source()
    take(source, 4)
    messages = [record.getMessage() for record in caplog.records if record.name == "stream.live"]
    assert [line.split(";")[0] for line in messages] == [
        "script: the stream ended",
        "script: connection refused: no server listens at this host and port",
        "script: live again",
    ]


def test_live_frames_with_oblong_pixels_are_scaled_to_square_pixels():
    script = Script(2, 2)
    script.footage += ",setsar=2/1"
    stop = threading.Event()
    frames = []
    for frame in script.source().frames(stop):
        frames.append(frame)
        if len(frames) == 4:  # across a reconnect
            stop.set()
    assert [(frame.width, frame.height) for frame in frames] == [(128, 48)] * 4
