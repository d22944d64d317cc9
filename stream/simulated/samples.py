"""Scored frames of the inspection line, for training and evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.frames import GroundTruth, Image
from stream.simulated.scene import Scene, draw_frame, ground_truth_of

TRAINING_SEEDS = 1_000_000
"""First seed of the belts for training; lower seeds are reserved for the demo, tests and evaluation."""
EVALUATION_SEEDS = 500_000
"""First seed of the belts for evaluation."""

_SIZES = ((640, 480), (640, 480), (640, 480), (640, 360), (640, 360), (1280, 720))
_FRAMES_PER_BELT = 12
_GAP_FRAMES = 18


def scored_frames(
    *, seed: int, size: tuple[int, int], count: int, clutter: float = 1.0
) -> Iterator[tuple[Image, GroundTruth]]:
    """Yield ``count`` scored frames of one belt, about 0.5 s apart."""
    scene = Scene(size=size, seed=seed, clutter=clutter)
    rng = np.random.default_rng((seed, 11))
    index = int(rng.integers(0, 400))
    yielded = 0
    while yielded < count:
        index += int(rng.integers(1, 2 * _GAP_FRAMES))
        if ground_truth_of(scene, index) is None:
            continue
        image, truth = draw_frame(scene, index)
        if truth is not None:
            yielded += 1
            yield image, truth


class TrainingFrames:
    """A generator of training frames: call it with the number of frames."""

    def __init__(
        self, *, seed: int = 0, sizes: Sequence[tuple[int, int]] = _SIZES, clutter: float = 1.0, skip: int = 0
    ) -> None:
        """Create a generator.

        Args:
            seed: selects the belts.
            sizes: sizes (width, height) of the images; one is drawn at random for each belt.
            clutter: scales the probability of labels and screws; 1 is the default of the line.
            skip: number of belts to skip, so that a second generator gives other belts.
        """
        self._next_seed = TRAINING_SEEDS * (1 + seed) + skip
        self._clutter = clutter
        self._sizes = tuple(sizes)
        self._rng = np.random.default_rng((seed, 12))

    def __call__(self, count: int) -> list[tuple[Image, GroundTruth]]:
        """Return ``count`` frames with their ground truth; sizes differ between belts."""
        frames: list[tuple[Image, GroundTruth]] = []
        while len(frames) < count:
            size = self._sizes[int(self._rng.integers(len(self._sizes)))]
            remaining = min(_FRAMES_PER_BELT, count - len(frames))
            belt = scored_frames(seed=self._next_seed, size=size, count=remaining, clutter=self._clutter)
            frames.extend(belt)
            self._next_seed += 1
        return frames


def evaluation_frames(*, belts: int, size: tuple[int, int], per_belt: int = 20) -> Iterator[tuple[Image, GroundTruth]]:
    """Yield ``per_belt`` scored frames of each of ``belts`` evaluation belts."""
    for belt in range(belts):
        yield from scored_frames(seed=EVALUATION_SEEDS + belt, size=size, count=per_belt)
