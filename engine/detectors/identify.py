"""Identifies the output layout of a detector from the shapes of its raw maps, or by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from engine.detectors.layouts import (
    LAYOUTS,
    NanodetLayout,
    SsdLayout,
    UltralyticsLayout,
    YoloxLayout,
    check_layout,
)
from engine.detectors.outputs import Layout, Level
from engine.detectors.regions import grid_stride
from pipeline.errors import ModelError

_FILE_LAYOUTS: Final = ("yolox", "nanodet", "ultralytics", "ssd")
"""Layouts that files of other projects may have."""


@dataclass(frozen=True, slots=True)
class RawMap:
    """The shape of one raw map."""

    index: int
    """Index in the network's output."""
    channels: int
    rows: int
    columns: int
    name: str
    activations: frozenset[str] = frozenset()
    """Activations that follow the map in the file."""


def identify_layout(
    maps: Sequence[RawMap], image_size: tuple[int, int], name: str | None, *, defaults: Tensor | None = None
) -> Layout:
    """Return the layout that fits the raw maps.

    Args:
        maps: the maps, fine to coarse.
        image_size: height and width in pixels of the input.
        name: the layout's name; None: derived from the shapes.
        defaults: default boxes of an ``ssd`` layout, (A, 4): centre y, centre x, height, width as fractions of the
            image; None: those of TensorFlow's SSD networks.

    Raises:
        ModelError: no layout fits, or the named layout does not fit; the message lists the maps.
        ConfigError: there is no layout with this name.
    """
    levels = _by_level(maps)
    names = _FILE_LAYOUTS if name is None else (check_layout(name),)
    reasons = []
    for candidate in names:
        if candidate not in _BUILDERS:
            raise ModelError(
                f"layout {candidate!r}: is only for torchvision's own networks; for a file use one of "
                f"{', '.join(_FILE_LAYOUTS)}"
            )
        found = _BUILDERS[candidate](levels, image_size)
        if isinstance(found, Layout):
            return found if defaults is None else _with_defaults(found, defaults)
        reasons.append(f"{candidate}: {found}")
    raise ModelError(
        f"the layout {'cannot be identified' if name is None else repr(name) + ' does not fit'} "
        f"({'; '.join(reasons)}); the file has these maps before the first activation: {_listed(maps)}; known layouts: "
        f"{', '.join(LAYOUTS)}"
    )


def _by_level(maps: Sequence[RawMap]) -> list[list[RawMap]]:
    levels: dict[tuple[int, int], list[RawMap]] = {}
    for entry in maps:
        levels.setdefault((entry.rows, entry.columns), []).append(entry)
    return list(levels.values())


def _listed(maps: Sequence[RawMap]) -> str:
    return ", ".join(f"{m.name} ({m.channels}, {m.rows}, {m.columns})" for m in maps)


def _stride(level: Sequence[RawMap], image_size: tuple[int, int]) -> int:
    return nominal_stride(image_size, (level[0].rows, level[0].columns))


def nominal_stride(image_size: tuple[int, int], grid: tuple[int, int]) -> int:
    """Return the pixels per cell of a level, rounded to a power of two if necessary."""
    rounded = 2 ** round(math.log2(max(image_size[0] / grid[0], image_size[1] / grid[1])))
    return grid_stride(image_size, grid) or int(rounded)


Levels = Sequence[Sequence[RawMap]]


def _yolox(levels: Levels, image_size: tuple[int, int]) -> Layout | str:
    found, classes = [], set[int]()
    for level in levels:
        boxes = [m for m in level if m.channels == 4 and not m.activations & {"Sigmoid"}] or [
            m for m in level if m.channels == 4
        ]
        objects = [m for m in level if m.channels == 1]
        if len(level) != 3 or not boxes or not objects:
            return "needs three maps per level: with 4 channels, with 1 channel, and with a channel for each class"
        rest = next((m for m in level if m is not boxes[0] and m is not objects[0]), level[0])
        classes.add(rest.channels)
        found.append(Level(_stride(level, image_size), rest.index, objects[0].index, boxes[0].index))
    return YoloxLayout(found, classes.pop()) if len(classes) == 1 else "the number of classes differs between levels"


def _nanodet(levels: Levels, image_size: tuple[int, int]) -> Layout | str:
    channels = {m.channels for level in levels for m in level}
    if any(len(level) != 1 for level in levels) or len(channels) != 1 or len(levels) < 4:
        return "needs at least four levels of one map each, with equal channels"
    classes = channels.pop() - 32
    if classes < 1:
        return "needs maps with 4 x 8 channels for the distances and a channel for each class"
    found = [Level(_stride(level, image_size), level[0].index, None, level[0].index) for level in levels]
    return NanodetLayout(found, classes)


def _ultralytics(levels: Levels, image_size: tuple[int, int]) -> Layout | str:
    found, classes = [], set[int]()
    for level in levels:
        boxes = [m for m in level if m.channels == 64]
        if len(level) != 2 or len(boxes) != 1:
            return "needs two maps per level: with 4 x 16 channels, and with a channel for each class (not 64)"
        rest = next(m for m in level if m is not boxes[0])
        classes.add(rest.channels)
        found.append(Level(_stride(level, image_size), rest.index, None, boxes[0].index))
    if len(classes) != 1:
        return "the number of classes differs between levels"
    return UltralyticsLayout(found, classes.pop())


def _ssd(levels: Levels, image_size: tuple[int, int]) -> Layout | str:
    if any(len(level) != 2 for level in levels):
        return (
            "needs two maps per level: for each default box, the first has 4 channels, and the second has a channel "
            "for each class and for the background"
        )
    counts = [3, *(6 for _ in levels[1:])]
    found: list[Level] = []
    columns, sigmoid = set[int](), False
    for level, count in zip(levels, counts, strict=True):
        boxes = [m for m in level if m.channels == 4 * count]
        if len(boxes) != 1:
            return f"needs 4 x {count} channels for the boxes of level {len(found)}"
        rest = next(m for m in level if m is not boxes[0])
        if rest.channels % count:
            return f"{rest.name} has {rest.channels} channels, which is not a multiple of {count}"
        columns.add(rest.channels // count)
        sigmoid = sigmoid or "Sigmoid" in rest.activations
        found.append(Level(_stride(level, image_size), rest.index, None, boxes[0].index, count))
    if len(columns) != 1:
        return "the number of classes differs between levels"
    grids = [(level[0].rows, level[0].columns) for level in levels]
    return SsdLayout(
        found, columns.pop() - 1, tensorflow_defaults(grids), sigmoid=sigmoid, vertical_first=True, clamp=False
    )


_BUILDERS: Final[dict[str, Callable[[Levels, tuple[int, int]], Layout | str]]] = {
    "yolox": _yolox,
    "nanodet": _nanodet,
    "ultralytics": _ultralytics,
    "ssd": _ssd,
}


def tensorflow_defaults(grids: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Return the default boxes of TensorFlow's SSD networks for a square image.

    Scales grow from 0.2 to 0.95; the first level has three boxes, the others have six (``ssd_anchor_generator``).

    Returns:
        For each level (h, w, boxes per cell, 4): centre x, centre y, width, height as fractions of the image.
    """
    last = max(len(grids) - 1, 1)
    scales = [0.2 + 0.75 * k / last for k in range(len(grids))] + [1.0]
    found = []
    for k, (rows, columns) in enumerate(grids):
        if k == 0:
            shapes = [(0.1, 1.0), (scales[0], 2.0), (scales[0], 0.5)]
        else:
            shapes = [(scales[k], ratio) for ratio in (1.0, 2.0, 0.5, 3.0, 1 / 3)]
            shapes.append((math.sqrt(scales[k] * scales[k + 1]), 1.0))
        sizes = torch.tensor([[scale * math.sqrt(ratio), scale / math.sqrt(ratio)] for scale, ratio in shapes])
        y, x = ((torch.arange(cells) + 0.5) / cells for cells in (rows, columns))
        centres = torch.stack((x.expand(rows, -1), y[:, None].expand(-1, columns)), -1)[:, :, None]
        found.append(torch.cat((centres.expand(-1, -1, len(shapes), -1), sizes.expand(rows, columns, -1, -1)), -1))
    return found


def _with_defaults(layout: Layout, defaults: Tensor) -> Layout:
    """Return the layout with other default boxes (A, 4): centre y, centre x, height, width."""
    if not isinstance(layout, SsdLayout):
        raise ModelError(f"layout {layout.name!r} has no default boxes; omit the anchors")
    expected = sum(int(level[..., 0].numel()) for level in layout.defaults)
    if tuple(defaults.shape) != (expected, 4):
        raise ModelError(f"default boxes have the shape {tuple(defaults.shape)}; the network needs ({expected}, 4)")
    counts = [int(level[..., 0].numel()) for level in layout.defaults]
    parts = torch.split(defaults.float()[:, [1, 0, 3, 2]], counts)
    shaped = [part.reshape(level.shape) for part, level in zip(parts, layout.defaults, strict=True)]
    return SsdLayout(
        layout.levels, layout.classes, shaped, sigmoid=layout.sigmoid, vertical_first=layout.vertical_first,
        clamp=layout.clamp,
    )  # fmt: skip
