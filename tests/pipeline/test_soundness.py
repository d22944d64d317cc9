"""Explanations with numbers that are not finite are refused, and no single frame closes a sink."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import FrameError, SinkError, WireError
from pipeline.finite import find_non_finite
from pipeline.frames import Box, DeletionCheck, Explanation, Finding, Frame, GroundTruth, HeatmapStats, Overlay, Region
from pipeline.loop import Pipeline
from pipeline.outputs import make_sink_worker
from pipeline.ports import Explainer, Renderer, Sink
from pipeline.result import RunLimits
from tests.support.fakes import FakeSource
from tests.support.limits import LIMIT_SECONDS

NAN, INF = float("nan"), float("inf")


def explained(frame=None, **changes):
    frame = frame or Frame(np.zeros((2, 2, 3), np.uint8), "line", 3, 1.0, 0.5)
    finding = Finding("ok", 0.5, np.zeros((2, 2), np.float32))
    return replace(Explanation(frame, (finding,), "method", "layer", {"explain": 0.1}), **changes)


def with_finding(**changes):
    return explained(findings=(replace(explained().findings[0], **changes),))


NON_FINITE = {
    "score": with_finding(score=NAN),
    "heat": with_finding(heat=np.full((2, 2), INF, np.float32)),
    "box": with_finding(box=Box(0, 0, NAN, 1)),
    "entropy": with_finding(heatmap_stats=HeatmapStats(0.1, NAN, None, None)),
    "centre": with_finding(heatmap_stats=HeatmapStats(0.1, 0.1, (NAN, 1.0), None)),
    "heat_inside": with_finding(heatmap_stats=HeatmapStats(0.1, 0.1, None, None, {"belt": INF})),
    "heat_region": explained(heat_region=Box(0, 0, INF, 1)),
    "timing": explained(timings={"explain": NAN}),
    "region": explained(regions=(Region("belt", ((0.0, NAN),)),)),
    "deletion": explained(deletion=DeletionCheck("ok", NAN, 0.5, 1, 0.0)),
    "pts_seconds": explained(replace(explained().frame, pts_seconds=NAN)),
    "true box": explained(replace(explained().frame, truth=GroundTruth("ok", (Box(0, 0, NAN, 1),)))),
}


@pytest.mark.parametrize("name", NON_FINITE)
def test_find_non_finite_names_the_number(name):
    assert name in find_non_finite(NON_FINITE[name])
    assert find_non_finite(explained()) == ""


class RecordingSink(Sink):
    uri, lossless = "sink", True

    def __init__(self, refuses=()):
        self.refuses = dict(refuses)
        self.got = []

    def needs_image(self, camera):
        return True

    def put(self, overlay):
        index = overlay.explanation.frame.index
        if index in self.refuses:
            raise self.refuses[index]
        self.got.append(index)


class Explaining(Explainer):
    def __init__(self, non_finite_at=()):
        self.non_finite_at = non_finite_at

    def explain(self, frames):
        return [NON_FINITE["score"] if f.index in self.non_finite_at else explained(f) for f in frames]


class Drawing(Renderer):
    def render(self, explanation):
        assert np.isfinite([finding.score for finding in explanation.findings]).all()
        return Overlay(explanation.frame.image.copy(), explanation)

    def render_stale(self, explanation, signal_loss):
        raise AssertionError("no signal is lost")


def run(sink, count=20, non_finite_at=()):
    explainer = Explaining(non_finite_at)
    source = FakeSource(count, "line")
    return Pipeline(
        [(source, "wait")], explainer, Drawing(), [sink], limits=RunLimits(batch_size=1), stop=threading.Event()
    ).run()


def test_pipeline_refuses_a_frame_that_is_not_finite_and_continues(caplog):
    sink = RecordingSink()
    result = run(sink, non_finite_at={8})
    assert sink.got == [k for k in range(20) if k != 8]
    (worker,) = result.sink_workers
    assert (worker.delivered, worker.refused, worker.error) == (19, 1, None)
    assert "score of 'ok' is nan" in worker.refusal
    assert len([r for r in caplog.records if "a frame is left out" in r.getMessage()]) == 1
    assert result.errors == ["sink: 1 of 20 frames were refused; the last: " + worker.refusal]


@pytest.mark.parametrize("error", [FrameError("too wide"), WireError("too long")])
def test_sink_worker_continues_after_any_number_of_refused_frames(error, caplog):
    sink = RecordingSink(dict.fromkeys(range(19), error))
    (worker,) = run(sink).sink_workers
    assert (sink.got, worker.refused, worker.error) == ([19], 19, None)
    assert len([r for r in caplog.records if "a frame is left out" in r.getMessage()]) == 1


def test_sink_worker_closes_after_a_sink_error():
    result = run(RecordingSink({5: SinkError("gone")}))
    assert str(result.sink_workers[0].error) == "gone"


def test_pipeline_raises_a_bug_of_one_frame_at_the_end():
    sink = RecordingSink({5: KeyError("bug")})
    with pytest.raises(KeyError, match="bug"):
        run(sink)
    assert sink.got == [k for k in range(20) if k != 5]


def test_sink_worker_closes_only_after_repeated_system_errors():
    sink = RecordingSink({5: OSError("unreachable")})
    result = run(sink)
    assert sink.got == [k for k in range(20) if k != 5]
    assert (result.sink_workers[0].refused, result.sink_workers[0].error) == (1, None)
    lasting = RecordingSink(dict.fromkeys(range(100), OSError("unreachable")))
    result = run(lasting, 100)
    assert str(result.sink_workers[0].error) == "unreachable"


def test_sink_worker_closes_after_a_bug_in_every_frame():
    sink = RecordingSink(dict.fromkeys(range(1, 100), KeyError("bug")))
    with pytest.raises(KeyError, match="bug"):
        run(sink, 100)
    assert sink.got == [0]


def test_sink_worker_continues_after_an_error_of_idle():
    calls, sink = threading.Event(), RecordingSink()
    errors = [WireError("the last frame is too large")]

    def idle():
        if errors:
            raise errors.pop()
        calls.set()

    sink.idle = idle
    with make_sink_worker(sink, sink.put) as worker:
        assert calls.wait(LIMIT_SECONDS)
    assert (worker.refused, worker.error) == (1, None)
