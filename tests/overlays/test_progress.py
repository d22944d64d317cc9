"""What the terminal shows of a run."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from overlays.progress import lines, table
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
