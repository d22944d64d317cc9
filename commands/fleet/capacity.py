"""Measures the frames per second that a worker explains."""

from __future__ import annotations

import statistics
import time
from typing import Final

import numpy as np

from pipeline.frames import Frame
from pipeline.ports import Explainer, Renderer

_SIZE: Final = (480, 640, 3)
_CAMERA: Final = "capacity"
_WARM_UP, _ROUNDS = 2, 5


def measure_capacity(explainer: Explainer, renderer: Renderer, batch: int) -> float:
    """Return the frames per second that a worker explains and draws, from the median time of five batches.

    Decoding and encoding are not measured, so a worker must be loaded below this capacity.

    Args:
        explainer: the explainer of the run; it must not be in use yet.
        renderer: the renderer of the run.
        batch: number of frames in a batch.
    """
    noise = np.random.default_rng(0)
    seconds = []
    for number in range(_WARM_UP + _ROUNDS):
        frames = [
            Frame(noise.integers(0, 256, _SIZE, np.uint8), _CAMERA, number * batch + index, time.monotonic())
            for index in range(batch)
        ]
        started_at = time.monotonic()
        for explanation in explainer.explain(frames):
            renderer.render(explanation)
        seconds.append((time.monotonic() - started_at) / batch)
    explainer.forget_camera(_CAMERA)
    renderer.forget_camera(_CAMERA)
    return 1.0 / max(statistics.median(seconds[_WARM_UP:]), 1e-6)
