"""The gateway of a fleet as a separate program, and a viewer of its page that records the frames."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from overlays.web.framing import unpack
from overlays.wire.header import decode_header
from pipeline.workers.thread import ThreadWorker
from tests.support.fleet import FLEET, Row
from tests.support.limits import LIMIT_SECONDS

RUN = Path(__file__).resolve().parents[2] / "run.py"


class GatewayViewer:
    """Requests of the gateway's page, and the frames that it sends to a viewer."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.rows: list[Row] = []
        self.stop = threading.Event()

    def get(self, path: str) -> Any:
        """Return an answer of JSON."""
        with urllib.request.urlopen(self.endpoint + path, timeout=LIMIT_SECONDS) as answer:  # noqa: S310 - our own page
            return json.load(answer)

    def wait_for(self, camera: str, expected: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the first state of a camera on the page that satisfies a condition."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while True:
            states = self.get("/api/cameras")["cameras"]
            found = next((state for state in states if state["camera"] == camera), None)
            if found is not None and expected(found):
                return found
            assert time.monotonic() < deadline, f"{camera} is {found}"
            time.sleep(0.1)

    def wait_until_gone(self, camera: str) -> None:
        """Wait until the page has no such camera."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while any(state["camera"] == camera for state in self.get("/api/cameras")["cameras"]):
            assert time.monotonic() < deadline, f"{camera} is still there"
            time.sleep(0.1)

    def watch(self) -> None:
        """Note camera, epoch and index of each frame, until ``stop`` is set."""
        address = self.endpoint.replace("http://", "ws://") + "/frames"
        with connect(address, compression=None, max_size=None, proxy=None) as link:
            while not self.stop.is_set():
                try:
                    received = link.recv(timeout=0.2)
                except TimeoutError:
                    continue
                except ConnectionClosed:
                    return
                if isinstance(received, bytes):
                    header = decode_header(unpack(received)[0])
                    self.rows.append(Row(time.time(), header.camera, header.epoch or 0, header.index, "page"))
                    link.send(json.dumps({"shown": header.camera}))
                else:
                    link.send(json.dumps({"status": True}))


@contextmanager
def a_gateway(address: str, token: Path) -> Iterator[GatewayViewer]:
    """Run the gateway of the test fleet on a free port, and a viewer of its page."""
    command = [
        *(sys.executable, str(RUN), "fleet", "gateway", "--sink", "http://127.0.0.1:0"),
        *("--address", address, "--fleet", FLEET, "--token-file", str(token)),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            viewer = GatewayViewer("http://" + line.partition("http://")[2].partition(";")[0])
            with ThreadWorker("viewer of the gateway", viewer.watch, viewer.stop.set):
                yield viewer
        finally:
            process.terminate()
            process.communicate(timeout=LIMIT_SECONDS)
