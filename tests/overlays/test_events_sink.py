"""The events sink: its events after a run, after a kill and on a failing disk, and actions of viewers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path

import pytest

from overlays.events.query import EventFilter, EventReader
from overlays.events.store import Action
from overlays.render.jpeg import decode_image, jpeg_size
from overlays.sinks import disk
from overlays.sinks.events import MAX_ACTIONS, MAX_WAITING, EventsSink
from overlays.sinks.registry import build_sink
from overlays.sinks.settings import EventSettings
from pipeline.errors import ConfigError, DataLossError, SinkError
from pipeline.ports import MetricSample, Part
from pipeline.result import RunResult
from pipeline.settings import SinkContext
from pipeline.stats import RunStats
from tests.support.events import WALL, Clock, shown, silent
from tests.support.limits import PROGRAM_SECONDS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def clock():
    return Clock()


@contextmanager
def recorder(path, clock, context=None, **options):
    settings = EventSettings(uri=str(path), **({"gap_seconds": 0.0} | options))
    with EventsSink(settings, context, wall_clock=clock.wall, clock=clock) as sink:
        yield sink


def play(sink, clock, *overlays):
    """Put overlays, each at its own time."""
    for overlay in overlays:
        seconds = overlay.explanation.frame.captured_at
        clock.now = seconds if overlay.signal_loss is None else seconds + overlay.signal_loss.seconds
        sink.put(overlay)


def alarm(seconds, inside=0.25, **facts):
    return shown(seconds, label="ok", inside=inside, **facts)


def events(path, **chosen):
    return EventReader(path).page(EventFilter(**chosen)).events


def test_alarm_leaves_an_event_with_both_images_and_the_figures(tmp_path, clock):
    path = tmp_path / "events.sqlite"
    with recorder(path, clock, image_pixels=64) as sink:
        play(sink, clock, shown(0.0, label="ok"), alarm(0.1, size=(96, 128)), shown(0.5, label="ok"))
    [event] = events(path)
    assert (event["kind"], event["rule"], event["camera"]) == ("guard", "grounded", "line")
    assert (event["start"], event["end"]) == pytest.approx((WALL + 0.1, WALL + 0.5))
    reader = EventReader(path)
    figures = reader.event(event["id"])["figures"]
    assert (figures["findings"][0]["label"], figures["guards"][0]["figure"]["value"]) == ("ok", 0.25)
    plain, heat = (reader.image(event["id"], kind) for kind in ("plain", "heat"))
    assert jpeg_size(plain) == jpeg_size(heat) == (64, 48)
    difference = abs(decode_image(heat).astype(int) - decode_image(plain).astype(int)).mean(axis=2)
    assert difference[:8, :8].mean() > 30  # the hot cell
    assert difference[32:, 32:].mean() < 3


def test_condition_and_lost_signal_become_events(tmp_path, clock):
    path = tmp_path / "events.sqlite"
    with recorder(path, clock, when="label=scratch") as sink:
        play(sink, clock, shown(0.0), silent(5.0, 5.0), shown(9.0, label="ok"))
    assert {event["kind"] for event in events(path)} == {"condition", "signal_loss"}


def test_painted_image_is_kept_as_the_one_with_heat(tmp_path, clock):
    path = tmp_path / "events.sqlite"
    with recorder(path, clock, SinkContext(painted=True)) as sink:
        play(sink, clock, alarm(0.0))
    [event] = events(path)
    assert EventReader(path).event(event["id"])["images"] == ["heat"]


def test_events_of_a_camera_that_leaves_end(tmp_path, clock):
    path = tmp_path / "events.sqlite"
    with recorder(path, clock) as sink:
        play(sink, clock, alarm(0.0))
        assert events(path)[0]["end"] is None
        clock.now = 3.0
        sink.forget_camera("line")
        assert events(path)[0]["end"] == WALL + 3.0


class Drifting(Part):
    """The metrics of a run whose camera drifts."""

    psi = 0.5

    def metrics(self):
        labels = (("camera", "line"), ("label", "ok"), ("statistic", "score"))
        values = {"drift_psi": self.psi, "drift_psi_bound": 0.25, "drift_shift": 2.0}
        return [MetricSample(name, value, "", labels=labels) for name, value in values.items()]


def test_drift_of_a_run_becomes_events_until_its_camera_leaves(tmp_path, clock):
    path, part = tmp_path / "events.sqlite", Drifting()
    with recorder(path, clock) as sink:
        sink.on_run_start(RunResult(RunStats([]), [], [], (part, sink)))

        def look(seconds):
            clock.now = seconds
            sink.idle()
            return [(event["kind"], event["end"]) for event in events(path)]

        assert look(10.0) == [("drift", None)]
        part.psi = 0.1
        assert look(20.0) == [("drift", WALL + 20.0)]
        part.psi = 0.5
        look(30.0)
        sink.forget_camera("line")
        assert look(40.0)[0] == ("drift", WALL + 30.0)
        play(sink, clock, shown(50.0, label="ok"))
        assert look(60.0)[0] == ("drift", None)


def test_kill_leaves_an_end_for_those_who_saw_the_start(tmp_path, clock):
    path = tmp_path / "events.sqlite"
    with recorder(path, clock) as killed:
        play(killed, clock, alarm(0.0))
        with recorder(path, clock) as sink:
            [ended] = sink.feed.notices(0)[1]
        assert (ended.occasion, ended.record["interrupted"]) == ("ended", True)
        assert [notice.occasion for notice in killed.feed.notices(0)[1]] == ["started"]


def test_action_is_applied_by_the_sink_and_published(tmp_path, clock):
    path = tmp_path / "events.sqlite"
    with recorder(path, clock) as sink:
        play(sink, clock, alarm(0.0))
        [event] = events(path)
        revision = sink.feed.revision
        done = sink.submit(Action(event["id"], "acknowledge", "Ada"))
        assert not done.done()
        sink.idle()
        assert done.result(0)["state"] == "acknowledged"
        assert sink.feed.since(revision)[1] == [done.result(0)]
        missing = sink.submit(Action("0", "acknowledge"))
        sink.idle()
        assert missing.result(0) is None
    with pytest.raises(OSError, match="has ended"):
        sink.submit(Action(event["id"], "reopen")).result(0)


def test_actions_that_wait_are_bounded(tmp_path, clock):
    with recorder(tmp_path / "events.sqlite", clock) as sink:
        waiting = [sink.submit(Action("0", "reopen")) for _ in range(MAX_ACTIONS + 1)]
        with pytest.raises(OSError, match="other changes wait"):
            waiting[-1].result(0)
        sink.idle()
        assert waiting[0].result(0) is None


@contextmanager
def mounted(path, *options):
    path.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(path)], check=False, capture_output=True)
    if done.returncode:
        pytest.skip("may not mount a tmpfs")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def fill(path):
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def test_full_disk_is_stated_and_its_events_are_written_later(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(disk, "RETRY_SECONDS", (1.0, 1.0))
    with mounted(tmp_path / "small", "-o", "size=2m") as folder:
        path, ballast = folder / "events.sqlite", folder / "ballast"
        with recorder(path, clock) as sink:
            play(sink, clock, alarm(0.0), shown(1.0, label="ok"))
            with pytest.raises(OSError, match="No space"):
                fill(ballast)
            for k in range(40):
                play(sink, clock, alarm(10.0 + 10 * k), shown(15.0 + 10 * k, label="ok"))
            assert "the disk is full" in sink.problem
            assert "events were not recorded so far" in sink.problem
            ballast.unlink()
            clock.now += 5.0
            sink.idle()
            assert sink.problem == ""
            assert sink.lost == 0
        assert len(events(path)) == 41
        assert all(event["end"] is not None for event in events(path))


def test_read_only_folder_is_stated_and_its_events_are_written_later(tmp_path, clock):
    with mounted(tmp_path / "folder") as folder:
        path = folder / "events.sqlite"
        with recorder(path, clock) as sink:
            play(sink, clock, alarm(0.0))
            sink._store.close()  # an open file keeps the mount busy
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
            play(sink, clock, shown(1.0, label="ok"))
            assert "no longer writable" in sink.problem
            subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
            clock.now += 60.0
            sink.idle()
            assert sink.problem == ""
        assert events(path)[0]["end"] == WALL + 1.0


def test_events_that_wait_for_a_disk_are_bounded_and_counted(tmp_path, clock, monkeypatch):
    path = tmp_path / "events.sqlite"
    with pytest.raises(DataLossError, match="events were not written"), recorder(path, clock) as sink:  # noqa: PT012

        def refuse(_changes):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(sink._store, "write", refuse)
        for k in range(MAX_WAITING + 20):
            play(sink, clock, alarm(k / 100), shown(k / 100 + 0.005, label="ok"))
        assert len(sink._waiting) == MAX_WAITING
    assert sink.lost == MAX_WAITING + 20


def test_killed_run_loses_at_most_the_event_that_went_on(tmp_path):
    path = tmp_path / "events.sqlite"
    script = textwrap.dedent(f"""
        import itertools, sys
        from overlays.sinks.events import EventsSink
        from overlays.sinks.settings import EventSettings
        from tests.support.events import Clock, shown
        clock = Clock()
        settings = EventSettings(uri={str(path)!r}, gap_seconds=0.0)
        with EventsSink(settings, wall_clock=clock.wall, clock=clock) as sink:
            for k in itertools.count():
                for seconds, inside in ((k, 0.25), (k + 0.5, None)):
                    clock.now = seconds
                    sink.put(shown(seconds, label="ok", inside=inside))
                print(k, flush=True)
    """)
    run = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        finished = next(int(line) for line in run.stdout if int(line) >= 100)
        os.kill(run.pid, signal.SIGKILL)
        finished = max([finished, *(int(line) for line in run.stdout.read().split())])
        assert run.wait(PROGRAM_SECONDS) == -signal.SIGKILL
    finally:
        run.kill()
        run.stdout.close()
        run.wait()
    clock = Clock()
    with recorder(path, clock):
        read = EventReader(path).page(EventFilter(), limit=1000).events
    assert [event["start"] - WALL for event in read[-finished - 1 :]] == list(range(finished, -1, -1))
    assert len(read) <= finished + 2
    assert all(event["end"] is not None for event in read)
    assert sum(event["interrupted"] for event in read) <= 1


def test_file_in_use_by_another_program_is_refused_at_the_start(tmp_path, clock):
    path = tmp_path / "events.sqlite"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(SinkError, match="is not a database"), recorder(path, clock):
        pass
    with pytest.raises(SinkError, match="mkdir -p"), recorder(tmp_path / "no" / "events.sqlite", clock):
        pass


def test_condition_is_checked_at_the_start():
    with pytest.raises(ConfigError, match="labl"):
        build_sink("events.sqlite?when=labl=x")


def test_metrics_count_events(tmp_path, clock):
    with recorder(tmp_path / "events.sqlite", clock) as sink:
        play(sink, clock, alarm(0.0))
        samples = {sample.name: sample.value for sample in sink.metrics()}
    assert (samples["events"], samples["events_open"]) == (1, 1)
    assert samples["recorder_bytes"] > 0
    assert json.dumps(samples)
