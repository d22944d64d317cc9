"""Answers viewers' questions for the heat map of any class, within a fraction of the engine's time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from pipeline.errors import EngineError, ReciproStreamError
from pipeline.frames import Finding, Frame
from pipeline.queries import ClassAnswer, ClassQuery, PlaceQueries

log = logging.getLogger(__name__)

_REST: Final = 3.0
"""Pause after an answer, as a multiple of its duration: answers take at most a quarter of the time."""


class ClassAnswers:
    """Explains the newest frame of a camera for the class that a viewer asks for.

    Used by the thread that explains. Answers are not part of the stream's explanations, which guards and records use.
    """

    def __init__(
        self,
        queries: PlaceQueries,
        labels: Sequence[str],
        explain: Callable[[Frame, int], Finding],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Create the component and accept questions.

        Args:
            queries: the viewers' questions.
            labels: the class names.
            explain: returns the finding of a class, by its index, in a frame.
            clock: returns monotonic seconds.
        """
        self._queries, self._explain, self._clock = queries, explain, clock
        self._indices = {label: index for index, label in reversed(list(enumerate(labels)))}
        self._newest: dict[str, Frame] = {}
        self._due_at = float("-inf")
        queries.open(tuple(labels), "classes")

    def remember(self, frames: Sequence[Frame]) -> None:
        """Store the newest frame of each camera while a page is open."""
        if self._queries.is_viewed:
            self._newest.update({frame.camera: frame for frame in frames})
        elif self._newest:
            self._newest.clear()

    def forget_camera(self, camera: str) -> None:
        """Release the frame of a camera."""
        self._newest.pop(camera, None)

    def answer(self) -> None:
        """Answer the next question if the pause after the last answer is over."""
        if self._clock() < self._due_at or (taken := self._queries.take()) is None:
            return
        query, future = taken
        started_at = self._clock()
        try:
            future.set_result(self._answer(query))
        except ReciproStreamError as error:
            future.set_exception(error)
        except Exception as error:  # a question must not end the run
            log.exception("%s: a question for a heat map cannot be answered", query.camera)
            future.set_exception(EngineError(f"the network failed ({type(error).__name__}); see the log"))
        finished_at = self._clock()
        self._due_at = finished_at + _REST * (finished_at - started_at)

    def _answer(self, query: object) -> ClassAnswer:
        if not isinstance(query, ClassQuery):
            raise EngineError("a classifier answers questions about classes only")
        index, frame = self._indices.get(query.label), self._newest.get(query.camera)
        if index is None:
            raise EngineError(f"class {query.label[:80]!r}: is not a class of this network; choose one from the list")
        if frame is None:
            raise EngineError(f"{query.camera}: has sent no frame since the page was opened; ask again")
        return ClassAnswer(self._explain(frame, index), frame)
