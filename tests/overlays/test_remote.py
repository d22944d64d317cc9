"""The cameras of another run in the pipeline: only live frames look live, and every frame is counted once."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from overlays.sinks.clips.sink import ClipSink
from overlays.sinks.jsonl import JsonlSink
from overlays.sinks.video import VideoSink
from overlays.sinks.web import WebSink
from overlays.sinks.zeromq import ZeroMqSink
from overlays.wire.message import decode_message, encode
from overlays.wire.remote import (
    MAX_CAMERAS,
    ExplainedFrame,
    RemoteCamera,
    RemoteExplainer,
    RemoteRenderer,
    RemoteStream,
    SignalReporter,
)
from overlays.wire.viewer import ReceivedFrame, Viewer
from pipeline.errors import FrameError, SinkError, WireVersionError
from pipeline.frames import DeletionCheck, HeatmapStats, Overlay, SignalLoss
from pipeline.guards.state import GuardState
from pipeline.loop import Pipeline
from pipeline.ports import Sink
from pipeline.result import RunLimits, RunResult
from pipeline.settings import SinkContext
from pipeline.stats import RunStats
from tests.overlays.conftest import figures
from tests.support.limits import LIMIT_SECONDS
from tests.support.logs import log_lines


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    """The condition for the end of a run is checked often."""
    monkeypatch.setattr("pipeline.workers.batches.IDLE_SECONDS", 0.01)
    monkeypatch.setattr("pipeline.workers.batches.POLL_SECONDS", 0.01)


class FakeViewer:
    """Gives messages, waits where one of its items is a condition, then nothing until the end."""

    uri, problem, damaged, silent_seconds = "tcp://somewhere:5555", "", 0, 0.0

    def __init__(self, *items):
        self.items = items

    def messages(self, stop):
        for item in self.items:
            if callable(item):
                while not item():
                    if stop.wait(0.005):
                        return
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
        stop.wait(LIMIT_SECONDS)


class FakeSink(Sink):
    """Records the received overlays, and fails at a frame index."""

    def __init__(self, *, lossless=True, trouble=None, at=None):
        self.uri, self.lossless, self.trouble, self.at = "eye", lossless, trouble, at
        self.shown = []

    def needs_image(self, camera):
        return True

    def put(self, overlay):
        if overlay.explanation.frame.index == self.at:
            raise self.trouble
        self.shown.append(overlay)

    def idle(self):
        pass

    def on_run_start(self, result):
        self.result = result

    @property
    def damaged(self):
        return sum(worker.health.corrupt for worker in self.result.source_workers)

    @property
    def cameras(self):
        return [overlay.explanation.frame.camera for overlay in self.shown]

    @property
    def indices(self):
        return [overlay.explanation.frame.index for overlay in self.shown]


def message(overlay, payload=None):
    """An overlay as it arrives."""
    parts = encode(overlay, sent_at_unix=time.time(), now_monotonic=time.monotonic())
    header, jpeg = decode_message(parts)
    return ReceivedFrame(header, payload or jpeg, received_at_unix=time.time())


def watch(viewer, sinks, *, wait_until=lambda: False, cameras=(), frames=None):
    """Receive from a viewer into sinks until a condition holds; return the result and the remote stream."""
    stop = threading.Event()

    def stop_when(_result):
        if wait_until():
            stop.set()

    with RemoteStream(viewer, cameras) as remote:
        limits = RunLimits(seconds=LIMIT_SECONDS, frames=frames)
        result = Pipeline(
            [], RemoteExplainer(), RemoteRenderer(), sinks,
            limits=limits, stop=stop, watch=stop_when, discovery=remote,
        ).run()  # fmt: skip
    assert result.seconds < LIMIT_SECONDS
    return result, remote


def lossy(overlay, seconds=2.0):
    """The publisher's image of a signal loss."""
    return message(Overlay(overlay.image, overlay.explanation, SignalLoss(seconds, "stalled", "no packets")))


def test_remote_frames_arrive_as_they_were_sent_and_are_counted(overlaid):
    colours = np.full((240, 320, 3), (250, 20, 20), np.uint8)
    sent = [overlaid(colours, camera=camera, index=3) for camera in ("door", "gate")]
    eye = FakeSink()
    result, _ = watch(FakeViewer(*map(message, sent)), [eye], wait_until=lambda: len(eye.shown) == 2)
    assert sorted(eye.cameras) == ["door", "gate"]
    for shown in eye.shown:
        assert np.abs(shown.image.astype(int) - colours).max() < 10
        assert shown.explanation.findings[0].label == "bottle"
        assert shown.signal_loss is None
    assert (result.received, result.explained, result.delivered, result.drops) == (2, 2, 2, {})
    assert [worker.health.state for worker in result.source_workers] == ["live", "live"]


@pytest.mark.parametrize("trouble", [None, FrameError("too wide"), SinkError("disk full")])
@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("frames", [None, 7])
def test_remote_frames_are_delivered_or_dropped_once_and_sinks_agree(overlaid, trouble, lossless, frames):
    """The frames of two cameras, with images of a signal loss between them, into a sink that fails at a frame."""
    sent = []
    for index in range(30):
        overlay = overlaid(camera="door" if index % 2 else "gate", index=index // 2)
        sent.append(message(overlay))
        if index % 5 == 0:
            sent.append(lossy(overlay))
    sink, last = FakeSink(lossless=lossless, trouble=trouble, at=9), FakeSink()
    result, _ = watch(FakeViewer(*sent), [sink, last], wait_until=lambda: last.indices.count(14) == 2, frames=frames)
    counts = result.stats.frames
    for worker in result.source_workers:
        camera = worker.camera
        assert counts.received(camera) == counts.delivered(camera) + sum(counts.drops(camera).values())
        assert counts.received(camera) + worker.health.missed <= 15
    for output, worker in zip((sink, last), result.sink_workers, strict=True):
        assert worker.delivered == sum(overlay.signal_loss is None for overlay in output.shown)
    assert result.delivered == max(worker.delivered for worker in result.sink_workers) > 0
    assert result.received > 0


def test_remote_camera_counts_the_frames_that_it_did_not_give(overlaid):
    camera, stop = RemoteCamera("door", FakeViewer()), threading.Event()
    frames = camera.frames(stop)
    original = []
    for index in (3, 4, 9, 0, 2):
        camera.offer(message(overlaid(camera="door", index=index)))
        original.append(next(frames).index)
    for index in (3, 4, 5):
        camera.offer(message(overlaid(camera="door", index=index)))
    original.append(next(frames).index)
    stop.set()
    assert list(frames) == []
    assert original == [3, 4, 9, 0, 2, 5]
    assert camera.health.missed == 4 + 1 + 2


def test_remote_camera_leaves_out_damaged_images_and_counts_them(overlaid, caplog):
    first, damaged, again, last = (message(overlaid(camera="door", index=index)) for index in range(4))
    damaged, again = (replace(received, payload=received.payload[:200]) for received in (damaged, again))
    eye = FakeSink()
    viewer = FakeViewer(
        first, lambda: eye.shown, damaged, lambda: eye.damaged == 1, again, lambda: eye.damaged == 2, last
    )
    result, _ = watch(viewer, [eye], wait_until=lambda: len(eye.shown) == 2)
    assert eye.indices == [0, 3]
    assert (result.received, result.delivered) == (2, 2)
    assert len([record for record in caplog.records if "is left out" in record.getMessage()]) == 1


def test_remote_signal_loss_is_shown_as_the_publisher_sends_it(overlaid):
    """A viewer that joins during a signal loss sees it, though it has seen no frame."""
    eye = FakeSink()
    viewer = FakeViewer(lossy(overlaid(camera="door"), 70.0))
    result, _ = watch(viewer, [eye], wait_until=lambda: eye.shown)
    assert [overlay.signal_loss for overlay in eye.shown] == [SignalLoss(70.0, "stalled", "no packets")]
    assert (result.received, result.delivered) == (0, 0)
    (worker,) = result.source_workers
    assert (worker.health.state, worker.health.reason) == ("stalled", "no packets")


@pytest.fixture
def impatient(monkeypatch):
    """A signal counts as lost at once."""
    monkeypatch.setattr("pipeline.signal_loss.SILENT_SECONDS", 0.05)
    monkeypatch.setattr(RemoteCamera, "min_silence_seconds", 0.05)


@pytest.mark.usefixtures("impatient")
def test_remote_signal_loss_is_shown_in_grey_with_the_reason(overlaid):
    colours = np.full((240, 320, 3), (250, 20, 20), np.uint8)
    eye = FakeSink()
    viewer = FakeViewer(message(overlaid(colours, camera="door")))
    viewer.problem = "the server does not know this viewer's key"
    result, _ = watch(viewer, [eye], wait_until=lambda: len(eye.shown) == 2)
    live, grey = eye.shown
    assert live.signal_loss is None
    assert (grey.signal_loss.state, grey.signal_loss.reason) == ("waiting", viewer.problem)
    assert grey.signal_loss.seconds < LIMIT_SECONDS
    assert np.ptp(grey.image[5, 5].astype(int)) == 0, "no colour is left"
    assert grey.image.mean() < live.image.mean()
    assert (result.received, result.sink_workers[0].delivered) == (1, 1)


@pytest.mark.usefixtures("impatient")
def test_remote_signal_loss_does_not_depend_on_the_clocks_of_two_machines(overlaid):
    eye = FakeSink()
    received = message(overlaid(camera="door"))
    an_hour_ago = {"taken_at_unix": received.header.taken_at_unix - 3600.0}
    received = replace(received, header=received.header.model_copy(update=an_hour_ago))
    watch(FakeViewer(received), [eye], wait_until=lambda: len(eye.shown) == 2)
    assert eye.shown[1].signal_loss.seconds < LIMIT_SECONDS


def test_remote_cameras_report_their_guards_on_the_page(overlaid):
    plain = overlaid(camera="door").explanation
    statistics = HeatmapStats(0.0125, 0.4, (60.0, 50.0), 0.75, {"belt": 0.04})
    text = "heat_inside(belt) >= 0.6, but is 0.04"
    guarded = replace(
        plain,
        findings=(replace(plain.first, heatmap_stats=statistics),),
        guards=(GuardState("on-the-belt", firing=True, seconds=2.0, message=text, fire_count=3),),
        deletion=DeletionCheck("bottle", 0.9, 0.5, 3, 0.5),
    )
    explainer = RemoteExplainer()
    explainer.explain([ExplainedFrame.of(each) for each in (overlaid(camera="gate").explanation, guarded)])
    with WebSink("http://127.0.0.1:0") as page:
        page.on_run_start(RunResult(RunStats([]), [], [], parts=(explainer,)))
        samples = dict(figures(page))
    assert samples["recipro_guard_firing door on-the-belt"] == 1
    assert samples["recipro_guard_fired_total door on-the-belt"] == 3
    assert samples["recipro_heat_inside door belt"] == 0.04
    assert samples["recipro_stability door"] == 0.75
    assert samples["recipro_score_drop_when_masked door"] == pytest.approx(0.4)
    assert not any("gate" in name and "guard" in name for name in samples)


def test_remote_stream_gives_a_named_camera_alone_though_other_names_begin_with_it(overlaid):
    eye = FakeSink()
    sent = [message(overlaid(camera=camera)) for camera in ("door-2", "door")]
    result, remote = watch(FakeViewer(*sent), [eye], wait_until=lambda: eye.shown, cameras=["door"])
    assert eye.cameras == ["door"]
    assert ([worker.camera for worker in result.source_workers], remote.left_out) == (["door"], 0)


def test_remote_stream_bounds_the_number_of_cameras(tmp_path, overlaid, caplog):
    names = [f"camera {k}" for k in range(MAX_CAMERAS + 40)]
    eye = FakeSink()
    sent = [message(overlaid(camera=name)) for name in names]
    viewer = FakeViewer(*sent, lambda: len(eye.shown) == MAX_CAMERAS, message(overlaid(camera=names[0], index=1)))
    with VideoSink(tmp_path / "seen.mp4") as films, JsonlSink(tmp_path / "seen.jsonl") as lines:
        result, remote = watch(viewer, [films, lines, eye], wait_until=lambda: len(eye.shown) == MAX_CAMERAS + 1)
    assert {line["camera"] for line in log_lines(tmp_path / "seen.jsonl")} == set(names[:MAX_CAMERAS])
    assert {path.name for path in tmp_path.glob("*.mp4")} == {f"seen.camera_{k}.mp4" for k in range(MAX_CAMERAS)}
    assert (result.received, remote.left_out) == (MAX_CAMERAS + 1, 40)
    assert len([record for record in caplog.records if "left out" in record.getMessage()]) == 1
    assert any("40 messages of further cameras left out" in line for line in remote.notes)


def test_remote_stream_gives_named_cameras_among_any_number_of_others(tmp_path, overlaid):
    names = [f"camera {k}" for k in range(MAX_CAMERAS + 40)]
    eye = FakeSink()
    viewer = FakeViewer(*(message(overlaid(camera=name)) for name in names))
    with VideoSink(tmp_path / "seen.mp4", SinkContext(cameras=(names[-1],))) as films:
        result, remote = watch(viewer, [films, eye], wait_until=lambda: eye.shown, cameras=[names[-1]])
    assert [path.name for path in tmp_path.iterdir()] == ["seen.mp4"]
    assert (result.received, remote.left_out, remote.notes) == (1, 0, [])


def test_remote_stream_ends_the_run_when_the_publisher_is_newer(overlaid):
    viewer = FakeViewer(message(overlaid(camera="door")), WireVersionError("version: 2"))
    with pytest.raises(WireVersionError, match="version: 2"):
        watch(viewer, [FakeSink()])


def test_remote_stream_shows_a_page_the_recorder_beside_it(overlaid, tmp_path):
    recorder = ClipSink(f"{tmp_path}/")
    ended = threading.Event()
    samples = {}

    def look(sink, server):
        while not ended.is_set():
            server.put(overlaid(camera="door"))
            actual = dict(figures(sink))
            if actual.get("recipro_sink_frames_total delivered", 0) and actual.get("recipro_frame_rate door", -1) >= 0:
                samples.update(actual)
                ended.set()
            ended.wait(0.05)

    with (
        ZeroMqSink("tcp://127.0.0.1:0") as server,
        WebSink("http://127.0.0.1:0") as page,
        recorder,
        Viewer(server.endpoint) as viewer,
    ):
        looking = threading.Thread(target=look, args=(page, server))
        looking.start()
        try:
            watch(viewer, [page, recorder], wait_until=ended.is_set)
        finally:
            ended.set()
            looking.join()
    assert samples["recipro_viewers page"] == 0
    assert samples["recipro_recorder_refused"] == 0
    assert samples["recipro_camera_state door live"] == 1
    assert samples["recipro_frames_total door taken"] > 0


def test_signal_reporter_reports_the_loss_with_its_reason_and_the_return_once():
    lines, now = [], [10.0]
    viewer = SimpleNamespace(uri="tcp://there:1", problem="", silent_seconds=0.5)
    reporter = SignalReporter(viewer, lines.append, clock=lambda: now[0])
    result = RunResult(RunStats([]), [], [])

    def check(at, silent_seconds):
        now[0], viewer.silent_seconds = at, silent_seconds
        reporter.check(result)
        return lines[-1] if lines else ""

    assert check(9.0, 0.5) == ""
    viewer.problem = "no publisher answers"
    assert check(10.0, 3.0) == "no signal from tcp://there:1 for 3 s: no publisher answers; waiting for it"
    check(12.0, 5.0)
    assert len(lines) == 1
    check(15.5, 8.5)
    assert len(lines) == 2
    assert check(75.0, 0.0) == "signal from tcp://there:1 again after 1 min 8 s"
    check(75.1, 0.1)
    assert len(lines) == 3


def test_signal_reporter_waits_longer_for_slow_cameras_unless_it_knows_why():
    lines = []
    viewer = SimpleNamespace(uri="tcp://there:1", problem="", silent_seconds=14.0)
    workers = [SimpleNamespace(frame_rate=SimpleNamespace(interval_seconds=seconds)) for seconds in (5.0, 30.0)]
    reporter = SignalReporter(viewer, lines.append, clock=lambda: 100.0)
    reporter.check(RunResult(RunStats([]), workers, []))
    assert lines == []
    viewer.problem = "no publisher answers"
    reporter.check(RunResult(RunStats([]), workers, []))
    assert len(lines) == 1
