"""Window sink: shows one window per camera by SDL (pygame-ce). q, Esc or closing a window stops the run.

OpenCV is not used for windows: its build with windows needs libGL at import, which containers and servers often lack,
and it ends the process if the display does not answer. An SDL window belongs to the thread that created it, so ``put``
creates the windows; ``__enter__`` only tests, in a separate process, whether a window can be created.
"""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from types import ModuleType
from typing import Any, Final, Self

import cv2
import numpy as np

from overlays.render.text import printable
from overlays.sinks.settings import WindowSettings
from pipeline.errors import SinkError
from pipeline.frames import Image, Overlay
from pipeline.ports import Sink, StopRequested
from pipeline.settings import SinkContext

_MAX_START: Final = (1280, 800)
"""Maximum initial size (width, height) of a window in pixels, so that it fits a laptop's screen; it can be resized."""
_PROBE_SECONDS: Final = 60.0
_INVISIBLE_DRIVERS: Final = ("offscreen", "dummy")
"""SDL's drivers without a screen, which SDL uses if no display answers."""
_PROBE: Final = f"""
import sys, pygame
pygame.display.init()
if pygame.display.get_driver() in {_INVISIBLE_DRIVERS!r}:
    sys.exit("cannot connect to it, or the libraries of X11 and Wayland are missing")
pygame.Window("recipro-stream", (64, 64), hidden=True).destroy()
pygame.display.quit()
"""
_ALTERNATIVE: Final = "use --sink out.mp4, or --sink tcp://0.0.0.0:5555 (with --curve-keys) and `run.py view` elsewhere"


def load_pygame() -> ModuleType:
    """Import pygame without its greeting on standard output, and return the module.

    Raises:
        SinkError: pygame-ce is not installed, or cannot be loaded.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            import pygame
    except ImportError as reason:
        raise SinkError(
            f"window: pygame-ce cannot be loaded ({reason}); install it: uv sync (or pip install pygame-ce), or "
            f"{_ALTERNATIVE}"
        ) from None
    if not hasattr(pygame, "Window"):
        raise SinkError(
            f"window: pygame {pygame.version.ver} lacks pygame.Window; pip uninstall pygame, then pip install "
            f"pygame-ce, or {_ALTERNATIVE}"
        )
    return pygame


class WindowSink(Sink):
    """Shows overlays on the screen.

    ``put`` and ``idle`` are called by one thread, which has ended before ``__exit__``.
    """

    def __init__(self, settings: WindowSettings | str = "window", context: SinkContext | None = None) -> None:
        """Store the display of ``context``; the first ``put`` opens a window."""
        self.uri = WindowSettings.of(settings).uri
        self._display = (context or SinkContext()).display
        self._pygame: Any = None
        self._windows: dict[str, Any] = {}
        self._shown: dict[str, Image] = {}
        """By camera: the image in its window."""

    def __enter__(self) -> Self:
        if not self._display:
            raise SinkError(f"window: there is no display (DISPLAY and WAYLAND_DISPLAY are not set); {_ALTERNATIVE}")
        self._pygame = load_pygame()
        try:
            probe = subprocess.run(  # noqa: S603 - our own interpreter
                [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise SinkError(f"window: the display {self._display!r} does not answer; {_ALTERNATIVE}") from None
        if probe.returncode:
            raise SinkError(
                f"window: the display {self._display!r} cannot open a window ({_why(probe.stderr)}); {_ALTERNATIVE}"
            )
        return self

    def needs_image(self, camera: str) -> bool:  # noqa: ARG002 - the same for every camera
        """Return True: the window shows every frame."""
        return True

    def put(self, overlay: Overlay) -> None:
        """Show one frame.

        Raises:
            StopRequested: q or Esc was pressed, or a window was closed.
            SinkError: the display does not answer any more.
        """
        camera = overlay.explanation.frame.camera
        self._shown[camera] = overlay.image
        try:
            if camera not in self._windows:
                self._windows[camera] = self._open(camera, overlay.image)
            self._draw(camera)
        except self._pygame.error as error:
            raise SinkError(f"window: {camera}: cannot be shown ({error}); {_ALTERNATIVE}") from error
        self.idle()

    def idle(self) -> None:
        """Handle key presses, clicks and resizing. Call it regularly while frames are rare.

        Raises:
            StopRequested: q or Esc was pressed, or a window was closed.
        """
        if not self._windows:
            return
        pygame, needs_redraw = self._pygame, False
        for event in pygame.event.get():
            if event.type in {pygame.WINDOWCLOSE, pygame.QUIT}:
                raise StopRequested("window: closed")
            if event.type == pygame.KEYDOWN and event.key in {pygame.K_q, pygame.K_ESCAPE}:
                raise StopRequested("window: q or Esc")
            needs_redraw |= event.type in {pygame.WINDOWEXPOSED, pygame.WINDOWSIZECHANGED}
        for camera in self._windows if needs_redraw else ():
            self._draw(camera)

    def forget_camera(self, camera: str) -> None:
        """Close the window of a camera."""
        self._shown.pop(camera, None)
        if (window := self._windows.pop(camera, None)) is not None:
            window.destroy()

    def __exit__(self, *_: object) -> None:
        if self._windows:
            for window in self._windows.values():
                window.destroy()
            self._pygame.display.quit()
        self._windows.clear()
        self._shown.clear()

    def _open(self, camera: str, image: Image) -> Any:  # noqa: ANN401 - pygame's window
        pygame = self._pygame
        if not pygame.display.get_init():
            pygame.display.init()
        height, width = image.shape[:2]
        scale = min(1.0, _MAX_START[0] / width, _MAX_START[1] / height)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        return pygame.Window(f"{printable(camera)} - recipro-stream", size, resizable=True)

    def _draw(self, camera: str) -> None:
        """Fit the camera's image into its window, with its aspect ratio."""
        surface = self._windows[camera].get_surface()
        image = fitted(self._shown[camera], surface.get_size())
        size = (image.shape[1], image.shape[0])
        corner = ((surface.get_width() - size[0]) // 2, (surface.get_height() - size[1]) // 2)
        surface.fill((0, 0, 0))
        surface.blit(self._pygame.image.frombuffer(image.tobytes(), size, "RGB"), corner)
        self._windows[camera].flip()


def fitted(image: Image, bounds: tuple[int, int]) -> Image:
    """Scale an image to fit into a size, with its aspect ratio.

    Args:
        image: RGB, uint8, (height, width, 3).
        bounds: width and height in pixels.

    Returns:
        RGB, uint8, (height, width, 3).
    """
    height, width = image.shape[:2]
    scale = min(bounds[0] / width, bounds[1] / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if size == (width, height):
        return image
    interpolation = cv2.INTER_AREA if scale < 1.0 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, size, interpolation=interpolation), np.uint8)


def _why(output: str) -> str:
    """Return the last line of the probe's error output, which has the reason."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return (lines or ["no reason given"])[-1][:200]
