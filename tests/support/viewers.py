"""Viewers of a ZeroMQ sink: waiting for them, and for their messages."""

from __future__ import annotations

import threading
import time

from tests.support.limits import LIMIT_SECONDS

ANY = "tcp://127.0.0.1:0"


def joined(sink, wait_until, topic=b""):
    """Wait until the sink knows of a viewer."""

    def heard():
        sink.idle()
        return topic in sink.topics

    wait_until(heard)


def first(viewer, seconds=LIMIT_SECONDS):
    """The next message; fails when none comes."""
    deadline = time.monotonic() + seconds
    for received in viewer.messages_or_none():
        if received is not None:
            return received
        assert time.monotonic() < deadline, "nothing came"
    raise AssertionError


def nothing_comes(viewer, polls=4):
    return all(seen is None for _, seen in zip(range(polls), viewer.messages_or_none(), strict=False))


class Publisher:
    """Puts frames at a pace, in a thread of the test's own, until left; opens the sink where it is not open."""

    def __init__(self, sink, make, rate):
        self.sink, self.make, self.rate = sink, make, rate
        self.stop, self.put = threading.Event(), 0
        self.thread = threading.Thread(target=self._run)

    def __enter__(self):
        self.opened = self.sink._socket is None and self.sink.__enter__()
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()
        if self.opened:
            self.sink.__exit__(None, None, None)

    def _run(self):
        while not self.stop.wait(1 / self.rate):
            self.sink.put(self.make(self.put))
            self.put += 1
