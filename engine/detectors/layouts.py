"""Output layouts of the detector families: how raw maps become boxes and log-scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.detectors.outputs import Layout, Level, cell_centres
from pipeline.errors import ConfigError, unknown_name_message

_MAX_LOG_RATIO: Final = math.log(1000 / 16)
"""Maximum of log(box size / anchor size), as in torchvision and Detectron."""


def _distances(centres: Tensor, distances: Tensor) -> Tensor:
    """Return boxes from centres (..., 2) and distances (..., 4) to the left, top, right and bottom side."""
    return torch.cat((centres - distances[..., :2], centres + distances[..., 2:]), dim=-1)


def _expected_distances(logits: Tensor) -> Tensor:
    """Return the expected distance to each side from its distribution over bins, in strides.

    Source: Li et al., *Generalized Focal Loss*, arXiv:2006.04388.
    """
    bins = logits.shape[-1] // 4
    shares = logits.reshape(*logits.shape[:-1], 4, bins).softmax(dim=-1)
    expected: Tensor = shares @ torch.arange(bins, dtype=shares.dtype, device=shares.device)
    return expected


class YoloxLayout(Layout):
    """Class score times objectness; centre and logarithmic size relative to the cell (arXiv:2107.08430)."""

    name = "yolox"

    def activate(self, class_logits: Tensor, objectness: Tensor | None) -> Tensor:
        """Return log-sigmoid of class plus log-sigmoid of objectness."""
        if objectness is None:
            raise ConfigError("layout yolox: a level has no objectness map; use the layout ultralytics")
        return F.logsigmoid(class_logits) + F.logsigmoid(objectness)[..., None]

    def level_boxes(self, level: int, values: Tensor, image_size: tuple[int, int]) -> Tensor:  # noqa: ARG002
        """Return boxes from (x, y, w, h): centre = (xy + cell) * stride, size = exp(wh) * stride."""
        stride = self.levels[level].stride
        corner = cell_centres(values.shape[1], values.shape[2], stride, 0.0, values)
        centre, half = corner + values[..., :2] * stride, values[..., 2:].exp() * (stride / 2)
        return torch.cat((centre - half, centre + half), dim=-1)


class NanodetLayout(Layout):
    """Class score only; distributions of the distances from the cell's upper left corner (NanoDet-Plus)."""

    name = "nanodet"
    centre: ClassVar[float] = 0.0
    """Position of the reference point in its cell."""

    def activate(self, class_logits: Tensor, objectness: Tensor | None) -> Tensor:  # noqa: ARG002
        """Return log-sigmoid of class."""
        return F.logsigmoid(class_logits)

    def level_boxes(self, level: int, values: Tensor, image_size: tuple[int, int]) -> Tensor:  # noqa: ARG002
        """Return boxes from the expected distances."""
        stride = self.levels[level].stride
        centres = cell_centres(values.shape[1], values.shape[2], stride, self.centre, values)
        return _distances(centres, _expected_distances(values) * stride)


class UltralyticsLayout(NanodetLayout):
    """The layout of YOLOv8 and YOLO11: like ``nanodet``, but with distances from the cell's centre."""

    name = "ultralytics"
    centre = 0.5


class _AnchorLayout(Layout):
    """Boxes relative to base anchors."""

    def __init__(self, levels: Sequence[Level], classes: int, anchors: Sequence[Tensor]) -> None:
        """Create the layout from base anchors.

        Args:
            levels: fine to coarse.
            classes: number of classes without background.
            anchors: for each level, (anchors per cell, 4) in pixels: left, top, right, bottom around the cell's corner.
        """
        super().__init__(levels, classes)
        self.anchors = tuple(anchors)

    def extent(self, level: int, image_size: tuple[int, int]) -> float:
        """Return the largest side of the level's anchors in pixels, at most the image's largest side."""
        left, top, right, bottom = self.anchors[level].unbind(-1)
        return min(float(torch.maximum(right - left, bottom - top).max()), float(max(image_size)))

    def placed(self, level: int, like: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Return the anchors of all cells: (h, w, anchors per cell, 4).

        Cells are ``image // grid`` pixels apart, as in torchvision.
        """
        rows, columns = like.shape[1], like.shape[2]
        y = torch.arange(rows, device=like.device) * float(image_size[0] // rows)
        x = torch.arange(columns, device=like.device) * float(image_size[1] // columns)
        corner = torch.stack((x.expand(rows, -1), y[:, None].expand(-1, columns)), dim=-1)
        return corner.repeat(1, 1, 2)[:, :, None] + self.anchors[level].to(like.device)


def relative_boxes(anchors: Tensor, values: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """Return boxes (..., 4) from anchors and ``values`` = (dx, dy, dw, dh) * ``weights`` (arXiv:1311.2524)."""
    size = anchors[..., 2:] - anchors[..., :2]
    centre = anchors[..., :2] + size / 2
    scale = values.new_tensor(weights)
    shift, growth = values[..., :2] / scale[:2], (values[..., 2:] / scale[2:]).clamp(max=_MAX_LOG_RATIO)
    centre, half = centre + shift * size, growth.exp() * size / 2
    return torch.cat((centre - half, centre + half), dim=-1)


class RetinanetLayout(_AnchorLayout):
    """Class score only; boxes relative to base anchors (arXiv:1708.02002)."""

    name = "retinanet"

    def activate(self, class_logits: Tensor, objectness: Tensor | None) -> Tensor:  # noqa: ARG002
        """Return log-sigmoid of class."""
        return F.logsigmoid(class_logits)

    def level_boxes(self, level: int, values: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Return boxes relative to the anchors."""
        return relative_boxes(self.placed(level, values, image_size), values, (1.0, 1.0, 1.0, 1.0))


class FcosLayout(Layout):
    """Square root of class score times centerness; distances from the cell's centre (arXiv:1904.01355)."""

    name = "fcos"

    def activate(self, class_logits: Tensor, objectness: Tensor | None) -> Tensor:
        """Return half the sum of log-sigmoid of class and log-sigmoid of centerness."""
        if objectness is None:
            raise ConfigError("layout fcos: a level has no centerness map; use the layout retinanet")
        return (F.logsigmoid(class_logits) + F.logsigmoid(objectness)[..., None]) / 2

    def level_boxes(self, level: int, values: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Return boxes from the distances, which the network's last ReLU makes positive.

        As in torchvision, cells are ``image // grid`` pixels apart. The reference point is the centre of the level's
        anchor, a square of one stride around the cell's corner, and its side is the unit of the distances.
        """
        stride = float(self.levels[level].stride)
        rows, columns = values.shape[1], values.shape[2]
        y = torch.arange(rows, device=values.device) * float(image_size[0] // rows)
        x = torch.arange(columns, device=values.device) * float(image_size[1] // columns)
        centres = torch.stack((x.expand(rows, -1), y[:, None].expand(-1, columns)), dim=-1)[:, :, None]
        return _distances(centres, values.relu() * stride)


class SsdLayout(Layout):
    """Single Shot Detector (arXiv:1512.02325): default boxes; column 0 of the classes is the background."""

    name = "ssd"

    def __init__(
        self, levels: Sequence[Level], classes: int, defaults: Sequence[Tensor], *, sigmoid: bool = False,
        vertical_first: bool = False, clamp: bool = True,
    ) -> None:  # fmt: skip
        """Create the layout from default boxes.

        Args:
            levels: fine to coarse.
            classes: number of classes without background.
            defaults: for each level, (h, w, boxes per cell, 4): centre x, centre y, width, height as fractions of the
                image.
            sigmoid: True: scores are sigmoids of each column, as in TensorFlow's networks; False: a softmax over all
                columns, as in torchvision's networks.
            vertical_first: True: box values are y, x, h, w, as in TensorFlow's networks; False: x, y, w, h.
            clamp: True: limit the growth of a box, as in torchvision.
        """
        super().__init__(levels, classes)
        self.defaults = tuple(defaults)
        self.sigmoid, self.vertical_first, self.clamp = sigmoid, vertical_first, clamp

    @property
    def class_channels(self) -> int:
        """The classes and the background."""
        return self.classes + 1

    @property
    def classes_compete(self) -> bool:
        """True if the scores are a softmax over all classes."""
        return not self.sigmoid

    def activate(self, class_logits: Tensor, objectness: Tensor | None) -> Tensor:  # noqa: ARG002
        """Return the log-scores without the background's column."""
        scores = F.logsigmoid(class_logits) if self.sigmoid else F.log_softmax(class_logits, dim=-1)
        return scores[..., 1:]

    def extent(self, level: int, image_size: tuple[int, int]) -> float:
        """Return the largest side of the level's default boxes in pixels, at most the image's largest side."""
        size = self.defaults[level][..., 2:] * torch.tensor([float(image_size[1]), float(image_size[0])])
        return min(float(size.max()), float(max(image_size)))

    def level_boxes(self, level: int, values: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Return boxes relative to the default boxes, with variances 0.1 and 0.2."""
        defaults = self.defaults[level].to(values.device)
        if defaults.shape[:2] != values.shape[1:3]:
            rows, columns = defaults.shape[:2]
            raise ConfigError(
                f"layout ssd: the default boxes of level {level} are for {rows}x{columns} cells, but the map has "
                f"{values.shape[1]}x{values.shape[2]}; use the network's own input size"
            )
        pixels = values.new_tensor([image_size[1], image_size[0]])
        values = values[..., [1, 0, 3, 2]] if self.vertical_first else values
        growth = values[..., 2:] * 0.2
        growth = growth.clamp(max=_MAX_LOG_RATIO) if self.clamp else growth
        size = defaults[..., 2:] * pixels
        centre = defaults[..., :2] * pixels + values[..., :2] * 0.1 * size
        half = growth.exp() * size / 2
        return torch.cat((centre - half, centre + half), dim=-1)


LAYOUTS: Final[dict[str, type[Layout]]] = {
    layout.name: layout
    for layout in (YoloxLayout, NanodetLayout, UltralyticsLayout, SsdLayout, RetinanetLayout, FcosLayout)
}
"""The layouts by name."""


def check_layout(name: str) -> str:
    """Return ``name`` if it is the name of a layout.

    Raises:
        ConfigError: there is no such layout.
    """
    if name not in LAYOUTS:
        raise ConfigError(f"layout {name!r}: {unknown_name_message('layout', name, LAYOUTS)}")
    return name
