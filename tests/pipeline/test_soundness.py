"""No single frame closes a sink: one with numbers that mean nothing is refused, counted and named."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import FrameError, SinkError, WireError
from pipeline.finite import unsound
from pipeline.frames import Box, DeletionCheck, Explanation, Finding, Frame, GroundTruth, HeatmapStats, Overlay, Region
from pipeline.loop import Pipeline
from pipeline.outputs import make_sink_worker
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


UNSOUND = {
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


@pytest.mark.parametrize("name", UNSOUND)
def test_a_number_that_is_not_finite_is_found_wherever_it_stands_and_named(name):
    assert name in unsound(UNSOUND[name])
    assert unsound(explained()) == ""


class Door:
    uri, lossless = "door", True

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

    def idle(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class Explaining:
    def __init__(self, unsound_at=()):
        self.unsound_at = unsound_at

    def explain(self, frames):
        return [UNSOUND["score"] if f.index in self.unsound_at else explained(f) for f in frames]


class Drawing:
    def render(self, explanation):
        assert np.isfinite([finding.score for finding in explanation.findings]).all()
        return Overlay(explanation.frame.image.copy(), explanation)


def run(door, count=20, unsound_at=()):
    explainer = Explaining(unsound_at)
    source = FakeSource(count, "line")
    return Pipeline(
        [(source, "wait")], explainer, Drawing(), [door], limits=RunLimits(batch_size=1), stop=threading.Event()
    ).run()


def test_an_unsound_frame_is_not_drawn_reaches_no_sink_and_closes_none(caplog):
    door = Door()
    outcome = run(door, unsound_at={8})
    assert door.got == [k for k in range(20) if k != 8]
    (outlet,) = outcome.sink_workers
    assert (outlet.delivered, outlet.refused, outlet.error) == (19, 1, None)
    assert "score of 'ok' is nan" in outlet.refusal
    assert len([r for r in caplog.records if "a frame is left out" in r.getMessage()]) == 1
    assert outcome.errors == ["door: 1 of 20 frames were refused; the last: " + outlet.refusal]


@pytest.mark.parametrize("error", [FrameError("too wide"), WireError("too long")])
def test_a_sink_may_refuse_any_number_of_frames_and_goes_on(error, caplog):
    door = Door(dict.fromkeys(range(19), error))
    (outlet,) = run(door).sink_workers
    assert (door.got, outlet.refused, outlet.error) == ([19], 19, None)
    assert len([r for r in caplog.records if "a frame is left out" in r.getMessage()]) == 1


def test_a_sink_that_says_that_it_is_broken_is_closed():
    outcome = run(Door({5: SinkError("gone")}))
    assert str(outcome.sink_workers[0].error) == "gone"


def test_a_bug_in_one_frame_closes_nothing_and_is_raised_at_the_end():
    door = Door({5: KeyError("bug")})
    with pytest.raises(KeyError, match="bug"):
        run(door)
    assert door.got == [k for k in range(20) if k != 5]


def test_an_error_of_the_system_closes_a_sink_only_where_it_stays():
    door = Door({5: OSError("unreachable")})
    outcome = run(door)
    assert door.got == [k for k in range(20) if k != 5]
    assert (outcome.sink_workers[0].refused, outcome.sink_workers[0].error) == (1, None)
    lasting = Door(dict.fromkeys(range(100), OSError("unreachable")))
    outcome = run(lasting, 100)
    assert str(outcome.sink_workers[0].error) == "unreachable"


def test_a_bug_in_every_frame_closes_the_sink():
    door = Door(dict.fromkeys(range(1, 100), KeyError("bug")))
    with pytest.raises(KeyError, match="bug"):
        run(door, 100)
    assert door.got == [0]


def test_an_error_while_nothing_comes_closes_no_sink_either():
    asked, door = threading.Event(), Door()
    errors = [WireError("the last frame is too large")]

    def idle():
        if errors:
            raise errors.pop()
        asked.set()

    door.idle = idle
    with make_sink_worker(door, door.put) as outlet:
        assert asked.wait(LIMIT_SECONDS)
    assert (outlet.refused, outlet.error) == (1, None)
