"""Fixtures of the stream tests: an RTSP server, a web server, and clips of known images."""

from __future__ import annotations

import contextlib
import functools
import http.server
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from tests.support.limits import LIMIT_SECONDS

HERE = Path(__file__).parent
SYSTEM_PYTHON = "/usr/bin/python3"
APT = "apt-get install python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-{base,good,bad,ugly}"
GSTREAMER = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import Gst; Gst.init(None); "
GSTREAMER += "assert all(map(Gst.ElementFactory.find, ('x264enc', 'h264parse', 'rtph264pay', 'videotestsrc')))"


class RtspServer:
    """A camera in its own process, which can be stopped."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [SYSTEM_PYTHON, str(HERE / "gst_server.py"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout
        self.port = int(self._process.stdout.readline())

    def url(self, path: str = "/live", *, credentials: str = "") -> str:
        return f"rtsp://{credentials}127.0.0.1:{self.port}{path}"

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@functools.cache
def _has_gstreamer() -> bool:
    try:
        return subprocess.run([SYSTEM_PYTHON, "-c", GSTREAMER], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.fixture
def rtsp_server() -> Iterator[Callable[..., RtspServer]]:
    """Start RTSP cameras; stop them after the test."""
    if not _has_gstreamer():
        pytest.skip(f"needs GStreamer's RTSP server: {APT}")
    with contextlib.ExitStack() as stack:

        def start(*arguments: str) -> RtspServer:
            server = RtspServer(*arguments)
            stack.callback(server.close)
            return server

        yield start


@pytest.fixture
def web_server() -> Iterator[Callable[[Callable[[http.server.BaseHTTPRequestHandler], None]], str]]:
    """Serve the output of a function on the loopback interface; return the address."""
    with contextlib.ExitStack() as stack:

        def serve(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> str:
            class Handler(http.server.BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    with contextlib.suppress(ConnectionError):
                        answer(self)

                def log_message(self, *_: object) -> None: ...

            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_address[1]}"

        yield serve


def grey_of(number: int) -> int:
    """Return the brightness of image ``number`` of a clip of ``make_clip``."""
    return 16 + 8 * (number % 25)


@pytest.fixture
def make_clip(tmp_path: Path) -> Callable[..., Path]:
    """Write a clip whose image k is plain grey of brightness ``16 + 8 * (k % 25)``."""

    def make(
        name: str = "clip.mp4",
        *,
        frame_count: int = 20,
        codec: str = "mpeg4",
        options: dict[str, str] | None = None,
        coding: dict[str, str] | None = None,
    ) -> Path:
        path = tmp_path / name
        with av.open(str(path), "w", options=options or {}) as container:
            stream = container.add_stream(codec, rate=10, options=coding or {})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for number in range(frame_count):
                grey = np.full((48, 64, 3), grey_of(number), np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(grey)))
            container.mux(stream.encode())
        return path

    return make
