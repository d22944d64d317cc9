"""Messages to systemd, and JSON log lines."""

import json
import logging
import socket
import sys

import pytest

from pipeline.log_format import make_formatter
from pipeline.systemd import SystemdNotifier
from tests.support.limits import LIMIT_SECONDS


@pytest.fixture
def listener(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        path = str(tmp_path / "notify")
        door.bind(path)
        door.settimeout(LIMIT_SECONDS)
        yield path, lambda: door.recv(100).decode()


def test_notifier_sends_ready_watchdog_and_stopping(listener):
    path, heard = listener
    now = [0.0]
    environment = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "2000000"}
    with SystemdNotifier(environment, clock=lambda: now[0]) as supervisor:
        assert heard() == "READY=1"
        for now[0] in (0.5, 0.9, 1.0, 1.5, 2.1):
            supervisor.notify_alive()
    assert [heard() for _ in range(3)] == ["WATCHDOG=1", "WATCHDOG=1", "STOPPING=1"]


def test_notifier_sends_no_watchdog_message_without_a_watchdog(listener):
    path, heard = listener
    now = [0.0]
    with SystemdNotifier({"NOTIFY_SOCKET": path}, clock=lambda: now[0]) as supervisor:
        now[0] = 100.0
        supervisor.notify_alive()
    assert [heard(), heard()] == ["READY=1", "STOPPING=1"]


def test_notifier_supports_an_abstract_address():
    if sys.platform != "linux":
        pytest.skip("abstract sockets are Linux's")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        door.bind("\0recipro-stream-test")
        door.settimeout(LIMIT_SECONDS)
        with SystemdNotifier({"NOTIFY_SOCKET": "@recipro-stream-test"}):
            assert door.recv(100) == b"READY=1"


def test_notifier_warns_once_of_a_missing_supervisor(tmp_path, caplog):
    with SystemdNotifier({"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "1"}) as supervisor:
        supervisor.notify_alive()
    assert len(caplog.records) == 1


def test_notifier_does_nothing_without_a_supervisor():
    with SystemdNotifier({}) as supervisor:
        supervisor.notify_alive()


def test_json_formatter_puts_the_traceback_into_the_object():
    try:
        int("a\nb")
    except ValueError:
        record = logging.LogRecord(
            "stream.live", logging.WARNING, "x.py", 1, "door: %s", ("lost\nagain",), sys.exc_info()
        )
    line = make_formatter("json").format(record)
    assert "\n" not in line
    parsed = json.loads(line)
    assert (parsed["level"], parsed["logger"], parsed["message"]) == ("warning", "stream.live", "door: lost\nagain")
    assert "ValueError" in parsed["error"]
    assert make_formatter("text").format(record).startswith("W door: lost")
