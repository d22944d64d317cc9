"""The viewer of a ZeroMQ stream: addresses, damaged and oversized messages, and publishers that come and go."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from dataclasses import replace

import pytest
import zmq

from overlays.sinks.zeromq import ZeroMqSink
from overlays.wire.message import encode
from overlays.wire.subscriber import LatestMessage
from overlays.wire.viewer import Viewer
from pipeline.errors import ImageError, SourceError, WireError, WireVersionError
from tests.support.viewers import ANY, Publisher, first, joined, nothing_comes


def test_viewer_connects_to_a_late_and_a_restarted_publisher(overlaid):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    with Viewer(address) as viewer:
        assert nothing_comes(viewer, polls=2)
        for life in range(2):
            taken_at = time.monotonic() - life
            with Publisher(ZeroMqSink(address), lambda _: overlaid(label=f"life {life}", taken_at=taken_at), 50):  # noqa: B023
                assert first(viewer).header.findings[0].label == f"life {life}"


def test_viewer_timeout_gives_none(overlaid):
    now = [100.0]
    with ZeroMqSink(ANY) as sink, Viewer(sink.endpoint, clock=lambda: now[0]) as viewer:
        now[0] = 107.0
        assert viewer.silent_seconds == 7.0
        with Publisher(sink, lambda index: overlaid(index=index), 50):
            first(viewer)
        assert viewer.silent_seconds == 0.0


class Raw:
    """A bare publisher that can say anything."""

    def __init__(self, out):
        self.out = out
        self.port = out.bind_to_random_port("tcp://127.0.0.1")

    def watched(self, **options):
        return Viewer(f"tcp://127.0.0.1:{self.port}", **options)

    def joined(self):
        while self.out.poll(5000):
            if self.out.recv() == b"\x01":
                return True
        return False

    def say(self, parts):
        self.out.send_multipart(parts)


@pytest.fixture
def raw():
    context = zmq.Context()
    out = context.socket(zmq.XPUB)
    out.setsockopt(zmq.XPUB_VERBOSE, 1)
    out.setsockopt(zmq.SNDHWM, 0)
    yield Raw(out)
    out.close(0)
    context.term()


def test_damaged_messages_are_counted_and_skipped(raw, overlaid, caplog):
    good = encode(overlaid(index=9), sent_at_unix=0.0, now_monotonic=0.0)
    with raw.watched() as viewer:
        assert raw.joined()
        for bad in ([b"x"], [b"line", b"{}", b""], [b"line"] * 5000, [b"line", b"\xff", good[2]]):
            raw.say(bad)
            assert nothing_comes(viewer, polls=2)
        raw.say(good)
        assert first(viewer).header.index == 9
        assert viewer.damaged == 4
        assert type(viewer.last_error) is WireError
    assert len([r for r in caplog.records if "cannot be decoded" in r.message]) == 1


def test_viewer_can_raise_errors_and_continue(raw, overlaid):
    good = encode(overlaid(index=9), sent_at_unix=0.0, now_monotonic=0.0)
    with raw.watched(damaged="raise") as viewer:
        assert raw.joined()
        for bad, kind in (([b"x"], WireError), ([*good[:2], b"GIF89a"], ImageError)):
            raw.say(bad)
            with pytest.raises(kind):
                first(viewer)
        raw.say(good)
        assert first(viewer).header.index == 9


def test_newer_publisher_is_distinguished_from_damage(raw):
    with raw.watched() as viewer:
        assert raw.joined()
        raw.say([b"line", b'{"version": 2}', b""])
        with pytest.raises(WireVersionError, match="update recipro-stream"):
            first(viewer)


def test_lost_publisher_is_distinguished_from_an_oversized_message(overlaid, wait_until):
    with Viewer("tcp://127.0.0.1:1") as viewer:
        wait_until(lambda: nothing_comes(viewer, polls=1) and viewer.problem == "no publisher answers at this address")
    sink = ZeroMqSink(ANY)
    with ExitStack() as stack:
        stack.enter_context(sink)
        viewer = stack.enter_context(Viewer(sink.endpoint))
        joined(sink, wait_until)
        sink.put(overlaid())
        assert first(viewer).header.index == 0
        wait_until(lambda: not viewer.problem)
        sink.__exit__(None, None, None)
        wait_until(lambda: nothing_comes(viewer, polls=1) and viewer.problem == "no publisher answers at this address")
        assert nothing_comes(viewer, polls=12)
        assert viewer.oversized == 0
        sink.__enter__()


def test_oversized_message_is_never_stored(raw, overlaid, wait_until):
    now = [0.0]
    with raw.watched(maximum_bytes=10_000, clock=lambda: now[0]) as viewer:
        assert raw.joined()
        raw.say([b"line", b" " * 20_000, b""])
        assert nothing_comes(viewer, polls=2)
        assert viewer.damaged == 0
        good, seen = encode(overlaid(index=2), sent_at_unix=0.0, now_monotonic=0.0), []

        def back():
            now[0] += 0.5
            raw.say(good)
            seen.extend(r for r, _ in zip(viewer.messages_or_none(), range(1), strict=False) if r is not None)
            return bool(seen)

        wait_until(back)
        assert raw.joined(), "the connection was closed, and made again"
        assert seen[0].header.index == 2
        assert viewer.oversized == 1


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:5555", "tcp://127.0.0.1", "tcp://*:5555", "tcp://127.0.0.1:0", "tcp://127.0.0.1:70000", "http://x:1"],
)
def test_unreachable_address_is_refused_with_a_message(address):
    with pytest.raises(SourceError, match="for instance tcp://"):
        Viewer(address)


def test_unknown_host_is_refused_on_entering():
    with (
        pytest.raises(SourceError, match=r"cannot resolve host 'no-such-host\.invalid'"),
        Viewer("tcp://no-such-host.invalid:5555"),
    ):
        pass


def test_viewer_drops_a_lower_epoch_than_it_has_seen_of_a_camera(overlaid):
    viewer = Viewer("tcp://127.0.0.1:5999")

    def read(index: int, epoch: int | None):
        overlay = overlaid(index=index)
        frame = replace(overlay.explanation.frame, epoch=epoch)
        overlay = replace(overlay, explanation=replace(overlay.explanation, frame=frame))
        parts = encode(overlay, sent_at_unix=100.0 + index, now_monotonic=frame.captured_at)
        return viewer._read(LatestMessage(parts, 100.0 + index, 0))

    assert read(1, 5).header.epoch == 5
    assert read(2, 7).overlay().explanation.frame.epoch == 7
    assert read(3, 5) is None
    assert viewer.superseded == 1
    assert read(4, 7) is not None
    assert read(5, None) is not None  # a run that is no part of a fleet has taken the address
