"""Answers viewers' questions for the heat map of any class of a classifier, within a share of the engine's time."""

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
"""After an answer the next one waits this many times its duration: answers take a quarter of the time at most."""


class ClassAnswers:
    """Explains the newest frame of a camera for the class that a viewer asks for. Used by the thread that explains.

    The explanations of the stream, from which guards, records and verdicts come, do not contain the answers.
    """

    def __init__(
        self,
        queries: PlaceQueries,
        labels: Sequence[str],
        explain: Callable[[Frame, int], Finding],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Begin to answer questions.

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
        """Keep the newest frame of each camera while anyone views."""
        if self._queries.is_viewed:
            self._newest.update({frame.camera: frame for frame in frames})
        elif self._newest:
            self._newest.clear()

    def forget_camera(self, camera: str) -> None:
        """Release the frame of a camera."""
        self._newest.pop(camera, None)

    def answer(self) -> None:
        """Answer the next question if it is due."""
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
            future.set_exception(EngineError(f"the network failed ({type(error).__name__}); the log has details"))
        finished_at = self._clock()
        self._due_at = finished_at + _REST * (finished_at - started_at)

    def _answer(self, query: object) -> ClassAnswer:
        if not isinstance(query, ClassQuery):
            raise EngineError("a classifier answers questions about classes only")
        index, frame = self._indices.get(query.label), self._newest.get(query.camera)
        if index is None:
            raise EngineError(f"class {query.label[:80]!r}: is not a class of this network; choose one of the list")
        if frame is None:
            raise EngineError(f"{query.camera}: has given no frame since the page was opened; ask again")
        return ClassAnswer(self._explain(frame, index), frame)
