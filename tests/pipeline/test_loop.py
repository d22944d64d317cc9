"""The pipeline: every frame that should arrive does, and what fails ends alone."""

import threading
from typing import ClassVar

import numpy as np
import pytest

from pipeline.errors import SinkError, SourceError
from pipeline.frames import Box, Explanation, Finding, GroundTruth, Overlay
from pipeline.loop import Pipeline
from pipeline.ports import Discovery, Explainer, Health, Renderer, Sink, StopRequested
from pipeline.result import RunLimits
from pipeline.stats import Histogram, RunStats
from tests.support.boxes import box, explained_boxes
from tests.support.fakes import FakeSource
from tests.support.limits import LIMIT_SECONDS


class FakeExplainer(Explainer):
    def __init__(self):
        self.batches = []

    def explain(self, frames):
        self.batches.append(len(frames))
        heat = np.array([[0, 1], [0, 0]], np.float32)
        return [Explanation(f, (Finding("hole", 0.9, heat, 1),), "m", "l", {"explain": 0.001}) for f in frames]


class FakeRenderer(Renderer):
    def __init__(self):
        self.rendered = 0

    def render(self, explanation):
        self.rendered += 1
        return Overlay(explanation.frame.image.copy(), explanation)

    def render_stale(self, explanation, silence):
        return Overlay(explanation.frame.image.copy(), explanation, silence)


class FakeSink(Sink):
    uri = "fake"
    lossless = True

    def __init__(self, fails_after=None, looks=True):
        self.got = []
        self.fails_after = fails_after
        self.looks = looks

    def needs_image(self, camera):
        return self.looks

    def put(self, overlay):
        if self.fails_after is not None and len(self.got) >= self.fails_after:
            raise SinkError("the disk is full")
        self.got.append(overlay.explanation.frame.index)


def run(sources, sinks, limits=None, explainer=None, renderer=None, stop=None):
    return Pipeline(
        [(source, "wait") for source in sources],
        explainer or FakeExplainer(),
        renderer or FakeRenderer(),
        sinks,
        limits=limits or RunLimits(batch_size=1),
        stop=stop or threading.Event(),
    ).run()


def test_pipeline_delivers_every_frame_of_a_file_to_a_lossless_sink():
    sink = FakeSink()
    result = run([FakeSource(100)], [sink])
    assert sink.got == list(range(100))
    assert (result.received, result.explained, result.dropped, result.errors) == (100, 100, 0, [])


def test_pipeline_keeps_the_frame_limit_with_larger_batches():
    sink = FakeSink()
    result = run([FakeSource(100)], [sink], RunLimits(frames=7, batch_size=4))
    assert sink.got == list(range(7))
    assert result.explained == 7


def test_pipeline_keeps_the_time_limit_without_frames():
    result = run([FakeSource(5, gate=threading.Event())], [FakeSink()], RunLimits(seconds=0.1))  # else it never ends
    assert result.explained == 0


def test_pipeline_continues_without_a_failed_sink_and_names_it():
    broken, whole = FakeSink(fails_after=3), FakeSink()
    result = run([FakeSource(50)], [broken, whole])
    assert whole.got == list(range(50))
    assert result.errors == ["the disk is full"]


def test_pipeline_ends_when_its_only_sink_failed():
    source = FakeSource(10**9)
    result = run([source], [FakeSink(fails_after=3)])
    assert result.errors == ["the disk is full"]


def test_pipeline_names_a_damaged_file_after_its_good_frames():
    sink = FakeSink()
    result = run([FakeSource(5, fails=SourceError("broke at frame 5"))], [sink])
    assert sink.got == list(range(5))
    assert result.errors == ["broke at frame 5"]


def test_pipeline_raises_a_bug_of_a_source():
    with pytest.raises(ZeroDivisionError):
        run([FakeSource(2, fails=ZeroDivisionError())], [FakeSink()])


def test_pipeline_renders_nothing_without_a_sink_that_needs_images():
    renderer, sink = FakeRenderer(), FakeSink(looks=False)
    run([FakeSource(10)], [sink], renderer=renderer)
    assert renderer.rendered == 0
    assert len(sink.got) == 10


def test_pipeline_scores_the_pointing_game_on_frames_with_ground_truth():
    class Line(FakeSource):
        def frames(self, stop):
            truths = [
                GroundTruth("hole", (Box(1, 0, 2, 1),)),
                GroundTruth("hole", (Box(0, 1, 1, 2),)),
                GroundTruth("dent", (Box(1, 0, 2, 1),)),
                None,
            ]
            for frame, truth in zip(super().frames(stop), truths, strict=False):
                yield type(frame)(frame.image, frame.camera, frame.index, frame.captured_at, truth=truth)

    camera = run([Line(4)], [FakeSink()]).stats.cameras["fake"]
    assert (camera.judged, camera.right, camera.pointed, camera.hits) == (3, 2, 2, 1)


def test_frames_of_a_detector_are_not_compared_with_the_label_of_the_image():
    stats = RunStats(["north"])
    truth = GroundTruth("car", (Box(0, 0, 60, 40),))
    for boxes in ((box(0, 0, label="car"), box(100, 0, label="bus")), ()):
        stats.count_explained(explained_boxes(*boxes, truth=truth))
    camera = stats.cameras["north"]
    assert (camera.explained, camera.judged) == (2, 0)


def test_histogram_returns_quantiles_to_within_a_bucket():
    histogram = Histogram()
    for k in range(1, 1001):
        histogram.add(k / 1000)
    assert histogram.quantile(0.5) == pytest.approx(0.5, rel=0.13)
    assert histogram.quantile(0.99) == pytest.approx(0.99, rel=0.13)
    assert Histogram().quantile(0.5) == 0.0


def test_pipeline_ends_when_a_window_is_closed_without_frames():
    class Closed(FakeSink):
        def idle(self):
            raise StopRequested

    result = run([FakeSource(5, gate=threading.Event())], [Closed()])  # else it never ends
    assert result.explained == 0


def test_pipeline_shows_a_stalled_camera_in_sinks_that_need_images_and_counts_no_frame():
    stalled, seen = threading.Event(), threading.Event()

    class Stalls(FakeSource):
        live = True

        def frames(self, stop):
            yield from super().frames(stop)
            stalled.set()
            self.health = Health("stalled", "no frame for 2 s")
            stop.wait(20)

    class Looking(FakeSink):
        def put(self, overlay):
            super().put(overlay)
            if overlay.signal_loss is not None:
                self.silence = overlay.signal_loss
                seen.set()

    looking, blind = Looking(), FakeSink(looks=False)
    stop = threading.Event()
    threading.Thread(target=lambda: (seen.wait(LIMIT_SECONDS), stop.set()), name="ender").start()
    source = Stalls(3)
    limits = RunLimits()
    result = Pipeline(
        [(source, "wait")], FakeExplainer(), FakeRenderer(), [looking, blind], limits=limits, stop=stop
    ).run()
    assert seen.is_set()
    assert stalled.is_set()
    assert (looking.silence.state, looking.silence.reason) == ("stalled", "no frame for 2 s")
    assert looking.got[:4] == [0, 1, 2, 2]
    assert blind.got == [0, 1, 2]
    assert result.explained == 3


class FakeDiscovery(Discovery):
    """Returns a source at the first call and another after the first has ended; then ends the run."""

    def __init__(self, *sources):
        self.sources = list(sources)
        self.stop = threading.Event()

    def take(self):
        if not self.sources:
            self.stop.set()
            return []
        return [self.sources.pop(0)]


def test_pipeline_delivers_the_frames_of_sources_that_appear_during_the_run():
    sink, discovery = FakeSink(), FakeDiscovery(FakeSource(20, "late"), FakeSource(20, "later"))
    limits = RunLimits(frames=50)
    sources = [(FakeSource(10, "first"), None)]
    pipeline = Pipeline(
        sources, FakeExplainer(), FakeRenderer(), [sink], limits=limits, stop=threading.Event(), discovery=discovery
    )
    result = pipeline.run()
    assert len(sink.got) == 50
    assert [worker.camera for worker in result.source_workers] == ["first", "late", "later"]
    assert {name: camera.explained for name, camera in result.stats.cameras.items()} == {
        "first": 10, "late": 20, "later": 20,
    }  # fmt: skip


def test_pipeline_goes_on_without_sources_while_more_may_appear():
    discovery = FakeDiscovery()
    result = Pipeline(
        [], FakeExplainer(), FakeRenderer(), [], limits=RunLimits(), stop=discovery.stop, discovery=discovery
    ).run()
    assert (result.received, result.errors) == (0, [])
    assert discovery.stop.is_set()


def test_pipeline_raises_an_error_of_the_discovery_and_closes_its_sinks():
    class Failing(FakeDiscovery):
        def take(self):
            if not self.sources:
                raise SourceError("the publisher is newer")
            return super().take()

    sink = FakeSink()
    pipeline = Pipeline(
        [], FakeExplainer(), FakeRenderer(), [sink], limits=RunLimits(), stop=threading.Event(),
        discovery=Failing(FakeSource(5)),
    )  # fmt: skip
    with pytest.raises(SourceError, match="newer"):
        pipeline.run()
    counts = pipeline.result.stats.frames
    assert counts.received() == counts.delivered() + counts.dropped()


@pytest.mark.parametrize("count", [0, 2])
def test_pipeline_shows_its_state_while_no_frame_comes(count):
    stop, seen = threading.Event(), []

    class Silent(FakeSource):
        def frames(self, stop):
            yield from super().frames(stop)
            stop.wait(LIMIT_SECONDS)

    def watch(result):
        seen.append(result.received)
        if seen.count(count) > 3:
            stop.set()

    Pipeline(
        [(Silent(count), "wait")], FakeExplainer(), FakeRenderer(), [FakeSink()],
        limits=RunLimits(batch_size=1), stop=stop, watch=watch,
    ).run()  # fmt: skip
    assert seen.count(count) > 3, "the state was shown while nothing came"


def test_pipeline_draws_other_cameras_while_drawing_of_one_is_blocked():
    outcome = threading.Event()

    class Stuck(FakeRenderer):
        def render(self, explanation):
            if explanation.frame.camera == "big":
                assert outcome.wait(LIMIT_SECONDS), "the other camera's frames never came"
            return super().render(explanation)

    class Counting(FakeSink):
        def put(self, overlay):
            super().put(overlay)
            if overlay.explanation.frame.camera == "small" and overlay.explanation.frame.index == 49:
                outcome.set()

    sink, big = Counting(), FakeSource(30, "big")
    result = run([big, FakeSource(50, "small")], [sink], renderer=Stuck())
    assert outcome.is_set()
    assert result.explained == 80
    assert sorted(sink.got) == sorted([*range(30), *range(50)]), "nothing of either file is lost"


def test_pipeline_prepares_a_frame_in_its_cameras_thread():
    class Preparing(FakeSink):
        prepared: ClassVar = []

        def prepare(self, overlay):
            self.prepared.append((overlay, threading.current_thread().name))

    sink = Preparing()
    run([FakeSource(3, "a"), FakeSource(3, "b")], [sink])
    assert {name for _, name in sink.prepared} == {"queue drawing a", "queue drawing b"}
    assert len(sink.prepared) == len(sink.got) == 6


def test_pipeline_lets_working_sinks_complete_their_account_after_the_last_frame():
    class Completing(FakeSink):
        def on_run_end(self):
            self.got.append("end")

    working, failed = Completing(), Completing(fails_after=2)
    run([FakeSource(5)], [working, failed])
    assert working.got == [0, 1, 2, 3, 4, "end"]
    assert failed.got == [0, 1]


def test_pipeline_lets_the_explainer_work_while_no_frame_comes():
    stop = threading.Event()

    class Silent(FakeSource):
        def frames(self, stop):
            yield from super().frames(stop)
            stop.wait(LIMIT_SECONDS)

    class Working(FakeExplainer):
        idled = 0

        def idle(self):
            self.idled += len(self.batches) == 2
            if self.idled == 2:
                stop.set()

    working = Working()
    run([Silent(2)], [FakeSink()], explainer=working, stop=stop)
    assert working.idled == 2
