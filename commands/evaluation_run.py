"""One run of an evaluation: in this process, or in several by Ray."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commands.actor_pool import actor_pool
from commands.evaluation_inputs import (
    EvaluatedImage,
    EvaluationInput,
    ImageEvaluator,
    ImageInput,
    ImageRecorder,
    ImageTask,
    add_records,
)
from commands.ray_settings import require_ray
from pipeline.errors import ConfigError, DataLossError

if TYPE_CHECKING:
    from engine.evaluation.results import ResultsLog

BuildEvaluator = Callable[[], ImageEvaluator]
"""Builds an evaluator in a worker; it can be pickled."""


@dataclass(frozen=True, eq=False, slots=True)
class EvaluationRun:
    """The images of an evaluation and what evaluates them."""

    inputs: EvaluationInput
    evaluator: Any
    """The evaluator of this process."""
    build: BuildEvaluator
    """Builds the same evaluator in another process."""
    workers: int

    def collect(self, results: ResultsLog, stop: threading.Event) -> list[dict[str, Any]]:
        """Evaluate what ``results`` does not hold until all is done or ``stop`` is set.

        Returns:
            The records of the images, in the order of the images.

        Raises:
            DataLossError: the workers of an image ended again and again.
        """
        if self.workers > 1 and isinstance(self.inputs, ImageInput):
            _evaluate_by_ray(self.inputs, self.build, results, stop, workers=self.workers)
        else:
            self.inputs.evaluate(self.evaluator, results, stop)
        return [results.records[name] for name in self.inputs.names if name in results.records]


def check_workers(workers: int, inputs: EvaluationInput) -> None:
    """Refuse several processes without Ray, and for a video.

    Raises:
        ConfigError: they are not possible.
    """
    if workers == 1:
        return
    require_ray(f"--workers {workers}", "omit --workers")
    if not isinstance(inputs, ImageInput):
        raise ConfigError(
            f"--workers {workers}: {inputs.recording} is a video, whose frames one process decodes in order; "
            "omit --workers"
        )


class EvaluationWorker:
    """Evaluates images in a process of its own, with an evaluator that is built once."""

    def __init__(self, build: BuildEvaluator, recorder: ImageRecorder, folder: str) -> None:
        """Build the evaluator.

        Args:
            build: builds it.
            recorder: makes the records.
            folder: the working directory, to which paths are relative; Ray's workers have another one.
        """
        os.chdir(folder)
        self._evaluator, self._recorder = build(), recorder

    def evaluate(self, task: ImageTask) -> EvaluatedImage:
        """Return the record of an image, or why it cannot be decoded."""
        return self._recorder.evaluate(self._evaluator, task)


def _evaluate_by_ray(
    inputs: ImageInput, build: BuildEvaluator, results: ResultsLog, stop: threading.Event, *, workers: int
) -> None:
    """Evaluate images in ``workers`` processes. Images do not go through Ray: a worker reads its files itself."""
    tasks = inputs.waiting(results)
    lost: list[ImageTask] = []

    def lose(task: ImageTask, reason: str) -> EvaluatedImage:
        lost.append(task)
        return EvaluatedImage(task, None, f"{task.path}: {reason}")

    if not tasks:
        return
    arguments = (build, inputs.recorder, str(Path.cwd()))
    with actor_pool(EvaluationWorker, arguments, min(workers, len(tasks))) as pool:
        evaluated = pool.run(lambda worker, task: worker.evaluate.remote(task), deque(tasks), stop, lose)
        add_records(results, in_order(evaluated), len(tasks))
    if lost:
        raise DataLossError(
            f"{len(lost)} images, such as {lost[0].path}, were not evaluated, because their worker ended; look for a "
            "lack of memory or a damaged image, and give the same command again"
        )


def in_order(evaluated: Iterable[EvaluatedImage]) -> Iterator[EvaluatedImage]:
    """Yield images by their number; each as soon as all before it are there, and the others at the end."""
    held: dict[int, EvaluatedImage] = {}
    number = 0
    for image in evaluated:
        held[image.task.number] = image
        while number in held:
            yield held.pop(number)
            number += 1
    for number in sorted(held):
        yield held[number]
