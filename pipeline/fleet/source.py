"""A source of a fleet's worker: each frame has the epoch of the camera's lease."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import TracebackType
from typing import Self

from pipeline.frames import Frame, Overlay
from pipeline.ports import Overflow, Source, SourceWrapper


class LeasedSource(SourceWrapper):
    """Yields the frames of ``inner`` with the epoch of the lease that is valid when a frame is read."""

    def __init__(self, inner: Source, epoch: Callable[[], int | None]) -> None:
        """Wrap a source that is not entered yet.

        Args:
            inner: the source.
            epoch: returns the epoch of the camera's lease; None if there is no lease.
        """
        self.inner, self._epoch = inner, epoch
        self.camera, self.uri = inner.camera, inner.uri
        self.overflow: Overflow | None = inner.overflow
        self.min_silence_seconds = inner.min_silence_seconds
        self.input_area = inner.input_area

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield the frames of the inner source."""
        self.inner.camera = self.camera
        for frame in self.inner.frames(stop):
            yield replace(frame, epoch=self._epoch())

    def take_stale(self) -> Overlay | None:
        """Return the image of a signal loss of the inner source, if it has a new one."""
        return self.inner.take_stale()

    def __enter__(self) -> Self:
        self.inner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.inner.__exit__(kind, error, trace)
