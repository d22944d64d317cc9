"""The window, on a screen of its own (Xvfb), in a process of its own."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np
import pytest

from overlays.sinks.window import WindowSink, fitted
from pipeline.errors import SinkError
from pipeline.settings import SinkContext
from tests.support.limits import LIMIT_SECONDS

ROOT = Path(__file__).resolve().parents[2]

# xdotool does not read the titles that SDL sets in a locale of UTF-8. As run.py sets it.
WM_CLASS = "recipro-stream"

SHOW = """
import sys, threading
sys.path.insert(0, "tests/overlays")
import numpy as np
from conftest import explain
from overlays.render.renderer import HeatRenderer
from pipeline.settings import SinkContext
from overlays.sinks.window import WindowSink
from pipeline.frames import Overlay
from pipeline.ports import StopRequested

left = np.zeros((4, 4), np.float32)
left[:, 0] = 1.0
pause, renderer = threading.Event(), HeatRenderer()

def show():
    try:
        for index in range(600):
            sink.put(renderer.render(explain(np.full((480, 640, 3), (20, 40, 200), np.uint8), heat=left, index=index)))
            if index == 10:
                print("shown", flush=True)
            pause.wait(0.02)
    except StopRequested as reason:
        print("stopped:", reason, flush=True)

with WindowSink(context=SinkContext(display="given")) as sink:
    thread = threading.Thread(target=show)
    thread.start()
    thread.join()
print("left", flush=True)
"""


@pytest.fixture(scope="module")
def screen() -> Iterator[str]:
    missing = [name for name in ("Xvfb", "openbox", "xdotool", "import") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (Debian: xvfb openbox xdotool imagemagick)")
    reading, writing = os.pipe()
    command = ["Xvfb", "-displayfd", str(writing), "-screen", "0", "1024x768x24", "-nolisten", "tcp", "-noreset"]
    with ExitStack() as stack:
        server = stack.enter_context(subprocess.Popen(command, pass_fds=(writing,), stderr=subprocess.DEVNULL))
        stack.callback(server.terminate)
        os.close(writing)
        with os.fdopen(reading) as result:
            display = f":{result.readline().strip()}"
        command = ["openbox", "--sm-disable", "--startup", "echo ready"]
        manager = stack.enter_context(
            subprocess.Popen(command, env=os.environ | {"DISPLAY": display}, stdout=subprocess.PIPE, text=True)
        )
        stack.callback(manager.terminate)
        assert any(line == "ready\n" for line in manager.stdout)
        yield display


def call(display, *command):
    completed = subprocess.run(
        command, env=os.environ | {"DISPLAY": display}, capture_output=True, check=False, timeout=LIMIT_SECONDS
    )
    return completed.stdout


class ClientMessage(ctypes.Structure):
    """XClientMessageEvent, padded to an XEvent's size."""

    _fields_ = (
        ("kind", ctypes.c_int),
        ("serial", ctypes.c_ulong),
        ("send_event", ctypes.c_int),
        ("display", ctypes.c_void_p),
        ("window", ctypes.c_ulong),
        ("message_type", ctypes.c_ulong),
        ("format", ctypes.c_int),
        ("values", ctypes.c_long * 5),
        ("padding", ctypes.c_long * 24),
    )


def close_politely(display, window):
    """Ask a window to close, as the cross in its corner does: there is no window manager here to draw one."""
    xlib = ctypes.CDLL("libX11.so.6")
    xlib.XOpenDisplay.restype = ctypes.c_void_p
    xlib.XInternAtom.restype = ctypes.c_ulong
    screen = ctypes.c_void_p(xlib.XOpenDisplay(display.encode()))
    protocols, delete = (xlib.XInternAtom(screen, name, 0) for name in (b"WM_PROTOCOLS", b"WM_DELETE_WINDOW"))
    event = ClientMessage(33, 0, 1, screen, window, protocols, 32, (ctypes.c_long * 5)(delete))
    assert xlib.XSendEvent(screen, ctypes.c_ulong(window), 0, ctypes.c_long(0), ctypes.byref(event))
    xlib.XCloseDisplay(screen)


def shown_window(display):
    """Start showing, and wait until a picture is on the screen."""
    child = subprocess.Popen(
        [sys.executable, "-c", SHOW],
        cwd=ROOT,
        env=os.environ | {"DISPLAY": display, "SDL_VIDEO_X11_WMCLASS": WM_CLASS},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "shown\n", child.communicate(timeout=LIMIT_SECONDS)
    return child


def colours_on(screen, image):
    """Return the numbers of pixels of a screenshot with the frame's colour and with the hottest colour."""
    call(screen, "import", "-window", "root", str(image))
    seen = cv2.imread(str(image), cv2.IMREAD_COLOR_RGB).reshape(-1, 3).astype(int)
    hottest = 0.4 * np.array([20, 40, 200]) + 0.6 * np.array([252, 255, 164])
    return tuple(int((np.abs(seen - colour).max(axis=1) <= 2).sum()) for colour in ((20, 40, 200), hottest))


@pytest.mark.slow
@pytest.mark.window
@pytest.mark.parametrize("key", ["q", "Escape"])
def test_window_shows_the_overlay_and_ends_with_a_key(screen, tmp_path, wait_until, key):
    path = tmp_path / "screen.png"

    def on_the_screen():
        cold, hot = colours_on(screen, path)
        return cold > 640 * 480 * 0.4 and hot > 5_000  # blue on the right, yellow on the left

    with shown_window(screen) as child:
        try:
            wait_until(on_the_screen)
            call(screen, "xdotool", "search", "--class", WM_CLASS, "key", key)
            output, complaints = child.communicate(timeout=LIMIT_SECONDS)
        finally:
            child.kill()
            call(screen, "xdotool", "keyup", key)  # the window is gone before xdotool lets the key go
    assert output == "stopped: window: q or Esc\nleft\n"
    assert child.returncode == 0
    assert complaints == ""
    assert colours_on(screen, path) == (0, 0), "nothing of it stays on the screen"


@pytest.mark.slow
@pytest.mark.window
def test_window_ends_when_closed(screen):
    with shown_window(screen) as child:
        try:
            close_politely(screen, int(call(screen, "xdotool", "search", "--class", WM_CLASS).split()[0]))
            output, complaints = child.communicate(timeout=LIMIT_SECONDS)
        finally:
            child.kill()
    assert output == "stopped: window: closed\nleft\n", complaints


def test_window_without_a_display_is_refused_with_the_remedy():
    with pytest.raises(SinkError, match=r"there is no display.*--sink out\.mp4"), WindowSink():
        pass


@pytest.mark.window
def test_display_that_does_not_answer_is_an_error_and_does_not_end_the_run(monkeypatch):
    monkeypatch.setenv("DISPLAY", ":987")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with (
        pytest.raises(SinkError, match=r"':987' cannot open a window \(.*connect"),
        WindowSink(context=SinkContext(display=":987")),
    ):
        pass


def test_image_is_fitted_into_a_window_of_any_size_with_its_aspect_ratio():
    image = np.zeros((480, 640, 3), np.uint8)
    assert fitted(image, (640, 480)) is image
    assert fitted(image, (320, 480)).shape == (240, 320, 3)
    assert fitted(image, (1280, 2000)).shape == (960, 1280, 3)
    assert fitted(image, (1, 1)).shape == (1, 1, 3)
    assert fitted(np.zeros((2, 5000, 3), np.uint8), (100, 100)).shape == (1, 100, 3)


def test_missing_window_library_error_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(SinkError, match=r"pygame-ce cannot be loaded .*uv sync.*--sink out\.mp4"):
        WindowSink(context=SinkContext(display=":1")).__enter__()


def test_window_libraries_are_imported_by_the_window_only():
    code = (
        "import sys; import overlays.render.renderer, overlays.sinks.registry, "
        "overlays.sinks.video, overlays.sinks.zeromq; "
    )
    code += "import overlays.diagnostics, stream.sources, cv2; print('pygame' in sys.modules, 'GUI' in cv2.__file__)"
    completed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert completed.stdout == "False False\n"
