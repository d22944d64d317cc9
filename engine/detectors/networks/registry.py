"""The registry of detectors that are implemented here and can be trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from engine.detectors.input_format import InputFormat
from engine.detectors.layouts import YoloxLayout
from engine.detectors.networks.line_detector import SIZE, line_detector
from engine.detectors.networks.line_detector import STRIDES as LINE_STRIDES
from engine.detectors.networks.yolox import STRIDES, YOLOX_SIZES, Yolox, YoloxSize
from engine.detectors.outputs import Level


@dataclass(frozen=True, slots=True)
class DetectorEntry:
    """The registry's entry of a network."""

    build: Callable[[int], Yolox]
    """Creates the untrained network for a number of classes."""
    input: InputFormat
    strides: tuple[int, ...] = STRIDES
    file: str | None = None
    """The shipped weights, relative to the project's folder."""
    complete_cut: tuple[str, ...] | None = None
    """Nodes of the complete cut; None: searched in the graph."""

    def layout(self, classes: int) -> YoloxLayout:
        """Return the layout of the network's maps."""
        levels = [Level(stride, 3 * k, 3 * k + 1, 3 * k + 2) for k, stride in enumerate(self.strides)]
        return YoloxLayout(levels, classes)


def _yolox(size: YoloxSize) -> DetectorEntry:
    return DetectorEntry(partial(Yolox, size), InputFormat(size.input_size, "bgr"))


_LINE_MEAN: Final = (0.485 * 255, 0.456 * 255, 0.406 * 255)
_LINE_STD: Final = (0.229 * 255, 0.224 * 255, 0.225 * 255)

OWN_DETECTORS: Final[dict[str, DetectorEntry]] = {
    **{name: _yolox(size) for name, size in YOLOX_SIZES.items()},
    "line_detector": DetectorEntry(
        line_detector,
        InputFormat(SIZE.input_size, "rgb", _LINE_MEAN, _LINE_STD, border=_LINE_MEAN),
        LINE_STRIDES,
        "configs/models/line-detector.safetensors",
        ("backbone.backbone.dark3",),  # before the spatial pyramid pooling, which mixes all places of the image
    ),
}
"""The detectors by name: YOLOX in all sizes, and the detector of the simulated line."""
