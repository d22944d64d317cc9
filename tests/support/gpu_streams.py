"""Streams of a GPU that run on the CPU, and record the order of events and waits."""

from __future__ import annotations

from contextlib import nullcontext

from engine.gpu.streams import CpuStreams


class RecordingStreams(CpuStreams):
    """Runs everything at once on the CPU, and records the calls."""

    def __init__(self, device=None):
        super().__init__(device)
        self.calls = []
        self.marks = 0
        self.captures = []

    def stream(self, lane):
        self.calls.append(("on", lane))
        return nullcontext()

    def record_event(self, lane):
        self.marks += 1
        self.calls.append(("mark", lane, self.marks))
        return self.marks

    def wait_event(self, lane, mark):
        self.calls.append(("follow", lane, mark))

    def synchronize(self, mark):
        self.calls.append(("wait", mark))

    def encoder_stream(self):
        self.calls.append(("encoding",))
        return nullcontext()

    def capture_graph(self, call, name):
        self.captures.append(name)
        return call
