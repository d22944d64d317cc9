"""An explainer that works ahead: batches begin before the last one is finished, and nothing else changes."""

import threading

import numpy as np
import pytest

from pipeline.frames import Explanation, Finding, Overlay
from pipeline.guards.monitor import AsyncExplanationMonitor, ExplanationMonitor
from pipeline.loop import Pipeline
from pipeline.ports import AsyncExplainer, Explainer
from pipeline.result import RunLimits
from tests.pipeline.test_loop import FakeExplainer, FakeRenderer, FakeSink
from tests.support.fakes import FakeSource
from tests.support.limits import LIMIT_SECONDS


class AheadExplainer:
    """Begins at once; finishes each batch only when the next was begun, or nothing more comes."""

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


def test_the_next_batch_is_begun_before_the_last_is_finished_and_all_arrive_in_order():
    explainer, sink = AheadExplainer(12), FakeSink()
    outcome = run(explainer, sink, RunLimits(batch_size=1))
    assert explainer.most_under_way >= 2
    assert sink.got == list(range(12))
    assert outcome.explained == 12
    assert explainer.threads == {"queue engine"}


def test_a_limit_of_frames_counts_what_was_begun():
    explainer, sink = AheadExplainer(3), FakeSink()
    outcome = run(explainer, sink, RunLimits(frames=5, batch_size=2))
    assert sink.got == [0, 1, 2, 3, 4]
    assert outcome.explained == 5


def test_an_error_in_finishing_ends_the_run_and_is_raised():
    class Failing(AheadExplainer):
        def submit(self, frames):
            def finish():
                raise ZeroDivisionError("the card fell out")

            return finish

    with pytest.raises(ZeroDivisionError, match="fell out"):
        run(Failing(1), FakeSink(), RunLimits(batch_size=1), count=10_000)


def test_guards_stand_before_one_that_works_ahead_as_before_any_other():
    explainer, sink = AheadExplainer(12), FakeSink()
    guardian = AsyncExplanationMonitor(explainer)
    assert isinstance(guardian, AsyncExplainer)
    assert isinstance(guardian, Explainer)
    assert not isinstance(ExplanationMonitor(FakeExplainer()), AsyncExplainer)
    run(guardian, sink, RunLimits(batch_size=1))
    assert sink.got == list(range(12))
    (measured,) = AsyncExplanationMonitor(AheadExplainer(1)).explain([FakeFrame.make()])
    assert measured.first.heatmap_stats is not None


class FakeFrame:
    @staticmethod
    def make():
        (frame,) = FakeSource(1).frames(threading.Event())
        return frame


def test_an_overlay_without_a_jpeg_is_what_it_always_was():
    frame = FakeFrame.make()
    assert Overlay(frame.image, Explanation(frame, (), "m", "l")).jpeg is None
