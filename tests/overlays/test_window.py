"""The window, on a screen of its own (Xvfb), in a process of its own: Qt stays in the process it was loaded into."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from overlays.sinks.options import SinkOptions
from overlays.sinks.window import WindowSink
from pipeline.errors import SinkError

ROOT = Path(__file__).resolve().parents[2]

SHOW = """
import sys, threading
sys.path.insert(0, "tests/overlays")
import numpy as np
from conftest import explain
from overlays.renderer import HeatRenderer
from overlays.sinks.options import SinkOptions
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

with WindowSink(options=SinkOptions(display="given")) as sink:
    thread = threading.Thread(target=show)
    thread.start()
    thread.join()
print("left", flush=True)
"""


@pytest.fixture(scope="module")
def screen() -> Iterator[str]:
    missing = [name for name in ("Xvfb", "xdotool", "import") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (Debian: xvfb xdotool imagemagick)")
    reading, writing = os.pipe()
    command = ["Xvfb", "-displayfd", str(writing), "-screen", "0", "1024x768x24", "-nolisten", "tcp"]
    with subprocess.Popen(command, pass_fds=(writing,), stderr=subprocess.DEVNULL) as server:
        os.close(writing)
        with os.fdopen(reading) as told:
            display = f":{told.readline().strip()}"
        yield display
        server.terminate()


def ask(display, *command):
    said = subprocess.run(command, env=os.environ | {"DISPLAY": display}, capture_output=True, check=False, timeout=30)
    return said.stdout


def shown_window(display):
    """Start showing, and wait until a picture is on the screen."""
    child = subprocess.Popen(
        [sys.executable, "-c", SHOW],
        cwd=ROOT,
        env=os.environ | {"DISPLAY": display},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "shown\n", child.communicate(timeout=30)
    return child


@pytest.mark.window
@pytest.mark.parametrize("key", ["q", "Escape"])
def test_the_overlay_is_on_the_screen_and_a_key_ends_it(screen, tmp_path, key):
    with shown_window(screen) as child:
        try:
            picture = tmp_path / "screen.png"
            ask(screen, "import", "-window", "root", str(picture))
            ask(screen, "xdotool", "search", "--name", "recipro-stream", "key", key)
            said, complaints = child.communicate(timeout=30)
        finally:
            child.kill()
    assert said == "stopped: window: q or Esc\nleft\n"
    assert child.returncode == 0
    assert complaints == ""
    seen = cv2.imread(str(picture), cv2.IMREAD_COLOR_RGB).reshape(-1, 3).astype(int)
    cold = np.abs(seen - (20, 40, 200)).max(axis=1) <= 2
    hot = np.abs(seen - (0.4 * np.array([20, 40, 200]) + 0.6 * np.array([252, 255, 164]))).max(axis=1) <= 2
    assert cold.sum() > 640 * 480 * 0.4, "the frame's own blue, right of the heat"
    assert hot.sum() > 5_000, "60 % of inferno's yellow, left"


@pytest.mark.window
def test_closing_the_window_ends_it(screen):
    with shown_window(screen) as child:
        try:
            ask(screen, "xdotool", "search", "--name", "recipro-stream", "windowquit")
            said, _ = child.communicate(timeout=30)
        finally:
            child.kill()
    assert "stopped: window: closed\nleft\n" in said


def test_without_a_display_it_says_so_and_what_to_do():
    with pytest.raises(SinkError, match=r"there is no display.*--sink out\.mp4"), WindowSink(options=SinkOptions()):
        pass


@pytest.mark.window
def test_a_display_that_does_not_answer_is_an_error_and_not_the_end_of_the_run(monkeypatch):
    monkeypatch.setenv("DISPLAY", ":987")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with (
        pytest.raises(SinkError, match=r"':987' takes no window \(.*connect"),
        WindowSink(options=SinkOptions(display=":987")),
    ):
        pass
