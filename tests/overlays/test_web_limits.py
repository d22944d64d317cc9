"""Limits of the page's server: rates, connections, idle clients, file handles and the log."""

from __future__ import annotations

import asyncio
import http.client
import logging
import socket
import time
from contextlib import ExitStack, closing, suppress

import numpy as np
import pytest

from overlays import file_limits
from overlays.web import middleware, server
from overlays.web import rate_limit as pace_of_page
from overlays.web.rate_limit import UNAUTHENTICATED, WRONG_TOKEN_COST, Rate, RequestRateLimiter
from tests.support.limits import LIMIT_SECONDS
from tests.support.page import LOCKED, TOKEN, connect_viewer, fetch, frame, page


def test_request_interrupted_by_shutdown_is_not_logged():
    cut_short = asyncio.CancelledError("Task cancelled, timeout graceful shutdown exceeded")
    for error, is_said in ((cut_short, False), (ValueError("a mistake"), True)):
        record = logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, "Exception", (), (type(error), error, None))
        assert server.RepeatFilter().filter(record) is is_said


def test_repeated_invalid_requests_are_logged_once_a_minute(caplog):
    now = [0.0]
    log = logging.getLogger("somebody")
    log.addFilter(server.RepeatFilter(lambda: now[0]))
    for second in range(100):
        now[0] = second
        log.warning("Invalid HTTP request received.")
    log.warning("something else")
    assert [record.getMessage()[:7] for record in caplog.records] == ["Invalid", "Invalid", "somethi"]


@pytest.mark.slow
def test_idle_connections_are_closed_and_active_ones_answered(wait_until, monkeypatch):
    monkeypatch.setattr(server, "REQUEST_TIMEOUT_SECONDS", 3.0)
    with page() as sink:
        host, port = sink.endpoint.removeprefix("http://").split(":")
        with ExitStack() as stack:
            mute = [stack.enter_context(socket.create_connection((host, int(port)), 10)) for _ in range(300)]
            for number, connection in enumerate(mute):
                if number % 2:
                    connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Never-Ends: ")
            wait_until(lambda: fetch(sink, "/healthz")[0] == 200)
            for connection in mute:
                with suppress(ConnectionError):
                    assert connection.recv(1) == b""


def test_connection_with_repeated_requests_is_not_idle(monkeypatch):
    monkeypatch.setattr(server, "REQUEST_TIMEOUT_SECONDS", 0.5)
    with page() as sink:
        link = http.client.HTTPConnection(sink.endpoint.removeprefix("http://"), timeout=LIMIT_SECONDS)
        with closing(link):
            link.connect()
            door, ended = link.sock, time.monotonic() + 1.5
            while time.monotonic() < ended:
                link.request("GET", "/healthz")
                assert link.getresponse().read() == b"alive\n"
            assert link.sock is door


def test_rate_limit_allows_a_burst_then_delays_then_refuses():
    pace = RequestRateLimiter()
    waits = [pace.delay("192.0.2.1", 100.0, is_unauthenticated=True) for _ in range(200)]
    assert waits[: UNAUTHENTICATED.burst] == [0.0] * UNAUTHENTICATED.burst
    spaced = [wait for wait in waits if wait]
    assert spaced == sorted(spaced)
    assert spaced[0] == pytest.approx(1 / UNAUTHENTICATED.per_second)
    assert waits[-1] is None
    assert pace.delay("192.0.2.2", 100.0, is_unauthenticated=True) == 0.0, "others are not held up"
    assert pace.delay("192.0.2.1", 200.0, is_unauthenticated=True) == 0.0, "later it is forgotten"
    guesses = [pace.delay("192.0.2.3", 300.0, is_unauthenticated=True, cost=WRONG_TOKEN_COST) for _ in range(20)]
    assert guesses.count(0.0) == UNAUTHENTICATED.burst // WRONG_TOKEN_COST


def test_rate_limit_of_unknown_clients_is_bounded_in_total_and_memory():
    pace = RequestRateLimiter()
    waits = [pace.delay(f"192.0.{k // 250}.{k % 250}", 100.0, is_unauthenticated=True) for k in range(9000)]
    assert None in waits
    assert len(pace._due) <= 4096
    assert pace.delay("198.51.100.1", 100.0, is_unauthenticated=False) == 0.0, (
        "visitors of an open page do not wait for them"
    )


def test_client_that_never_reads_is_disconnected_and_frees_its_slot(overlaid, wait_until, monkeypatch):
    monkeypatch.setattr(server, "READ_SECONDS", 0.5)
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    with page() as sink, socket.socket() as mute:
        mute.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        mute.connect(sink._page.access.address)
        mute.sendall(b"GET /stream/line.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: sink._broadcaster.clients)
        index = [0]

        def gone():
            index[0] += 1
            sink.put(overlaid(noise, index=index[0]))
            return not sink._broadcaster.clients

        wait_until(gone)


def test_connection_limit_drops_unauthenticated_before_authenticated_clients(overlaid, wait_until, monkeypatch):
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 16)
    asking = b"GET /static/page.css HTTP/1.1\r\nHost: x\r\n\r\n" * 200  # more than the kernel holds
    with page(LOCKED) as sink, connect_viewer(sink, Authorization=f"Bearer {TOKEN}") as link, ExitStack() as stack:
        for number in range(40):
            connection = stack.enter_context(socket.create_connection(sink._page.access.address, 10))
            if number % 2:
                with suppress(ConnectionError):
                    connection.sendall(asking)

        def answered():  # during a burst this connection may be refused too; then it is tried again
            with suppress(ConnectionError, http.client.BadStatusLine):
                return fetch(sink, "/metrics", Authorization=f"Bearer {TOKEN}")[0] == 200

        wait_until(answered)
        sink.put(overlaid(index=5))
        assert frame(link)[0].index == 5


def test_page_waits_while_no_file_handle_is_free_and_logs_once(overlaid, wait_until, caplog):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with page() as sink, ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        assert fetch(sink, "/healthz")[0] == 200
        waiting = [stack.enter_context(socket.socket()) for _ in range(20)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (waiting[0].fileno(), before[1]))
        for connection in waiting:
            connection.connect(sink._page.access.address)
        wait_until(lambda: "no connection can be accepted" in caplog.text)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert fetch(sink, "/healthz")[0] == 200
    assert len([record for record in caplog.records if "can be accepted" in record.message]) == 1
    assert "asyncio" not in {record.name for record in caplog.records}


@pytest.mark.parametrize(("soft", "limit"), [(None, 256), (1024, 256), (512, 85), (256, 42), (64, 16), (1 << 20, 256)])
def test_connection_limit_leaves_handles_for_recording(soft, limit, monkeypatch):
    monkeypatch.setattr(file_limits, "_soft_limit", lambda: None)
    assert file_limits.connection_limit(256, soft) == limit


def test_client_key_groups_an_ipv6_network():
    assert (
        file_limits.shared_address("2001:db8::1") == file_limits.shared_address("2001:db8::ffff:1") == "2001:db8::/64"
    )
    assert file_limits.shared_address("::ffff:192.0.2.1") == "192.0.2.1"
    assert file_limits.is_loopback_address("::ffff:127.0.0.1")
    assert not file_limits.is_loopback_address("nonsense")


def test_forged_forwarded_address_cannot_write_into_the_log(caplog):
    with page(LOCKED) as sink:
        fetch(sink, "/metrics", X_Forwarded_For="1.2.3.4\x1b[2J fake")
    assert "an unknown address" in caplog.text
    assert "\x1b" not in caplog.text


@pytest.mark.slow
def test_websockets_without_the_token_hold_no_slot(overlaid, wait_until, monkeypatch):
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 16)
    monkeypatch.setattr(pace_of_page, "UNAUTHENTICATED", Rate(0.1, 1))
    for module in (pace_of_page, middleware):  # each is kept waiting for its refusal
        monkeypatch.setattr(module, "MAX_WAIT_SECONDS", 3600.0)
    monkeypatch.setattr(server, "_UNADMITTED_SECONDS", 3600.0)
    upgrade = (
        b"GET /frames HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
    )
    with page(LOCKED) as sink, ExitStack() as stack:
        sink.put(overlaid())

        def answered():
            for _ in range(20):
                connection = stack.enter_context(socket.create_connection(sink._page.access.address, 10))
                with suppress(ConnectionError):
                    connection.sendall(upgrade)
            with suppress(ConnectionError, http.client.BadStatusLine):
                return fetch(sink, "/metrics", Authorization=f"Bearer {TOKEN}")[0] == 200

        wait_until(answered)
