"""Cameras that join and leave during a run: each frame is accounted for, and the other cameras notice nothing."""

import threading

import numpy as np
import pytest

from pipeline.errors import SinkError, SourceError
from pipeline.frames import Explanation, Finding, Overlay
from pipeline.loop import Pipeline
from pipeline.ports import Discovery, Explainer, Renderer, Sink
from pipeline.result import RunLimits
from tests.support.fakes import FakeSource
from tests.support.limits import LIMIT_SECONDS


class Notes(Explainer, Renderer, Sink):
    """Explains, draws and keeps what arrives; asks for changes once a camera has delivered enough frames."""

    uri = "notes"
    lossless = True

    def __init__(self, discovery=None, after=10):
        self.got, self.forgotten, self.discovery, self.after = [], [], discovery, after

    def explain(self, frames):
        heat = np.ones((1, 1), np.float32)
        return [Explanation(frame, (Finding("a", 0.9, heat, 0),), "m", "l", {}) for frame in frames]

    def render(self, explanation):
        return Overlay(explanation.frame.image, explanation)

    def render_stale(self, explanation, signal_loss):
        return Overlay(explanation.frame.image, explanation, signal_loss)

    def put(self, overlay):
        if overlay.signal_loss is None:
            frame = overlay.explanation.frame
            self.got.append((frame.camera, frame.index))
            if self.discovery is not None:
                self.discovery.delivered(frame.camera, self.of(frame.camera))

    def forget_camera(self, camera):
        self.forgotten.append((camera, len(self.of(camera))))

    def of(self, camera):
        return [index for name, index in self.got if name == camera]


class Part(Notes):
    """An explainer or a renderer."""


class Script(Discovery):
    """Removes a camera after its tenth delivered frame, and adds further sources once it has left."""

    def __init__(self, leaves, *successors):
        self.leaves, self.successors = leaves, list(successors)
        self.added, self.asked, self.left = [], [], []

    def delivered(self, camera, indices):
        if camera == self.leaves and len(indices) == 10:
            self.asked.append(camera)
            self.notify()

    def take_removed(self):
        asked, self.asked = self.asked, []
        return asked

    def take(self):
        added, self.added = self.added, []
        return added

    def on_removed(self, source):
        self.left.append(source)
        self.added = self.successors[:]
        self.notify()


def run(sources, script, *, stop_when, limits=None):
    explainer, renderer, sink, stop = Part(), Part(), Notes(script), threading.Event()

    def watch(result):
        if stop_when(sink, script, result):
            stop.set()

    pipeline = Pipeline(
        [(source, None) for source in sources], explainer, renderer, [sink],
        limits=limits or RunLimits(batch_size=2), stop=stop, watch=watch, discovery=script,
    )  # fmt: skip
    guard = threading.Timer(LIMIT_SECONDS, stop.set)
    guard.start()
    result = pipeline.run()
    guard.cancel()
    return result, sink, explainer, renderer


@pytest.mark.parametrize("overflow", ["wait", "drop-oldest"])
def test_pipeline_accounts_for_every_frame_of_a_camera_that_leaves(overflow):
    leaver, stayer = FakeSource(10**6, "leaver"), FakeSource(400, "stayer")
    leaver.overflow = stayer.overflow = "wait"
    if overflow == "drop-oldest":
        leaver.overflow = overflow
    result, sink, explainer, renderer = run(
        [leaver, stayer], script := Script("leaver"),
        stop_when=lambda sink, script, _: script.left and len(sink.of("stayer")) == 400,
    )  # fmt: skip
    assert script.left == [leaver]
    assert sink.of("stayer") == list(range(400))
    counts = result.stats.frames
    for camera in ("leaver", "stayer"):
        assert counts.received(camera) == counts.delivered(camera) + counts.dropped(camera)
    assert counts.delivered("leaver") == len(sink.of("leaver")) >= 10
    assert leaver.given < 10**6
    assert [worker.camera for worker in result.source_workers] == ["stayer"]
    assert sink.forgotten == [("leaver", len(sink.of("leaver")))]
    assert [camera for camera, _ in explainer.forgotten + renderer.forgotten] == ["leaver", "leaver"]


def test_pipeline_continues_a_camera_that_comes_again_under_its_name():
    second = FakeSource(30, "leaver")
    second.overflow = "wait"
    result, sink, _, _ = run(
        [FakeSource(10**6, "leaver")], Script("leaver", second),
        stop_when=lambda sink, script, result: script.left and result.source_workers[0].finished,
    )  # fmt: skip
    assert sink.of("leaver")[-30:] == list(range(30))
    counts = result.stats.frames
    assert counts.received("leaver") == counts.delivered("leaver") + counts.dropped("leaver")
    assert result.stats.cameras["leaver"].explained == result.explained >= 40


def test_error_of_a_camera_that_is_removed_afterwards_stays_in_the_result():
    failed = FakeSource(10, "leaver", fails=SourceError("the file is damaged"))
    result, *_ = run([failed, FakeSource(20, "stayer")], Script("leaver"), stop_when=lambda _, script, __: script.left)
    assert result.errors == ["the file is damaged"]


def test_pipeline_ignores_the_removal_of_an_unknown_camera():
    script = Script("nobody")
    script.asked = ["nobody"]
    result, *_ = run(
        [FakeSource(20, "stayer")], script, stop_when=lambda sink, *_: len(sink.of("stayer")) == 20
    )  # fmt: skip
    assert (script.left, result.errors) == ([], [])


def test_pipeline_delivers_the_queued_frames_of_a_slow_sink_before_it_forgets_a_camera():
    class Slow(Notes):
        def put(self, overlay):
            threading.Event().wait(0.01)
            super().put(overlay)

    script, stop = Script("leaver"), threading.Event()
    sink = Slow(script)
    pipeline = Pipeline(
        [(FakeSource(10**6, "leaver"), "wait")], Part(), Part(), [sink],
        limits=RunLimits(batch_size=1), stop=stop,
        watch=lambda _: stop.set() if sink.forgotten else None, discovery=script,
    )  # fmt: skip
    result = pipeline.run()
    assert sink.forgotten == [("leaver", len(sink.got))]
    assert result.delivered == len(sink.got) == result.received - result.dropped


def test_sink_that_cannot_complete_a_camera_closes_alone():
    class Full(Notes):
        def forget_camera(self, camera):
            raise SinkError("the disk is full")

    script, stop, healthy = Script("leaver"), threading.Event(), Notes()
    full = Full(script)
    pipeline = Pipeline(
        [(FakeSource(10**6, "leaver"), "wait"), (FakeSource(300, "stayer"), "wait")], Part(), Part(), [full, healthy],
        limits=RunLimits(batch_size=2), stop=stop,
        watch=lambda result: stop.set() if script.left and result.source_workers[0].finished else None,
        discovery=script,
    )  # fmt: skip
    result = pipeline.run()
    assert result.errors == ["the disk is full"]
    assert healthy.of("stayer") == list(range(300))
