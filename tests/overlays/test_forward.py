"""From a viewer to sinks: what is live looks live, what is not does not."""

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
from overlays.wire.forward import MAX_CAMERAS, StaleFrames, _SignalReporter, forward
from overlays.wire.message import decode_message, encode
from overlays.wire.viewer import ReceivedFrame, Viewer
from pipeline.frames import DeletionCheck, GuardState, HeatmapStats, Overlay, SignalLoss
from pipeline.ports import Sink
from pipeline.result import RunResult
from pipeline.settings import SinkContext
from pipeline.stats import RunStats
from tests.overlays.conftest import figures
from tests.support.logs import log_lines


def test_a_silent_camera_is_shown_grey_with_the_time_and_the_reason_once_a_second(overlaid):
    colours = np.full((240, 320, 3), (250, 20, 20), np.uint8)
    kept = StaleFrames()
    kept.update(overlaid(colours, camera="door"), 100.0)
    kept.update(overlaid(colours, camera="gate"), 102.5)
    assert kept.stale(101.9) == []
    shown = {at: kept.stale(at, "no publisher answers") for at in (102.6, 103.0, 103.7, 104.0, 104.8)}
    doors = [(at, each) for at, all_ in shown.items() for each in all_ if each.explanation.frame.camera == "door"]
    assert [at for at, _ in doors] == [102.6, 103.7, 104.8]
    assert [round(each.signal_loss.seconds, 3) for _, each in doors] == [2.6, 3.7, 4.8]
    grey = doors[0][1]
    assert grey.signal_loss.reason == "no publisher answers"
    assert np.ptp(grey.image[5, 5].astype(int)) == 0, "no colour is left"
    assert grey.image.mean() < colours.mean()
    assert grey.image is not grey.explanation.frame.image
    assert [at for at, all_ in shown.items() if any(e.explanation.frame.camera == "gate" for e in all_)] == [104.8]
    kept.update(overlaid(colours, camera="door"), 105.0)
    assert all(each.explanation.frame.camera != "door" for each in kept.stale(106.5))


def test_a_camera_that_is_slow_by_nature_is_not_shown_grey_between_its_pictures(overlaid):
    kept = StaleFrames()
    for second in (0.0, 5.0, 10.0):
        kept.update(overlaid(camera="door"), second)
    assert kept.stale(16.0) == []
    assert kept.timeout_seconds() == pytest.approx(15.0)
    assert len(kept.stale(12.5, "no publisher answers")) == 1
    assert [each.signal_loss.seconds for each in kept.stale(25.5)] == [15.5]


def test_what_guards_said_last_is_told_wherever_it_is_watched(overlaid):
    plain = overlaid(camera="door").explanation
    grounds = HeatmapStats(0.0125, 0.4, (60.0, 50.0), 0.75, {"belt": 0.04})
    says = "heat_inside(belt) >= 0.6, but is 0.04"
    guarded = replace(
        plain,
        findings=(replace(plain.first, heatmap_stats=grounds),),
        guards=(GuardState("on-the-belt", firing=True, seconds=2.0, message=says, fire_count=3),),
        deletion=DeletionCheck("bottle", 0.9, 0.5, 3, 0.5),
    )
    kept = StaleFrames()
    kept.update(overlaid(camera="gate"), 0.0)
    kept.update(Overlay(guarded.frame.image, guarded), 0.0)
    with WebSink("http://127.0.0.1:0") as page:
        page.on_run_start(RunResult(RunStats([]), [], [], parts=(kept,)))
        told = dict(figures(page))
    assert told["recipro_guard_firing door on-the-belt"] == 1
    assert told["recipro_guard_fired_total door on-the-belt"] == 3
    assert told["recipro_heat_inside door belt"] == 0.04
    assert told["recipro_stability door"] == 0.75
    assert told["recipro_score_drop_when_masked door"] == pytest.approx(0.4)
    assert not any("gate" in name and "guard" in name for name in told)


def test_what_the_publisher_has_greyed_itself_is_not_greyed_again_meanwhile(overlaid):
    kept = StaleFrames()
    live = overlaid(camera="door")
    kept.update(live, 0.0)
    for second in (1.5, 2.5, 3.5):
        kept.update(Overlay(live.image, live.explanation, SignalLoss(second, "stalled", "no packets")), second)
        assert kept.stale(second + 0.9) == []
    assert [each.signal_loss.seconds for each in kept.stale(6.0)] == [6.0]


class Eye(Sink):
    """A sink that remembers what it was shown."""

    uri, lossless = "eye", True

    def __init__(self):
        self.shown = []

    def needs_image(self, camera):
        return True

    def put(self, overlay):
        self.shown.append(overlay)


def test_watching_says_why_nothing_comes_and_shows_it(overlaid):
    """The real loop: one frame, then nothing; after two seconds the last picture is grey and the reason is said."""
    received = SimpleNamespace(
        camera="door", overlay=lambda: overlaid(camera="door"), missed=0, age_seconds=lambda: 0.1
    )
    begun = time.monotonic()
    pause = threading.Event()

    class Quiet(Viewer):
        problem = "the server does not know this viewer's key"

        def messages_or_none(self, stop=None):
            yield received
            while time.monotonic() < begun + 2.6:
                pause.wait(0.05)
                yield None

    said, eye = [], Eye()
    told = forward(Quiet("tcp://127.0.0.1:1"), [eye], stop=threading.Event(), report=said.append)
    assert told.frames == 1
    assert [each.signal_loss is None for each in eye.shown] == [True, False]
    assert len(said) == 1
    assert "does not know this viewer's key; waiting for it" in said[0]


def test_one_camera_alone_is_watched_though_others_names_begin_with_its_own(overlaid):
    def arrived(camera, index):
        shown = overlaid(camera=camera, index=index)
        return SimpleNamespace(camera=camera, overlay=lambda: shown, missed=0, age_seconds=lambda: 0.1)

    class Both(Viewer):
        def messages_or_none(self, stop=None):
            yield from (arrived(camera, index) for index in range(3) for camera in ("door", "door-2"))

    eye = Eye()
    told = forward(Both("tcp://127.0.0.1:1", ("door",)), [eye], stop=threading.Event(), cameras=["door"])
    assert told.frames == 3
    assert [each.explanation.frame.camera for each in eye.shown] == ["door"] * 3


def test_a_page_beside_a_recorder_tells_of_both_though_the_stream_is_far_away(overlaid, tmp_path):
    recorder = ClipSink(f"{tmp_path}/")
    stop = threading.Event()
    told = {}

    def look(sink, server):
        while not told and not stop.is_set():
            server.put(overlaid(camera="door"))
            figured = dict(figures(sink))
            if figured.get("recipro_sink_frames_total delivered", 0) and figured["recipro_frame_rate door"] >= 0:
                told.update(figured)
            time.sleep(0.05)
        stop.set()

    with (
        ZeroMqSink("tcp://127.0.0.1:0") as server,
        WebSink("http://127.0.0.1:0") as page,
        recorder,
        Viewer(server.endpoint) as viewer,
    ):
        looking = threading.Thread(target=look, args=(page, server))
        looking.start()
        try:
            forward(viewer, [page, recorder], stop=stop, seconds=20, report=lambda _: None)
        finally:
            stop.set()
            looking.join()
    assert told["recipro_viewers page"] == 0
    assert told["recipro_recorder_refused"] == 0
    assert told["recipro_camera_state door live"] == 1


class Publisher:
    """What a viewer gives of a publisher that sends one frame of each of so many cameras, again and again."""

    uri, problem, damaged, silent_seconds = "tcp://somewhere:5555", "", 0, 0.0

    def __init__(self, overlaid, names):
        self.messages = [
            encode(overlaid(camera=name, index=index), sent_at_unix=time.time(), now_monotonic=time.monotonic())
            for index, name in enumerate(names)
        ]

    def messages_or_none(self, stop):
        for parts in self.messages:
            yield ReceivedFrame(*decode_message(parts), received_at_unix=time.time())
        stop.set()


def test_a_publisher_of_ever_new_cameras_gets_only_so_many_passed_on_to_any_sink(tmp_path, overlaid):
    said, stop = [], threading.Event()
    names = [f"camera {k}" for k in range(MAX_CAMERAS + 40)]
    publisher = Publisher(overlaid, [*names, names[0]])
    with VideoSink(tmp_path / "seen.mp4") as films, JsonlSink(tmp_path / "seen.jsonl") as lines:
        seen = forward(publisher, [films, lines], stop=stop, report=said.append)
    told = {line["camera"] for line in log_lines(tmp_path / "seen.jsonl")}
    films = {path.name for path in tmp_path.glob("seen.*.mp4")}
    assert told
    assert told <= set(names[:MAX_CAMERAS])
    assert films
    assert films <= {f"seen.camera_{k}.mp4" for k in range(MAX_CAMERAS)}
    assert (seen.frames, seen.left_out) == (MAX_CAMERAS + 1, 40)
    assert len([word for word in said if "left out" in word]) == 1
    assert any("40 messages of further cameras left out" in line for line in seen.lines)
    assert not (tmp_path / "seen.mp4").exists(), "no film is nobody's"


def test_cameras_that_were_named_are_passed_on_among_any_number_of_others(tmp_path, overlaid):
    names = [f"camera {k}" for k in range(MAX_CAMERAS + 40)]
    stop = threading.Event()
    with VideoSink(tmp_path / "seen.mp4", SinkContext(cameras=(names[-1],))) as films:
        seen = forward(Publisher(overlaid, names), [films], stop=stop, cameras=[names[-1]], report=lambda _text: None)
    assert [path.name for path in tmp_path.iterdir()] == ["seen.mp4"]
    assert (seen.frames, seen.left_out) == (1, 0)


def test_viewer_is_told_that_the_signal_is_back_once():
    said = []
    reporter = _SignalReporter(said.append)
    viewer = SimpleNamespace(uri="tcp://there:1", problem="", silent_seconds=3.0)
    reporter.handle_frame(viewer, 1.0)
    assert said == []
    reporter.handle_nothing(viewer, 10.0, 2.0)
    reporter.handle_frame(viewer, 75.0)
    reporter.handle_frame(viewer, 75.1)
    assert said[1:] == ["signal from tcp://there:1 again after 1 min 8 s"]
