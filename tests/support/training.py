"""A data set of painted squares, and trainings on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from engine.finetuning.finetune import Callbacks, FinetuneResult, finetune
from engine.finetuning.setup import FinetuneConfig, build_model
from engine.finetuning.splits import TEST, TRAIN, VALIDATION, Sample
from engine.finetuning.trainer import EpochStats
from pipeline.frames import Box, Image

FRACTIONS = {TRAIN: 0.6, VALIDATION: 0.2, TEST: 0.2}
SQUARE = 14
"""Side of the painted square in pixels."""


def square_corner(path: str) -> tuple[int, int]:
    """Return the top left corner (y, x) of the square in the image of ``square_image``."""
    rng = _rng(path)
    rng.integers(0, 90, (40, 48, 3), np.uint8)
    y, x = rng.integers(0, 24, 2)
    return int(y), int(x)


def square_image(path: str) -> Image:
    """Return a 40x48 image of dark noise with a square; ``path`` is CLASS/NUMBER, and r, g and b are classes."""
    image = _rng(path).integers(0, 90, (40, 48, 3), np.uint8)
    y, x = square_corner(path)
    image[y : y + SQUARE, x : x + SQUARE, "rgb".index(path[0])] = 255
    return image


def square_box(path: str) -> Box:
    """Return the box of the square in pixels of the image."""
    y, x = square_corner(path)
    return Box(x, y, x + SQUARE, y + SQUARE)


def _rng(path: str) -> np.random.Generator:
    return np.random.default_rng(int(path.partition("/")[2]))


def square_samples(per_class: int = 20) -> list[Sample]:
    """Return the samples of the three classes; two in succession are of one group."""
    return [Sample(f"{kind}/{k}", kind, f"{kind}{k // 2}") for kind in "rgb" for k in range(per_class)]


def callbacks(on_epoch: Callable[[EpochStats], None] = lambda _: None) -> Callbacks:
    """Return callbacks that report epochs only and never stop."""
    return Callbacks(lambda _done, _total: None, on_epoch, lambda: False)


def run_finetune(
    parts: Mapping[str, Sequence[Sample]], config: FinetuneConfig, reports: Callbacks | None = None, **options: Any
) -> FinetuneResult:
    """Train on painted squares."""
    labels = sorted({sample.label for sample in parts[TRAIN]})
    return finetune(build_model(config, labels), parts, square_image, reports or callbacks(), **options)
