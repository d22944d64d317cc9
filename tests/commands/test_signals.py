"""Ctrl-C, SIGTERM and SIGHUP: the first ends a run in order, a second at once; two kinds together are the first."""

from __future__ import annotations

import signal
import threading

import pytest

from commands import signals
from commands.signals import shutdown_on_signal


class AtOnceError(Exception):
    """Raised in place of the end of the process."""


@pytest.fixture
def started(monkeypatch):
    def end(code):
        raise AtOnceError(code)

    monkeypatch.setattr(signals.os, "_exit", end)
    event = threading.Event()
    event.set()
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may ignore it
    yield event
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_two_kinds_of_signals_at_once_are_one_request(started, first):
    with shutdown_on_signal(started) as stop:
        signal.raise_signal(first)
        assert stop.is_set()
        signal.raise_signal(stop.other_signal)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_same_signal_twice_ends_the_process_at_once(started, number):
    with shutdown_on_signal(started):
        signal.raise_signal(number)
        with pytest.raises(AtOnceError, match=str(128 + number)):
            signal.raise_signal(number)


def test_ignored_hangup_does_not_end_the_run(started):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with shutdown_on_signal(started) as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_later_signal_ends_the_process_at_once(started, monkeypatch):
    monkeypatch.setattr(signals, "SAME_REQUEST_SECONDS", -1.0)
    with shutdown_on_signal(started):
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(AtOnceError, match=str(128 + signal.SIGINT)):
            signal.raise_signal(signal.SIGINT)
