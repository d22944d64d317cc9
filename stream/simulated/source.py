"""The simulated inspection line as a camera: ``line:?fps=30&size=1280x720&seed=7``.

For trying everything without a camera, and for tests that need to know the truth: each frame carries it. What is
drawn, and what counts as true, stands in ``line_scene``.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from pipeline.errors import SourceError
from pipeline.frames import Frame, GroundTruth, Image
from pipeline.ports import Health
from stream.simulated.scene import Scene, draw_frame
from stream.simulated.shortcut import add_shortcut

_BUFFER_FRAMES = 4
"""A camera's driver keeps so many frames for a reader that is late; the older ones are lost, as a gap in the index."""


class SimulatedLineSource:
    """A camera above the simulated line.

    Paced, it is live: frame k is there k / fps seconds after the start, whether or not anybody was ready. Unpaced it
    gives frames as fast as they are taken, like a file. Both give the same pictures at the same index.
    """

    def __init__(
        self,
        *,
        fps: float = 30.0,
        size: tuple[int, int] = (640, 480),
        seed: int = 7,
        camera: str = "line",
        paced: bool = True,
        frames: int | None = None,
        stamp: bool = False,
    ) -> None:
        """Take ``size`` as (width, height) in pixels; ``frames`` None means without end; ``stamp``: see ``line_mark``.

        Raises ``SourceError`` for values out of range.
        """
        if frames is not None and frames < 1:
            raise SourceError(f"line: frames={frames}: it must be 1 or more; leave it out for a line without end")
        self.camera = camera
        self.uri = f"line:?fps={fps:g}&size={size[0]}x{size[1]}&seed={seed}&paced={int(paced)}"
        if frames is not None:
            self.uri += f"&frames={frames}"
        if stamp:
            self.uri += "&stamp=1"
        self._stamp = stamp
        self.live = paced
        self.frames_total = frames
        self.rate: float | None = fps
        self._fps = fps
        try:
            self._scene = Scene(size=size, seed=seed, fps=fps)
        except ValueError as error:
            raise SourceError(f"{self.uri}: {error}") from None
        self._health = Health("connecting")

    @property
    def health(self) -> Health:
        """How it does right now."""
        return self._health

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Give frames until ``frames`` have passed, or until ``stop`` is set: then before the next frame."""
        image, truth = self._draw(0)
        start = time.monotonic()
        index = 0
        self._health = Health("live")
        while not stop.is_set():
            seconds = index / self._fps
            yield Frame(image, self.camera, index, time.monotonic(), pts_seconds=seconds, truth=truth)
            index = self._next(index, time.monotonic() - start)
            if stop.is_set() or (self.frames_total is not None and index >= self.frames_total):
                break
            image, truth = self._draw(index)
            if self.live:
                stop.wait(max(0.0, start + index / self._fps - time.monotonic()))
        self._health = Health("ended")

    def _draw(self, index: int) -> tuple[Image, GroundTruth | None]:
        image, truth = draw_frame(self._scene, index)
        return (add_shortcut(image, truth.label) if self._stamp and truth is not None else image), truth

    def _next(self, index: int, seconds: float) -> int:
        """Return the frame after ``index`` when ``seconds`` have passed: none is skipped unless long overdue."""
        if not self.live:
            return index + 1
        return max(index + 1, math.floor(seconds * self._fps) - _BUFFER_FRAMES + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._health = Health("ended")
