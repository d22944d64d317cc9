"""Ctrl-C and SIGTERM: the first ends a run in order, a later one at once, and some at the same time are the first."""

from __future__ import annotations

import signal
import threading

import pytest

from commands import signals
from commands.signals import until_interrupted


class AtOnceError(Exception):
    """The process would have ended here."""


@pytest.fixture
def begun(monkeypatch):
    def end(code):
        raise AtOnceError(code)

    monkeypatch.setattr(signals.os, "_exit", end)
    event = threading.Event()
    event.set()
    return event


def test_what_a_terminal_a_supervisor_and_another_process_of_the_run_ask_together_is_one_wish(begun):
    with until_interrupted(begun) as stop:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
        assert stop.is_set()


def test_a_later_signal_ends_the_process_at_once(begun, monkeypatch):
    monkeypatch.setattr(signals, "TOGETHER_SECONDS", -1.0)
    with until_interrupted(begun):
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(AtOnceError, match=str(128 + signal.SIGINT)):
            signal.raise_signal(signal.SIGINT)
