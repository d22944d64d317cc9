"""The source of the simulated line: ``line:?fps=30&size=1280x720&seed=7``.

For use without a camera, and for tests that need ground truth, which each frame contains. ``scene`` draws the frames
and defines the ground truth.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator

from pipeline.errors import SourceError
from pipeline.frames import Frame, GroundTruth, Image
from pipeline.ports import Health, Source
from stream.simulated.scene import Scene, draw_frame
from stream.simulated.shortcut import add_shortcut

_BUFFER_FRAMES = 4
"""Number of frames that a camera driver buffers for a slow reader; older frames are lost: a gap in the index."""


class SimulatedLineSource(Source):
    """A camera above the simulated line.

    With ``paced`` it is live: frame k is due k / fps seconds after the start, whether or not it is read. Without
    ``paced``, frames are yielded as fast as they are read, like a file. Both modes yield the same image at the same
    index.
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
        """Create the source.

        Args:
            fps: frames per second, 0.1 to 1000.
            size: (width, height) in pixels.
            seed: selects the belt; 0 or more.
            camera: the camera's name.
            paced: whether frames come in real time.
            frames: number of frames; None: no limit.
            stamp: whether images of defects have a square that reveals the label (see ``shortcut``).

        Raises:
            SourceError: a value is out of range.
        """
        if frames is not None and frames < 1:
            raise SourceError(f"line: frames={frames}: must be 1 or more; omit it for an endless line")
        self.camera = camera
        self.uri = f"line:?fps={fps:g}&size={size[0]}x{size[1]}&seed={seed}&paced={int(paced)}"
        if frames is not None:
            self.uri += f"&frames={frames}"
        if stamp:
            self.uri += "&stamp=1"
        self._stamp = stamp
        self.live = paced
        self.frames_total = frames
        self.rate = fps
        self._fps = fps
        try:
            self._scene = Scene(size=size, seed=seed, fps=fps)
        except ValueError as error:
            raise SourceError(f"{self.uri}: {error}") from None

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield frames up to index ``frames``, or until ``stop`` is set."""
        image, truth = self._draw(0)
        start = time.monotonic()
        index = 0
        self.health = Health("live")
        while not stop.is_set():
            seconds = index / self._fps
            yield Frame(image, self.camera, index, time.monotonic(), pts_seconds=seconds, truth=truth)
            index = self._next(index, time.monotonic() - start)
            if stop.is_set() or (self.frames_total is not None and index >= self.frames_total):
                break
            image, truth = self._draw(index)
            if self.live:
                stop.wait(max(0.0, start + index / self._fps - time.monotonic()))
        self.health = Health("ended")

    def _draw(self, index: int) -> tuple[Image, GroundTruth | None]:
        image, truth = draw_frame(self._scene, index)
        return (add_shortcut(image, truth.label) if self._stamp and truth is not None else image), truth

    def _next(self, index: int, seconds: float) -> int:
        """Return the next index; skips frames that exceed the driver's buffer."""
        if not self.live:
            return index + 1
        return max(index + 1, math.floor(seconds * self._fps) - _BUFFER_FRAMES + 1)

    def __exit__(self, *_: object) -> None:
        self.health = Health("ended")
