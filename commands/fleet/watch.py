"""`run.py fleet status --watch`: shows the state of a fleet continuously."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, Final

import typer
from rich.console import Console
from rich.live import Live

from commands.console import print_line
from commands.fleet.directors import Directors
from commands.fleet.tables import status_lines, status_tables
from pipeline.errors import ReciproStreamError

WATCH_SECONDS: Final = 0.5
_ANSWER_SECONDS: Final = 3.0


def states(directors: Directors, stop: threading.Event) -> Iterator[dict[str, Any]]:
    """Yield the state of a fleet twice a second; without an answer, yield the key ``problem`` with the reason."""
    while not stop.is_set():
        try:
            state = directors.call("status", seconds=_ANSWER_SECONDS)
        except ReciproStreamError as error:
            state = {"problem": str(error)}
        yield state
        stop.wait(WATCH_SECONDS)


def watch_json(directors: Directors, stop: threading.Event) -> None:
    """Print each state as a line of JSON until ``stop`` is set or standard output is closed."""
    for state in states(directors, stop):
        try:
            typer.echo(json.dumps(state))
        except OSError:
            return


def watch_text(directors: Directors, stop: threading.Event) -> None:
    """Show the state until ``stop`` is set; if standard output is not a terminal, print each changed state."""
    console = Console()
    printed: list[str] = []
    with Live(console=console, screen=True, auto_refresh=False) if console.is_terminal else nullcontext() as live:
        for state in states(directors, stop):
            if live is not None:
                live.update(state.get("problem") or status_tables(state), refresh=True)
            elif (lines := [state["problem"]] if "problem" in state else status_lines(state)) != printed:
                printed = lines
                print_line("\n".join(lines))
