"""Adapts torchvision's one-stage detectors to networks from images to raw maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from engine.detectors.identify import nominal_stride
from engine.detectors.layouts import FcosLayout, RetinanetLayout, SsdLayout
from engine.detectors.outputs import Layout, Level


class _Maps(nn.Module):
    """Backbone and heads of a torchvision detector, without its transform and its decoding."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - torchvision has no types
        super().__init__()
        self.backbone = model.backbone
        self.head = model.head

    def level(self, features: Tensor, index: int) -> tuple[Tensor, ...]:
        """Return the raw maps of one level, the class map first."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return all raw maps, level by level."""
        maps: tuple[Tensor, ...] = ()
        for index, features in enumerate(self.backbone(images).values()):
            maps += self.level(features, index)
        return maps


class SsdMaps(_Maps):
    """SSD300 and SSDlite320: each level has its own convolutions."""

    def level(self, features: Tensor, index: int) -> tuple[Tensor, ...]:
        """Return class map and box map."""
        heads = self.head.classification_head, self.head.regression_head
        classes, boxes = (head.module_list[index](features) for head in heads)
        return classes, boxes


class RetinanetMaps(_Maps):
    """RetinaNet: all levels share the heads."""

    def level(self, features: Tensor, index: int) -> tuple[Tensor, ...]:  # noqa: ARG002
        """Return class map and box map."""
        classes, boxes = self.head.classification_head, self.head.regression_head
        return classes.cls_logits(classes.conv(features)), boxes.bbox_reg(boxes.conv(features))


class FcosMaps(_Maps):
    """FCOS: like RetinaNet, with a centerness map."""

    def level(self, features: Tensor, index: int) -> tuple[Tensor, ...]:  # noqa: ARG002
        """Return class, centerness and box map."""
        classes, boxes = self.head.classification_head, self.head.regression_head
        branch = boxes.conv(features)
        return classes.cls_logits(classes.conv(features)), boxes.bbox_ctrness(branch), boxes.bbox_reg(branch)


def unfrozen(net: nn.Module) -> nn.Module:
    """Replace frozen batch norms, in place, by equal batch norms that can be merged into convolutions."""
    from torchvision.ops import FrozenBatchNorm2d

    for name, part in list(net.named_modules()):
        if isinstance(part, FrozenBatchNorm2d):
            norm = nn.BatchNorm2d(len(part.weight), eps=part.eps).eval()
            norm.load_state_dict(part.state_dict(), strict=False)
            net.set_submodule(name, norm)
    return net


def _ssd(model: Any, maps: nn.Module, size: tuple[int, int]) -> Layout:  # noqa: ANN401
    with torch.inference_mode():
        shapes = [tuple(m.shape) for m in maps(torch.zeros(1, 3, *size))]
    generator = model.anchor_generator
    grids = [list(shape[2:]) for shape in shapes[::2]]
    counts = generator.num_anchors_per_location()
    boxes = generator._grid_default_boxes(grids, list(size))  # noqa: SLF001 - the public call needs an ImageList
    sizes = [rows * columns * count for (rows, columns), count in zip(grids, counts, strict=True)]
    defaults = [
        part.reshape(rows, columns, count, 4)
        for part, (rows, columns), count in zip(boxes.split(sizes), grids, counts, strict=True)
    ]
    levels = [
        Level(nominal_stride(size, (rows, columns)), 2 * k, None, 2 * k + 1, count)
        for k, ((rows, columns), count) in enumerate(zip(grids, counts, strict=True))
    ]
    return SsdLayout(levels, shapes[0][1] // counts[0] - 1, defaults)


def _retinanet(model: Any, maps: nn.Module, size: tuple[int, int]) -> Layout:  # noqa: ANN401, ARG001
    anchors = [cell.float() for cell in model.anchor_generator.cell_anchors]
    levels = [Level(8 << k, 2 * k, None, 2 * k + 1, len(cell)) for k, cell in enumerate(anchors)]
    return RetinanetLayout(levels, model.head.classification_head.num_classes, anchors)


def _fcos(model: Any, maps: nn.Module, size: tuple[int, int]) -> Layout:  # noqa: ANN401, ARG001
    levels = [Level(8 << k, 3 * k, 3 * k + 1, 3 * k + 2) for k in range(len(model.anchor_generator.sizes))]
    return FcosLayout(levels, model.head.classification_head.num_classes)


@dataclass(frozen=True, slots=True)
class TorchvisionDetector:
    """The adapter, the layout and the input size of a torchvision network."""

    maps: Callable[[Any], nn.Module]
    layout: Callable[[Any, nn.Module, tuple[int, int]], Layout]
    input_size: tuple[int, int]
    """Height and width in pixels."""
    fixed_size: bool = False
    """True if only this size fits the default boxes."""


TORCHVISION_DETECTORS: Final[dict[str, TorchvisionDetector]] = {
    "ssdlite320_mobilenet_v3_large": TorchvisionDetector(SsdMaps, _ssd, (320, 320), fixed_size=True),
    "ssd300_vgg16": TorchvisionDetector(SsdMaps, _ssd, (300, 300), fixed_size=True),
    "retinanet_resnet50_fpn": TorchvisionDetector(RetinanetMaps, _retinanet, (640, 640)),
    "retinanet_resnet50_fpn_v2": TorchvisionDetector(RetinanetMaps, _retinanet, (640, 640)),
    "fcos_resnet50_fpn": TorchvisionDetector(FcosMaps, _fcos, (640, 640)),
}
"""The one-stage detectors by name."""

TWO_STAGE: Final = (
    "fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
)  # fmt: skip
"""The two-stage detectors, see ``engine.detectors.two_stage``."""
