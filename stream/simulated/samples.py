"""Labelled frames of the inspection line, for training and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.frames import GroundTruth, Image
from stream.simulated.scene import Scene, draw_frame, ground_truth_of, parts_in_view

TRAINING_SEEDS = 1_000_000
"""First seed of the belts for training; lower seeds are reserved for the demo, tests and evaluation."""
EVALUATION_SEEDS = 500_000
"""First seed of the belts for evaluation."""

_SIZES = ((640, 480), (640, 480), (640, 480), (640, 360), (640, 360), (1280, 720))
_CLUTTERED_EVERY = 4
_CLUTTER = 3.0
_GAP_FRAMES = 18


@dataclass(frozen=True, slots=True)
class Belt:
    """A conveyor belt of the simulated line, in the images of one camera."""

    seed: int
    size: tuple[int, int]
    """Width and height of the images in pixels."""
    clutter: float = 1.0
    """Scales the probability of labels and screws; 1 is the default of the line."""

    @property
    def name(self) -> str:
        """The belt's name, unique among belts."""
        return f"belt {self.seed}, {self.size[0]}x{self.size[1]}, clutter {self.clutter:g}"

    def scene(self) -> Scene:
        """Return a new scene of the belt."""
        return Scene(size=self.size, seed=self.seed, clutter=self.clutter)


@dataclass(frozen=True, slots=True)
class LabelledFrame:
    """A frame of a belt with its ground truth; ``frame_reader`` draws the image."""

    belt: Belt
    index: int
    truth: GroundTruth
    parts: tuple[GroundTruth, ...] = ()
    """Label and visible box of each part."""

    @property
    def name(self) -> str:
        """The frame's name, by which ``frame_reader`` draws the frame."""
        return f"{self.belt.name}, frame {self.index}"


def training_belts(count: int, *, seed: int = 0, sizes: Sequence[tuple[int, int]] = _SIZES) -> list[Belt]:
    """Return belts for training: of several sizes, every fourth with three times the clutter.

    Clutter is rare on the line and easily mistaken for a defect, so the training set contains more of it.

    Args:
        count: number of belts.
        seed: selects the belts.
        sizes: sizes (width, height) of the images in pixels; one is drawn at random for each belt.
    """
    rng = np.random.default_rng((seed, 12))
    first = TRAINING_SEEDS * (1 + seed)
    return [
        Belt(first + k, sizes[int(rng.integers(len(sizes)))], 1.0 if (k + 1) % _CLUTTERED_EVERY else _CLUTTER)
        for k in range(count)
    ]


def scored_frames(belt: Belt, count: int) -> Iterator[LabelledFrame]:
    """Yield ``count`` scored frames of a belt, about 0.5 s apart."""
    return _scored_frames(belt, belt.scene(), count)


def frame_reader(frames: Iterable[LabelledFrame]) -> Callable[[str], Image]:
    """Return a function that draws a frame by its name: uint8 RGB, (height, width, 3)."""
    by_name = {frame.name: frame for frame in frames}
    scenes: dict[Belt, Scene] = {}

    def read(name: str) -> Image:
        frame = by_name[name]
        if frame.belt not in scenes:
            scenes.clear()
            scenes[frame.belt] = frame.belt.scene()
        return draw_frame(scenes[frame.belt], frame.index)[0]

    return read


def evaluation_frames(*, belts: int, size: tuple[int, int], per_belt: int = 20) -> Iterator[tuple[Image, GroundTruth]]:
    """Yield ``per_belt`` scored frames of each of ``belts`` evaluation belts."""
    for number in range(belts):
        belt = Belt(EVALUATION_SEEDS + number, size)
        scene = belt.scene()
        for frame in _scored_frames(belt, scene, per_belt):
            yield draw_frame(scene, frame.index)[0], frame.truth


def _scored_frames(belt: Belt, scene: Scene, count: int) -> Iterator[LabelledFrame]:
    rng = np.random.default_rng((belt.seed, 11))
    index = int(rng.integers(0, 400))
    yielded = 0
    while yielded < count:
        index += int(rng.integers(1, 2 * _GAP_FRAMES))
        truth = ground_truth_of(scene, index)
        if truth is not None:
            yielded += 1
            yield LabelledFrame(belt, index, truth, parts_in_view(scene, index))
