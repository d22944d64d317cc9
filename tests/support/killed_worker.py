"""Evaluates images in two processes by Ray, of which one is killed while it evaluates: `python -m ... IMAGES OUTPUT`.

The evaluator needs no network, so that a worker starts at once.
"""

import os
import signal
import sys
import threading
from functools import partial
from pathlib import Path

from commands.annotations import Annotations
from commands.evaluation_inputs import open_input
from commands.evaluation_run import EvaluationRun
from commands.trained_images import TrainedImages
from engine.evaluation.results import ResultsLog

KILLED = 3
"""Number of the image whose first worker is killed."""


class ImageMeans:
    """Returns the mean of an image, and the process."""

    labels = ()

    def __init__(self, marker: Path | None = None) -> None:
        self._marker = marker

    def evaluate(self, frame, _truths, _mask):
        if self._marker is not None and frame.index == KILLED and not self._marker.exists():
            self._marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"mean": float(frame.image.mean()), "process": os.getpid()}


def main(images: str, output: str) -> None:
    inputs = open_input(images, None, Annotations(), TrainedImages("line_net"))
    run = EvaluationRun(inputs, ImageMeans(), partial(ImageMeans, Path(output).absolute().with_name("marker")), 2)
    with ResultsLog(Path(output), {}) as results:
        run.collect(results, threading.Event())


if __name__ == "__main__":
    main(*sys.argv[1:])
