"""Runs an evaluation in this process, or in several processes started by Ray."""

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
from commands.ray_settings import require_ray, restore_threads
from pipeline.errors import ConfigError, DataLossError

if TYPE_CHECKING:
    from engine.evaluation.results import ResultsLog

BuildEvaluator = Callable[[], ImageEvaluator]
"""A function that builds an evaluator in a worker process; it must be serializable by pickle."""


@dataclass(frozen=True, eq=False, slots=True)
class EvaluationRun:
    """The images of an evaluation, and their evaluator."""

    inputs: EvaluationInput
    evaluator: Any
    """The evaluator in this process."""
    build: BuildEvaluator
    """Builds an equal evaluator in another process."""
    workers: int

    def collect(self, results: ResultsLog, stop: threading.Event) -> list[dict[str, Any]]:
        """Evaluate the images without a record in ``results``, until all are done or ``stop`` is set.

        Returns:
            All records, in the order of the images.

        Raises:
            DataLossError: the workers of an image ended repeatedly.
        """
        if self.workers > 1 and isinstance(self.inputs, ImageInput):
            _evaluate_by_ray(self.inputs, self.build, results, stop, workers=self.workers)
        else:
            self.inputs.evaluate(self.evaluator, results, stop)
        return [results.records[name] for name in self.inputs.names if name in results.records]


def check_workers(workers: int, inputs: EvaluationInput) -> None:
    """Check that the input can be evaluated in ``workers`` processes.

    Raises:
        ConfigError: several processes are requested, and Ray is not installed or the input is a video.
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
    """Evaluates images in a worker process, with an evaluator that is built once."""

    def __init__(self, build: BuildEvaluator, recorder: ImageRecorder, folder: str) -> None:
        """Build the evaluator.

        Args:
            build: builds the evaluator.
            recorder: creates the records.
            folder: the working directory of relative paths; Ray's workers start in another directory.
        """
        restore_threads(os.environ)
        os.chdir(folder)
        self._evaluator, self._recorder = build(), recorder

    def evaluate(self, task: ImageTask) -> EvaluatedImage:
        """Return the record of an image, or the reason why the image cannot be decoded."""
        return self._recorder.evaluate(self._evaluator, task)


def _evaluate_by_ray(
    inputs: ImageInput, build: BuildEvaluator, results: ResultsLog, stop: threading.Event, *, workers: int
) -> None:
    """Evaluate images in ``workers`` processes; each worker reads its image files itself."""
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
    """Yield images in the order of their numbers, each as soon as possible; after a gap, yield the rest at the end."""
    held: dict[int, EvaluatedImage] = {}
    number = 0
    for image in evaluated:
        held[image.task.number] = image
        while number in held:
            yield held.pop(number)
            number += 1
    for number in sorted(held):
        yield held[number]
