"""``--watch-config``: cameras join, change and leave while a stream runs; the other cameras lose nothing."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import av
import pytest
import yaml

from commands.wiring.cameras import CameraDiff, RunningCameras, make_cameras
from commands.wiring.kinds import load_config
from commands.wiring.reload import ConfigFile, ConfigWatcher, reload_on_hangup, stamp_of
from pipeline.errors import SinkError
from tests.support.fakes import FakeSource
from tests.support.limits import LIMIT_SECONDS
from tests.support.logs import log_lines

LINE = "line:?fps=20&size=160x120&seed={}"


def source(name, seed=1):
    return {"uri": LINE.format(seed), "name": name, "overflow": "wait"}


class Editor:
    """Edits the configuration of a running stream, and waits for what follows."""

    def __init__(self, path, caplog):
        self.path, self.caplog = path, caplog
        self.error = None

    def write(self, *sources, **keys):
        text = yaml.safe_dump({
            "sources": list(sources), "sinks": ["out.jsonl", "out.mp4"], "engine": {"model": "line_net"}, **keys,
        })  # fmt: skip
        draft = self.path.with_suffix(".draft")
        draft.write_text(text)
        draft.replace(self.path)

    def indices(self, camera):
        lines = log_lines(Path("out.jsonl")) if Path("out.jsonl").exists() else []
        return [line["index"] for line in lines if line.get("camera") == camera]

    def wait_for(self, condition):
        deadline = time.monotonic() + LIMIT_SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.caplog.text
            time.sleep(0.05)

    def wait_for_log(self, text):
        self.wait_for(lambda: text in self.caplog.text)

    def run(self, steps):
        try:
            steps(self)
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            self.error = error
        finally:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_stream_adds_changes_and_removes_cameras_while_it_runs(command, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("pipeline.signal_loss.SILENT_SECONDS", LIMIT_SECONDS)  # a video repeats the frame before a loss
    editor = Editor(tmp_path / "run.yaml", caplog)
    editor.write(source("stays"), source("leaves"))

    def steps(editor):
        editor.wait_for(lambda: len(editor.indices("leaves")) >= 5)
        editor.write(source("stays"), source("joins"))
        editor.wait_for_log("camera leaves: removed")
        editor.wait_for(lambda: len(editor.indices("joins")) >= 5)
        editor.path.write_text("sources: [")
        os.kill(os.getpid(), signal.SIGHUP)
        editor.wait_for_log("not applied, and the run continues as before")
        editor.write(source("stays"), source("joins", seed=2), overlay={"opacity": 0.3})
        editor.wait_for_log("changes of overlay take effect at the next start")
        editor.wait_for_log("camera joins: reopened")
        editor.wait_for(lambda: editor.indices("joins").count(0) == 2)

    thread = threading.Thread(target=editor.run, args=[steps])
    thread.start()
    code, output, errors = command("stream", editor.path, "--watch-config")
    thread.join()
    if editor.error is not None:
        raise editor.error
    assert code == 0, errors
    stays, leaves, joins = map(editor.indices, ("stays", "leaves", "joins"))
    again = joins.index(0, 1)
    for run in (stays, leaves, joins[:again], joins[again:]):  # the line's camera skips numbers on a slow machine
        assert run == sorted(set(run))
    count = len(stays) + len(leaves) + len(joins)
    assert f"{count} explained, {count} delivered" in output
    assert re.search(r" 0 dropped;| (\d+) dropped \(\1 stopped\);", output), output
    with av.open("out.leaves.mp4") as video:
        assert sum(1 for _ in video.decode(video=0)) == len(leaves)


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["--source", "line:"], "needs the cameras in a YAML file"),
        (["run.yaml", "--source", "line:"], "move each --source into the file"),
        (["run.yaml", "--devices", "cuda:0,cuda:1"], "start one run for each device"),
    ],
)
def test_watch_config_is_refused_without_a_file_that_has_the_cameras(command, tmp_path, arguments, remedy):
    Editor(tmp_path / "run.yaml", None).write(source("a"))
    code, _, errors = command("stream", *arguments, "--watch-config")
    assert code == 2
    assert remedy in errors


def cameras(*entries):
    return make_cameras(load_config({"sources": list(entries), "engine": {"model": "line_net"}}, "test"))


def test_camera_differs_by_its_region_and_mask():
    area = {"roi": [10, 20, 100, 80], "mask": [[[0, 0], [0.5, 0], [0, 0.5]]]}
    entries = source("a") | area, source("a") | area, source("a"), source("a") | area | {"roi": [11, 20, 100, 80]}
    with_area, same, without, moved = (cameras(entry)[0] for entry in entries)
    assert with_area.source.input_area.placed(160, 120).cut == (10, 20, 110, 100)
    assert without.source.input_area is None
    assert with_area.equals(same)
    assert not with_area.equals(without)
    assert not with_area.equals(moved)


def running(*entries, claim=lambda _camera: None, release=lambda _camera: None):
    return RunningCameras(cameras(*entries), claim, release)


def test_equal_cameras_are_not_touched():
    with running(source("a"), source("b")) as run:
        diff = run.apply(cameras(source("a"), source("b")))
        assert (diff.added, diff.changed, diff.removed, diff.failed) == ([], [], [], [])
        assert (run.take(), run.take_removed()) == ([], [])


@pytest.mark.parametrize("change", [{"uri": LINE.format(2)}, {"overflow": "drop-oldest"}])
def test_changed_camera_joins_after_it_has_left(change):
    with running(source("a")) as run:
        assert run.apply(cameras({**source("a"), **change})).changed == ["a"]
        assert run.take_removed() == ["a"]
        assert run.take() == []
        leaver = FakeSource(camera="a")
        run.on_removed(leaver)
        assert [joined.camera for joined in run.take()] == ["a"]


def test_camera_that_is_removed_before_it_joined_never_joins():
    with running(source("a")) as run:
        run.apply(cameras(source("a"), source("b")))
        assert run.apply(cameras(source("a"))).removed == ["b"]
        assert (run.take(), run.take_removed()) == ([], [])


def test_last_of_several_changes_wins():
    with running(source("a")) as run:
        run.apply(cameras(source("a", seed=2)))
        run.apply(cameras(source("a", seed=3)))
        run.apply([])
        run.apply(cameras(source("a", seed=4)))
        assert run.take_removed() == ["a"]
        run.on_removed(FakeSource(camera="a"))
        [joined] = run.take()
        assert run.apply(cameras(source("a", seed=4))).changed == []
        assert joined.camera == "a"


def test_camera_that_cannot_be_opened_leaves_the_run_as_it_was(caplog, tmp_path):
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(b"no video" * 100)
    with running(source("a")) as run:
        diff = run.apply(cameras(source("a"), {"uri": str(damaged), "name": "c"}, source("b")))
        assert (diff.failed, run.take()[0].camera) == (["c"], "b")
        diff = run.apply(cameras({"uri": str(damaged), "name": "a"}, source("b")))
        assert (diff.changed, diff.failed, run.take_removed()) == (["a"], ["a"], [])
    assert "camera c: cannot be opened" in caplog.text


def test_camera_whose_output_belongs_to_another_run_does_not_join(caplog):
    def claim(camera):
        raise SinkError(f"{camera}.mp4: is being written by another run")

    with running(source("a"), claim=claim) as run:
        assert run.apply(cameras(source("a"), source("b"))).failed == ["b"]
        assert run.take() == []
    assert "b.mp4: is being written by another run" in caplog.text


def test_output_of_a_camera_is_released_once_it_has_left():
    released = []
    with running(source("a"), source("b"), release=released.append) as run:
        run.apply(cameras(source("b", seed=2), source("c")))
        assert not released
        for name in run.take_removed():
            run.on_removed(FakeSource(camera=name))
        assert released == ["a"]  # b has a successor
        run.apply(cameras(source("b", seed=2)))
        assert released == ["a", "c"]  # c never joined


class SourceThatFails(FakeSource):
    """Raises an error of no known kind when it is opened or closed."""

    def __init__(self, camera, when):
        super().__init__(camera=camera)
        self.when = when

    def __enter__(self):
        if self.when == "opened":
            raise ValueError("broken plug-in")
        return self

    def __exit__(self, *_):
        raise ValueError("broken plug-in")


def test_camera_that_raises_any_error_leaves_the_others_alone(caplog):
    [old] = cameras(source("old"))
    old = replace(old, source=SourceThatFails("old", "closed"))
    good, bad = cameras(source("good"), source("bad"))
    bad = replace(bad, source=SourceThatFails("bad", "opened"))
    with RunningCameras([old], lambda _camera: None) as run:
        diff = run.apply([good, bad])
        assert (diff.failed, diff.removed) == (["bad"], ["old"])
        run.on_removed(old.source)
        assert [joined.camera for joined in run.take()] == ["good"]
    assert "camera bad: cannot be opened" in caplog.text
    assert "camera old: cannot be closed: broken plug-in" in caplog.text


def test_watcher_notices_a_change_before_it_starts_and_survives_any_error(tmp_path, caplog):
    path = tmp_path / "run.yaml"
    path.write_text("a")
    read = threading.Event()

    def fail():
        read.set()
        raise ValueError("broken plug-in")

    file = ConfigFile(path, fail, stamp_of(path))
    path.write_text("changed while the run starts")
    with ConfigWatcher(file, load_config({"sources": [source("a")]}, "x"), pytest.fail):
        for _ in range(2):
            assert read.wait(LIMIT_SECONDS)
            read.clear()
            file.request()
    assert "broken plug-in" in caplog.text


def test_hangup_beside_a_change_of_the_page_is_not_lost(tmp_path):
    path, read = tmp_path / "run.yaml", threading.Event()
    path.write_text("a")
    config = load_config({"sources": [source("a")]}, "x")

    def read_config():
        read.set()
        return config

    file = ConfigFile(path, read_config, stamp_of(path))
    watcher = ConfigWatcher(file, config, lambda _config: CameraDiff([], [], [], []))
    with reload_on_hangup(file):
        done = watcher.submit(lambda: None)
        os.kill(os.getpid(), signal.SIGHUP)
        with watcher:
            done.result(LIMIT_SECONDS)
            assert read.wait(LIMIT_SECONDS)
