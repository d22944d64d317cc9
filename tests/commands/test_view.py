"""`view` from the command line: its figures, its exit codes, its end."""

from __future__ import annotations

import os
import re
import signal
import threading
import time

import numpy as np
import pytest

from overlays.sinks.jsonl import JsonlSink
from overlays.sinks.zeromq import ZeroMqSink
from pipeline.errors import SinkError
from pipeline.frames import Explanation, Finding, Frame, Overlay
from tests.support.logs import log_lines


@pytest.fixture
def published():
    """The address of a run that publishes a frame every now and then."""
    stop = threading.Event()

    def publish(sink):
        index = 0
        while not stop.wait(0.01):
            frame = Frame(np.full((48, 64, 3), 90, np.uint8), "door", index, time.monotonic())
            finding = Finding("dent", 0.9, np.ones((2, 2), np.float32))
            sink.put(Overlay(frame.image.copy(), Explanation(frame, (finding,), "recipro-cam/point", "layer4")))
            index += 1

    with ZeroMqSink("tcp://127.0.0.1:0") as sink:
        publishing = threading.Thread(target=publish, args=(sink,))
        publishing.start()
        yield sink.endpoint
        stop.set()
        publishing.join()


def test_view_prints_a_summary_whose_figures_agree(command, published, tmp_path):
    code, output, errors = command("view", published, "--sink", "seen.jsonl", "--frames", 5)
    assert code == 0, errors
    figures = re.search(r"(\d+) frames received, 5 explained, (\d+) delivered, (\d+) dropped", output)
    assert figures, output
    received, delivered, dropped = map(int, figures.groups())
    assert received == delivered + dropped
    assert f"seen.jsonl: {delivered} delivered" in output
    assert len(log_lines(tmp_path / "seen.jsonl")) == delivered


def test_view_whose_sink_fails_ends_with_the_exit_code_of_sinks(command, published, monkeypatch):
    def fail(_sink, _overlay):
        raise SinkError("seen.jsonl: the disk is full")

    monkeypatch.setattr(JsonlSink, "put", fail)
    code, output, errors = command("view", published, "--sink", "seen.jsonl")
    assert code == 4
    assert "error: seen.jsonl: the disk is full" in errors
    assert "0 delivered" in output


def test_view_ends_in_order_at_an_interrupt(command, published, monkeypatch):
    put = JsonlSink.put

    def put_and_interrupt(sink, overlay):
        put(sink, overlay)
        if not interrupted.is_set():
            interrupted.set()
            os.kill(os.getpid(), signal.SIGINT)

    interrupted = threading.Event()
    monkeypatch.setattr(JsonlSink, "put", put_and_interrupt)
    code, output, errors = command("view", published, "--sink", "seen.jsonl")
    assert code == 0, errors
    assert "frames received" in output or "1 frame received" in output
