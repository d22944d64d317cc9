"""Frames of the inspection line to learn from and to be examined on: many belts, scored frames only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.frames import GroundTruth, Image
from stream.simulated.scene import Scene, draw_frame, ground_truth_of

TRAINING_SEEDS = 1_000_000
"""Belts for training have this seed or a higher one; every seed below is kept for the demo, tests and examination."""
EVALUATION_SEEDS = 500_000
"""Belts for examination start here."""

_SIZES = ((640, 480), (640, 480), (640, 480), (640, 360), (640, 360), (1280, 720))
_FRAMES_PER_BELT = 12
_GAP_FRAMES = 18


def scored_frames(
    *, seed: int, size: tuple[int, int], count: int, clutter: float = 1.0
) -> Iterator[tuple[Image, GroundTruth]]:
    """Give ``count`` frames of one belt whose truth is known, in order, about half a second of belt apart."""
    scene = Scene(size=size, seed=seed, clutter=clutter)
    rng = np.random.default_rng((seed, 11))
    index = int(rng.integers(0, 400))
    given = 0
    while given < count:
        index += int(rng.integers(1, 2 * _GAP_FRAMES))
        if ground_truth_of(scene, index) is None:
            continue
        image, truth = draw_frame(scene, index)
        if truth is not None:
            given += 1
            yield image, truth


class TrainingFrames:
    """An endless supply of training frames, every belt a new one: call it with how many are wanted."""

    def __init__(
        self, *, seed: int = 0, sizes: Sequence[tuple[int, int]] = _SIZES, clutter: float = 1.0, skip: int = 0
    ) -> None:
        """Take which frames.

        Args:
            seed: another seed, other belts.
            sizes: width and height of the pictures, drawn anew for each belt.
            clutter: how often labels and screws lie on the belts; 1 is the line as it is shown.
            skip: how many belts to leave out, so that a second supply gives new ones.
        """
        self._next_seed = TRAINING_SEEDS * (1 + seed) + skip
        self._clutter = clutter
        self._sizes = tuple(sizes)
        self._rng = np.random.default_rng((seed, 12))

    def __call__(self, count: int) -> list[tuple[Image, GroundTruth]]:
        """Return ``count`` frames with their truths; sizes differ between belts."""
        frames: list[tuple[Image, GroundTruth]] = []
        while len(frames) < count:
            size = self._sizes[int(self._rng.integers(len(self._sizes)))]
            wanted = min(_FRAMES_PER_BELT, count - len(frames))
            belt = scored_frames(seed=self._next_seed, size=size, count=wanted, clutter=self._clutter)
            frames.extend(belt)
            self._next_seed += 1
        return frames


def evaluation_frames(*, belts: int, size: tuple[int, int], per_belt: int = 20) -> Iterator[tuple[Image, GroundTruth]]:
    """Give ``per_belt`` scored frames of each of ``belts`` belts that no training ever sees."""
    for belt in range(belts):
        yield from scored_frames(seed=EVALUATION_SEEDS + belt, size=size, count=per_belt)
