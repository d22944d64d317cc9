"""The window: one per camera, shown by OpenCV. q, Esc or closing any of them asks for the end.

OpenCV's windows belong to the thread that made them, so they are made in the first ``put``; entering only finds out, in
a process of its own, whether a window can be made at all: where it cannot, Qt ends the process it is in. On a bare X
server without a window manager one window in five or so stays black, whoever draws in it; with one none did.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from types import TracebackType
from typing import Final, Self

import cv2

from overlays.sinks.options import SinkOptions
from pipeline.errors import SinkError
from pipeline.frames import Overlay
from pipeline.ports import StopRequested

_ESCAPE: Final = 27
_LARGEST_START: Final = (1280, 800)
"""A window starts no larger than this, so that it fits a laptop's screen; it can be resized."""
_PROBE_SECONDS: Final = 20.0
_PROBE: Final = "import cv2; cv2.namedWindow('recipro-stream', cv2.WINDOW_GUI_NORMAL); cv2.destroyAllWindows()"
_INSTEAD: Final = "use --sink out.mp4, or --sink tcp://0.0.0.0:5555 (with --curve-keys) and `run.py view` elsewhere"


class WindowSink:
    """Shows overlays on the screen.

    ``put``, ``idle`` and whatever they raise belong to one thread; that thread has ended when the sink is left.
    """

    lossless = False

    def __init__(self, *, options: SinkOptions | None = None) -> None:
        """Take where there is a display."""
        self.uri = "window"
        self._display = (options or SinkOptions()).display
        self._names: dict[str, str] = {}

    def __enter__(self) -> Self:
        if not self._display:
            raise SinkError(f"window: there is no display (DISPLAY and WAYLAND_DISPLAY are not set); {_INSTEAD}")
        try:
            probe = subprocess.run(  # noqa: S603 - our own interpreter
                [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise SinkError(f"window: the display {self._display!r} does not answer; {_INSTEAD}") from None
        if probe.returncode:
            raise SinkError(f"window: the display {self._display!r} takes no window ({_why(probe.stderr)}); {_INSTEAD}")
        return self

    def needs_picture(self, camera: str) -> bool:  # noqa: ARG002 - the same for every camera
        """Say yes: somebody looks at it."""
        return True

    def put(self, overlay: Overlay) -> None:
        """Show one frame.

        Raises:
            StopRequested: q or Esc was pressed, or a window was closed.
            SinkError: the display went away.
        """
        camera = overlay.explanation.frame.camera
        height, width = overlay.image.shape[:2]
        try:
            if camera not in self._names:
                self._names[camera] = _open(camera, width, height)
            cv2.imshow(self._names[camera], cv2.cvtColor(overlay.image, cv2.COLOR_RGB2BGR))
            self.idle()
        except cv2.error as error:
            raise SinkError(f"window: {camera}: cannot be shown ({error.err or error}); {_INSTEAD}") from error

    def idle(self) -> None:
        """Let the windows answer keys and clicks. Call it now and then when frames are rare.

        Raises:
            StopRequested: q or Esc was pressed, or a window was closed.
        """
        if not self._names:
            return
        key = cv2.waitKey(1) & 0xFF
        closed = any(_is_closed(name) for name in self._names.values())
        if closed or key in {ord("q"), ord("Q"), _ESCAPE}:
            raise StopRequested("window: closed" if closed else "window: q or Esc")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if self._names:
            with contextlib.suppress(cv2.error):  # the last one is closed already
                cv2.destroyAllWindows()
        self._names.clear()


def _open(camera: str, width: int, height: int) -> str:
    name = f"{camera} - recipro-stream"
    cv2.namedWindow(name, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
    scale = min(1.0, _LARGEST_START[0] / width, _LARGEST_START[1] / height)
    cv2.resizeWindow(name, max(1, round(width * scale)), max(1, round(height * scale)))
    return name


def _is_closed(name: str) -> bool:
    """Say whether somebody closed the window; with the last one OpenCV's Qt is gone, and asking is an error."""
    try:
        return bool(cv2.getWindowProperty(name, cv2.WND_PROP_VISIBLE) < 1)
    except cv2.error:
        return True


def _why(said: str) -> str:
    """Pick the line that tells the reason: Qt says much about fonts before it says what is wrong."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if "display" in line.lower() or "error" in line.lower()]
    return (telling or lines or ["no reason given"])[0][:200]
