"""Progress of a run on the terminal."""

from __future__ import annotations

import errno
import io

import pytest
from rich.console import Console

from overlays.progress import Progress, lines, table
from pipeline.result import RunResult
from pipeline.stats import RunStats
from pipeline.workers.source import SourceWorker
from tests.support.fakes import FakeSource


@pytest.mark.parametrize("name", ["[fe80::1]/live", "door [/b]", "[red]door"])
def test_names_with_brackets_are_shown_unchanged(name):
    outcome = RunResult(RunStats([name]), [SourceWorker(FakeSource(1, name))], [])
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    console.print(table(outcome, 0.0))
    assert name in console.file.getvalue()
    assert lines(outcome, 0.0)[0].startswith(f"{name}: ")


def test_log_on_a_full_disk_does_not_end_the_run(monkeypatch):
    class Full(io.StringIO):
        def write(self, _text):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("overlays.progress.PLAIN_INTERVAL_SECONDS", 0.0)
    with Progress(Console(file=Full())) as progress:
        progress.watch(RunResult(RunStats(["door"]), [SourceWorker(FakeSource(1, "door"))], []))


def test_console_shows_the_duration_of_a_signal_loss_instead_of_an_age():
    camera = FakeSource(1, "door")
    camera.live = True
    pump = SourceWorker(camera)
    outcome = RunResult(RunStats(["door"]), [pump], [])
    assert "no frame yet" in lines(outcome, 100.0)[0]
    pump.frame_rate.last_at, pump.frame_rate.interval_seconds = 88.0, 0.1
    outcome.stats.cameras["door"].age.add(0.158)
    assert "no frame for 12 s" in lines(outcome, 100.0)[0]
    assert "age" not in lines(outcome, 100.0)[0]
    assert "age 1" in lines(outcome, 88.5)[0]
    pump.frame_rate.interval_seconds = 5.0
    assert "age 1" in lines(outcome, 100.0)[0], "a slow camera is not a dead one"


def test_rate_of_a_slow_camera_is_shown_until_three_frames_are_missing():
    tally = RunStats(["door"]).cameras["door"]
    for timestamp in (0.0, 5.0, 10.0):
        tally.frame_rate.record(timestamp)
    assert tally.rate(24.0) == pytest.approx(0.2)
    assert tally.rate(26.0) == 0.0
