"""What the terminal shows of a run."""

from __future__ import annotations

import errno
import io

import pytest
from rich.console import Console

from overlays.progress import Progress, lines, table
from pipeline.loop import Outcome
from pipeline.metrics import Tally
from pipeline.pump import Pump
from tests.fakes import FakeSource


@pytest.mark.parametrize("name", ["[fe80::1]/live", "door [/b]", "[red]door"])
def test_names_are_shown_as_they_are_whatever_brackets_stand_in_them(name):
    outcome = Outcome(Tally([name]), [Pump(FakeSource(1, name))], [])
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    console.print(table(outcome, 0.0))
    assert name in console.file.getvalue()
    assert lines(outcome, 0.0)[0].startswith(f"{name}: ")


def test_a_log_whose_disk_is_full_ends_no_run(monkeypatch):
    class Full(io.StringIO):
        def write(self, _text):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("overlays.progress.PLAIN_INTERVAL_SECONDS", 0.0)
    with Progress(Console(file=Full())) as progress:
        progress.watch(Outcome(Tally(["door"]), [Pump(FakeSource(1, "door"))], []))
