"""Every frame is delivered, or dropped for exactly one reason."""

from __future__ import annotations

import contextlib
import logging
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.drops import DeliveryTracker, DropReason, FrameCounts, format_drops
from pipeline.errors import EngineError, FrameError, SinkError, SourceError
from pipeline.frames import Explanation, Finding, Frame, Overlay, SignalLoss
from pipeline.loop import Pipeline
from pipeline.outputs import Outputs
from pipeline.ports import Explainer, Renderer, Sink, StopRequested
from pipeline.result import RunLimits
from pipeline.stats import RunStats
from tests.support.fakes import FakeSource

FRAME = Frame(np.zeros((2, 2, 3), np.uint8), "a", 7, 0.0)


def explanation_of(frame):
    return Explanation(frame, (Finding("hole", 0.9, np.zeros((2, 2), np.float32), 1),), "m", "l")


class FailingExplainer(Explainer):
    """Raises at batch ``fails_at``; sets ``stop`` at batch ``stops_at``."""

    def __init__(self, stop, *, fails_at=None, stops_at=None):
        self.stop, self.fails_at, self.stops_at = stop, fails_at, stops_at
        self.batches = 0

    def explain(self, frames):
        self.batches += 1
        if self.batches == self.fails_at:
            raise EngineError("out of memory")
        if self.batches == self.stops_at:
            self.stop.set()
        return [explanation_of(frame) for frame in frames]


class AsyncFailingExplainer(FailingExplainer):
    asynchronous = True

    def submit(self, frames):
        return lambda: self.explain(frames)


class FailingRenderer(Renderer):
    def __init__(self, fails_at=None):
        self.fails_at = fails_at

    def render(self, explanation):
        if explanation.frame.index == self.fails_at:
            raise ZeroDivisionError
        return Overlay(explanation.frame.image.copy(), explanation)

    def render_stale(self, explanation, signal_loss):
        return Overlay(explanation.frame.image.copy(), explanation, signal_loss)


class FailingSink(Sink):
    """Refuses, fails or closes at a frame index; a slow one handles a frame only when the run stops or 1 ms passed."""

    def __init__(self, uri, *, lossless, slow, trouble, at, stop):
        self.uri, self.lossless = uri, lossless
        self.slow, self.trouble, self.at, self.stop = slow, trouble, at, stop
        self.delivered = set()

    def needs_image(self, camera):
        return True

    def put(self, overlay):
        if self.slow:
            self.stop.wait(0.001)
        frame = overlay.explanation.frame
        if self.trouble is not None and frame.index == self.at:
            raise self.trouble
        if overlay.signal_loss is None:
            self.delivered.add((frame.camera, frame.index))


TROUBLES = st.sampled_from([None, FrameError("too wide"), SinkError("disk full"), StopRequested()])
SINKS = st.fixed_dictionaries(
    {"lossless": st.booleans(), "slow": st.booleans(), "trouble": TROUBLES, "at": st.integers(0, 20)}
)
SOURCES = st.tuples(st.integers(0, 25), st.sampled_from(["wait", "drop-oldest"]), st.booleans())
OPTIONAL = st.none() | st.integers(1, 20)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    sources=st.lists(SOURCES, min_size=1, max_size=3),
    sinks=st.lists(SINKS, max_size=2),
    asynchronous=st.booleans(),
    engine=st.tuples(OPTIONAL, OPTIONAL),
    render_fails_at=OPTIONAL,
    frames=OPTIONAL,
    batch_size=st.integers(1, 4),
)
def test_pipeline_counts_each_received_frame_as_delivered_or_dropped_once(
    sources, sinks, asynchronous, engine, render_fails_at, frames, batch_size
):
    stop = threading.Event()
    cameras = [
        (FakeSource(count, f"camera{k}", fails=SourceError("broken") if fails else None), overflow)
        for k, (count, overflow, fails) in enumerate(sources)
    ]
    outputs = [FailingSink(f"sink{k}", stop=stop, **sink) for k, sink in enumerate(sinks)]
    explainer = (AsyncFailingExplainer if asynchronous else FailingExplainer)(
        stop, fails_at=engine[0], stops_at=engine[1]
    )
    limits = RunLimits(frames=frames, batch_size=batch_size, sink_queue_frames=2)
    pipeline = Pipeline(cameras, explainer, FailingRenderer(render_fails_at), outputs, limits=limits, stop=stop)
    with contextlib.suppress(EngineError, ZeroDivisionError):
        pipeline.run()
    counts = pipeline.result.stats.frames
    for source, _ in cameras:
        camera = source.camera
        assert counts.received(camera) == source.given
        assert counts.received(camera) == counts.delivered(camera) + sum(counts.drops(camera).values())
        if outputs:
            delivered = set().union(*(sink.delivered for sink in outputs))
            assert counts.delivered(camera) == sum(name == camera for name, _ in delivered)
    for output, worker in zip(outputs, pipeline.result.sink_workers, strict=True):
        assert worker.delivered == len(output.delivered)


def run(count=10, *, sinks=(), explainer=None, renderer=None, overflow="wait", limits=None, source=None):
    stop = threading.Event()
    pipeline = Pipeline(
        [(source or FakeSource(count, "a"), overflow)],
        explainer or FailingExplainer(stop),
        renderer or FailingRenderer(),
        sinks,
        limits=limits or RunLimits(batch_size=1),
        stop=stop,
    )
    with contextlib.suppress(EngineError, ZeroDivisionError):
        pipeline.run()
    return pipeline.result


def sink(trouble=None, at=3, lossless=True):
    return FailingSink("sink", lossless=lossless, slow=False, trouble=trouble, at=at, stop=threading.Event())


def test_pipeline_delivers_a_frame_that_one_of_two_sinks_takes():
    result = run(10, sinks=[sink(FrameError("too wide")), sink()])
    assert (result.delivered, result.drops) == (10, {})


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"sinks": [sink(FrameError("too wide"))]}, DropReason.SINK_REFUSED),
        ({"sinks": [sink(SinkError("disk full"))]}, DropReason.SINK_CLOSED),
        ({"explainer": FailingExplainer(threading.Event(), fails_at=3)}, DropReason.ENGINE_FAILED),
        ({"explainer": AsyncFailingExplainer(threading.Event(), fails_at=3)}, DropReason.ENGINE_FAILED),
        ({"renderer": FailingRenderer(3), "sinks": [sink()]}, DropReason.RENDER_FAILED),
        ({"limits": RunLimits(frames=3, batch_size=4)}, DropReason.STOPPED),
    ],
)
def test_pipeline_names_the_reason_of_a_drop(arguments, reason):
    result = run(10, **arguments)
    assert result.drops[reason] >= 1
    assert result.received == result.delivered + result.dropped


def test_pipeline_logs_each_drop_at_debug_level(caplog):
    caplog.set_level(logging.DEBUG, "pipeline.drops")
    run(5, sinks=[sink(FrameError("too wide"))])
    drops = [record.getMessage() for record in caplog.records if record.name == "pipeline.drops"]
    assert drops == ["a: frame 3 dropped: sink_refused"]


def test_delivery_tracker_counts_frames_of_an_abandoned_sink_as_stopped():
    counts = FrameCounts()
    tracker = DeliveryTracker(counts)
    captured_at, left = (Overlay(FRAME.image, explanation_of(FRAME)) for _ in range(2))
    tracker.begin(captured_at, 2)
    tracker.begin(left, 2)
    tracker.settle(captured_at, None)
    tracker.settle(left, DropReason.SINK_REFUSED)
    tracker.close()
    tracker.settle(left, None)
    assert (counts.delivered("a"), counts.drops("a")) == (1, {DropReason.STOPPED: 1})


@pytest.mark.parametrize("trouble", [None, FrameError("too wide"), SinkError("disk full")])
def test_sink_worker_counts_frames_and_no_repeated_images(trouble):
    stats = RunStats(["a"])
    first, second, repeated = (explanation_of(replace(FRAME, index=index)) for index in (0, 1, 2))
    outputs = Outputs([sink(trouble, at=2)], stats, 16)
    with contextlib.ExitStack() as stack:
        outputs.start(stack)
        outputs.put(Overlay(FRAME.image, first), "wait")
        outputs.put_stale(lambda: Overlay(FRAME.image, repeated, SignalLoss(2.0)), "a")
        outputs.put(Overlay(FRAME.image, second), "wait")
    (worker,) = outputs.workers
    assert worker.delivered == stats.frames.delivered("a")
    assert worker.delivered + worker.dropped + worker.refused == 2


def test_report_of_a_lost_signal_reaches_sinks_that_need_images_or_ask_for_it():
    class Listener(Sink):
        uri = "listener"

        def __init__(self, *, reports_signal_loss):
            self.reports_signal_loss, self.seconds = reports_signal_loss, []

        def put(self, overlay):
            self.seconds.append(overlay.signal_loss.seconds)

    listener, other = Listener(reports_signal_loss=True), Listener(reports_signal_loss=False)
    outputs = Outputs([listener, other], RunStats(["a"]), 16)
    with contextlib.ExitStack() as stack:
        outputs.start(stack)
        outputs.put_stale(lambda: Overlay(FRAME.image, explanation_of(FRAME), SignalLoss(2.0)), "a")
    assert (listener.seconds, other.seconds) == ([2.0], [])


def test_format_drops_lists_each_reason():
    assert format_drops({}) == "0 dropped"
    drops = {DropReason.QUEUE_FULL: 2, DropReason.STOPPED: 1}
    assert format_drops(drops) == "3 dropped (2 queue_full, 1 stopped)"


def test_pipeline_counts_a_frame_once_when_drawing_fails_after_it_was_put(monkeypatch):
    def fail(_detector, _explanation):
        raise ZeroDivisionError

    monkeypatch.setattr("pipeline.signal_loss.SignalLossDetector.record", fail)
    result = run(5, sinks=[sink()])
    assert result.delivered == 1
    assert result.received == result.delivered + result.dropped
