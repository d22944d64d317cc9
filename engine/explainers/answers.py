"""Answers viewers' questions between batches, one step at a time, within the time budget of maps."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future
from dataclasses import dataclass

from engine.detectors.schedule import MapScheduler
from engine.detectors.why import PlaceExplainer, Steps
from pipeline.errors import EngineError, ReciproStreamError
from pipeline.frames import Frame
from pipeline.queries import Answer, PlaceAnswer, PlaceQueries, PlaceQuery

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Job:
    """A question in progress."""

    camera: str
    steps: Steps
    future: Future[Answer]


class PlaceAnswers:
    """Answers viewers' questions about places in a frame. Used by the thread that explains.

    A step is one plain forward pass of a frame, or one map. Its time is charged to the map budget of the camera, so
    answers never take more time than the maps of the frames would.
    """

    def __init__(self, queries: PlaceQueries, explainer: PlaceExplainer, scheduler: MapScheduler) -> None:
        """Accept viewers' questions in ``queries`` from now on; ``step`` answers them."""
        self._queries, self._explainer, self._scheduler = queries, explainer, scheduler
        self._job: _Job | None = None
        queries.open(explainer.detector.labels)

    def remember(self, frame: Frame) -> None:
        """Store an explained frame while viewers may ask about it."""
        self._queries.remember(frame)

    def after_batch(self) -> None:
        """Make a step if the time budget allows it."""
        if self._scheduler.may_answer:
            self.step()

    def step(self) -> None:
        """Make the next step of the current question, or start the next question."""
        job = self._job = self._job or self._next_job()
        if job is None:
            return
        started_at = time.perf_counter()
        try:
            next(job.steps)
        except StopIteration as end:
            self._end(job, end.value)
        except ReciproStreamError as error:
            self._end(job, error)
        except Exception as error:  # a question must not end the run
            log.exception("%s: a question to the detector cannot be answered", job.camera)
            self._end(job, EngineError(f"the detector failed ({type(error).__name__}); see the log"))
        self._scheduler.record_answer(job.camera, time.perf_counter() - started_at)

    def _next_job(self) -> _Job | None:
        while (taken := self._queries.take()) is not None:
            query, future = taken
            if not isinstance(query, PlaceQuery):
                future.set_exception(EngineError("a detector answers questions about places only"))
                continue
            try:
                frame = self._queries.frames.find(query.camera, query.index)
            except EngineError as error:
                future.set_exception(error)
                continue
            steps = self._explainer.steps(frame, query.box, query.label, query.modes)
            return _Job(query.camera, steps, future)
        return None

    def _end(self, job: _Job, result: PlaceAnswer | Exception) -> None:
        self._job = None
        if isinstance(result, Exception):
            job.future.set_exception(result)
        else:
            job.future.set_result(result)
