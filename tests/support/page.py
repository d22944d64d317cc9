"""The page's server on a free port, and a client of its requests and its WebSocket."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from websockets.sync.client import ClientConnection, connect

from overlays.sinks.settings import WebSettings
from overlays.sinks.web import WebSink
from overlays.web.framing import unpack
from overlays.wire.header import decode_header
from pipeline.settings import Secret, SinkContext
from tests.support.limits import LIMIT_SECONDS

ANY = "http://127.0.0.1:0"
TOKEN = "correct-horse-battery"  # noqa: S105 - of no page
LOCKED = {"token_file": Secret(TOKEN)}


@contextmanager
def page(
    secrets: dict[str, Secret] | None = None, cameras: tuple[str, ...] = ("line",), **options: Any
) -> Iterator[WebSink]:
    """Serve the page on a free port of this machine."""
    settings = WebSettings(uri=ANY, **options)
    with WebSink(settings, SinkContext(tuple(cameras), secrets or {})) as sink:
        yield sink


def fetch(
    sink: WebSink, path: str, method: str = "GET", body: str | bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of one request; underscores in header names stand for dashes."""
    host = sink.endpoint.removeprefix("http://")
    link = http.client.HTTPConnection(host, timeout=LIMIT_SECONDS)
    try:
        link.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = link.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        link.close()


@contextmanager
def connect_viewer(sink: WebSink, **headers: str) -> Iterator[ClientConnection]:
    """Open the WebSocket of a viewer, and wait until the page sends to it: it does not keep frames for later."""
    address = sink.endpoint.replace("http://", "ws://") + "/frames"
    broadcaster = sink._page.broadcaster
    before = set(broadcaster.clients)
    with connect(address, additional_headers=headers, compression=None, max_size=None, proxy=None) as link:
        while link.close_code is None and before.issuperset(broadcaster.clients):
            time.sleep(0.002)
        yield link


def frame(link: ClientConnection, seconds: float = LIMIT_SECONDS):
    """Return header and JPEG of the next frame; skip other messages."""
    deadline = time.monotonic() + seconds
    while True:
        received = link.recv(timeout=deadline - time.monotonic())
        if isinstance(received, bytes):
            packed, image = unpack(received)
            return decode_header(packed), image


def status(
    link: ClientConnection, expected: Callable[[dict[str, Any]], bool], seconds: float = LIMIT_SECONDS
) -> dict[str, Any]:
    """Return the first camera status that satisfies the condition."""
    deadline = time.monotonic() + seconds
    while True:
        received = link.recv(timeout=deadline - time.monotonic())
        if isinstance(received, str):
            record = json.loads(received)
            if record["kind"] == "status":
                link.send('{"heard": true}')
                if record["cameras"] and expected(record["cameras"][0]):
                    return record["cameras"][0]
