"""Asynchronous explainers: a batch is submitted before the previous one is finished."""

import threading

import numpy as np
import pytest

from pipeline.frames import Explanation, Finding, Overlay
from pipeline.guards.monitor import ExplanationMonitor
from pipeline.loop import Pipeline
from pipeline.ports import Explainer
from pipeline.result import RunLimits
from tests.pipeline.test_loop import FakeExplainer, FakeRenderer, FakeSink
from tests.support.fakes import FakeSource
from tests.support.limits import LIMIT_SECONDS


class AheadExplainer(Explainer):
    """Starts each batch at once; finishes it only after the next batch was started, or at the end."""

    asynchronous = True

    def __init__(self, count):
        self.begun = 0
        self.most_under_way = 0
        self.finished = 0
        self.threads = set()
        self._count = count
        self._bell = threading.Condition()

    def submit(self, frames):
        with self._bell:
            self.begun += 1
            number = self.begun
            self.most_under_way = max(self.most_under_way, self.begun - self.finished)
            self._bell.notify_all()

        def finish():
            self.threads.add(threading.current_thread().name)
            with self._bell:
                self._bell.wait_for(lambda: self.begun > number or self.begun == self._count, LIMIT_SECONDS)
                self.finished += 1
            heat = np.array([[0, 1]], np.float32)
            return [Explanation(f, (Finding("hole", 0.9, heat, 1),), "m", "l") for f in frames]

        return finish

    def explain(self, frames):
        return self.submit(frames)()


def run(explainer, sink, limits, count=12):
    return Pipeline(
        [(FakeSource(count), "wait")], explainer, FakeRenderer(), [sink], limits=limits, stop=threading.Event()
    ).run()


def test_pipeline_submits_a_batch_before_the_previous_one_is_finished():
    explainer, sink = AheadExplainer(12), FakeSink()
    outcome = run(explainer, sink, RunLimits(batch_size=1))
    assert explainer.most_under_way >= 2
    assert sink.got == list(range(12))
    assert outcome.explained == 12
    assert explainer.threads == {"queue engine"}


def test_pipeline_frame_limit_counts_submitted_frames():
    explainer, sink = AheadExplainer(3), FakeSink()
    outcome = run(explainer, sink, RunLimits(frames=5, batch_size=2))
    assert sink.got == [0, 1, 2, 3, 4]
    assert outcome.explained == 5


def test_pipeline_raises_an_error_of_finishing_a_batch():
    class Failing(AheadExplainer):
        def submit(self, frames):
            def finish():
                raise ZeroDivisionError("the card fell out")

            return finish

    with pytest.raises(ZeroDivisionError, match="fell out"):
        run(Failing(1), FakeSink(), RunLimits(batch_size=1), count=10_000)


def test_async_monitor_evaluates_guards():
    explainer, sink = AheadExplainer(12), FakeSink()
    monitor = ExplanationMonitor(explainer)
    assert monitor.asynchronous
    assert not ExplanationMonitor(FakeExplainer()).asynchronous
    run(monitor, sink, RunLimits(batch_size=1))
    assert sink.got == list(range(12))
    (measured,) = ExplanationMonitor(AheadExplainer(1)).explain([FakeFrame.make()])
    assert measured.first.heatmap_stats is not None


class FakeFrame:
    @staticmethod
    def make():
        (frame,) = FakeSource(1).frames(threading.Event())
        return frame


def test_overlay_has_no_jpeg_by_default():
    frame = FakeFrame.make()
    assert Overlay(frame.image, Explanation(frame, (), "m", "l")).jpeg is None
