"""A reader of a source in a thread; records its frames and its states."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Self

from pipeline.errors import SourceError
from pipeline.frames import Frame
from pipeline.ports import Health, Source
from tests.support.footage import Mark, read
from tests.support.limits import LIMIT_SECONDS


class Reader:
    """Records ``frames``, all in order, and ``error``, in which reading ended, or None."""

    def __init__(self, source: Source) -> None:
        """Create a reader of an entered source."""
        self.source = source
        self.frames: list[Frame] = []
        self.stop = threading.Event()
        self.error: SourceError | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, name="reader")

    @property
    def health(self) -> Health:
        """The current state of the source."""
        return self.source.health

    @property
    def marks(self) -> list[Mark | None]:
        """The mark of each frame."""
        return [read(frame.image) for frame in list(self.frames)]

    @property
    def last(self) -> Mark | None:
        """The mark of the newest frame; None where there is none or it cannot be read."""
        return read(self.frames[-1].image) if self.frames else None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self._thread.join()

    def _read(self) -> None:
        try:
            for frame in self.source.frames(self.stop):
                with self._changed:
                    self.frames.append(frame)
                    self._changed.notify_all()
        except SourceError as error:
            self.error = error

    def until(self, condition: Callable[[], object], seconds: float = LIMIT_SECONDS) -> None:
        """Wait for ``condition``; fail after ``seconds``, or when reading has ended."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not condition():
                left = deadline - time.monotonic()
                assert left > 0, f"not within {seconds} s; {self.source.health}"
                assert self.error is None, self.error
                self._changed.wait(min(left, 0.02))

    def until_number(self, number: int, seconds: float = LIMIT_SECONDS) -> None:
        """Wait for a frame later than ``number``."""
        self.until(lambda: (mark := self.last) is not None and mark.number > number, seconds)
