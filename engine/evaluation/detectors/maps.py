"""Computes heat maps of one box by Recipro-CAM and by the methods it is compared with.

A method is a function from an ``ExplainedBox`` to a ``PlacedMap``. The baselines are implemented from the papers: ODAM
(Zhao and Chan, arXiv:2304.06354) and EigenCAM (Muhammad and Yeasin, arXiv:2008.00299). ``gaussian-anchor``,
``gaussian-box`` and ``random`` do not depend on the image.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.detectors.detector import Detector
from engine.detectors.heat import BoxHeat
from engine.detectors.outputs import Target
from engine.detectors.regions import Mode, Regions
from engine.detectors.runtime import ImageBoxes, OneStageEngine
from engine.detectors.split import DetectorSplit
from pipeline.errors import ConfigError, unknown_name_message

ANCHOR_SIGMA_STRIDES: Final = 2.0
"""Sigma of ``gaussian-anchor``: a quarter of the side of the largest box that a level usually detects."""
BOX_SIGMA: Final = 0.25
"""Sigma of ``gaussian-box`` as a fraction of the box's width and height."""


@dataclass(frozen=True, eq=False)
class PlacedMap:
    """A map on a grid of square cells, starting in the upper left corner of the network's input."""

    values: Tensor
    """Importance of each cell, (rows, columns) float32, not normalised."""
    cell_px: int
    """Side of a cell in pixels of the input."""
    absolute: bool = True
    """True if 0 means no influence; False if only differences between values have a meaning."""
    heat: Tensor | None = None
    """The values of the regions, negative ones included, before smoothing; None: equal to ``values``."""

    def on_input(self, size: tuple[int, int]) -> Tensor:
        """Upsample the map to the input's (height, width), bilinear between the centres of cells."""
        rows, columns = self.values.shape
        wide = F.interpolate(
            self.values[None, None].float(),
            size=(rows * self.cell_px, columns * self.cell_px),
            mode="bilinear",
            align_corners=False,
        )[0, 0]
        return wide[: size[0], : size[1]]

    def peak(self) -> tuple[float, float]:
        """Return the centre (x, y) of the cell with the highest value, in pixels of the input."""
        row, column = divmod(int(self.values.argmax()), self.values.shape[1])
        return (column + 0.5) * self.cell_px, (row + 0.5) * self.cell_px


@dataclass(frozen=True, eq=False)
class ImageMaps:
    """The results of a detector for one image, on which all methods are based."""

    detector: Detector
    complete: OneStageEngine
    level: OneStageEngine
    complete_boxes: ImageBoxes
    level_boxes: ImageBoxes
    cached: dict[tuple[str, ...], tuple[Tensor, ...]] = field(default_factory=dict)
    """Features of the image, by the node names of a cut."""

    def features(self, split: DetectorSplit) -> tuple[Tensor, ...]:
        """Return the features of the image at the cut of ``split``."""
        nodes = split.cut.nodes
        if nodes not in self.cached:
            with torch.inference_mode():
                self.cached[nodes] = split.features(self.complete_boxes.source.image)
        return self.cached[nodes]


class Explaining:
    """The two engines of a detector: for the complete cut and for the box's own level."""

    def __init__(self, detector: Detector) -> None:
        """Build both engines."""
        self.detector = detector
        size = detector.input.size
        self.complete, self.level = (OneStageEngine(detector, size, cut=cut) for cut in ("complete", "level"))

    def run(self, images: Tensor) -> ImageMaps:
        """Run both engines on one prepared image (1, 3, H, W)."""
        return ImageMaps(
            self.detector, self.complete, self.level, self.complete.run(images)[0], self.level.run(images)[0]
        )


def shuffled_channels(net: nn.Module, seed: int = 0) -> nn.Module:
    """Return a copy of the network with the weights of each output channel shuffled.

    Model parameter randomisation of Adebayo et al., arXiv:1810.03292, section 4, all layers at once. Shuffling across
    channels would make a detector overflow, because its batch norms are merged into the convolutions, whose channels
    therefore differ in scale. Vectors, such as biases, are not changed.
    """
    other = copy.deepcopy(net)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.ndim > 1:
                flat = parameter.flatten(1)
                order = torch.rand(flat.shape, generator=generator).argsort(1)
                parameter.copy_(flat.gather(1, order).view_as(parameter))
    return other


@dataclass(frozen=True, eq=False)
class ExplainedBox:
    """A box to explain."""

    image: ImageMaps
    target: Target
    corners: tuple[float, float, float, float]
    """Left, top, right, bottom of the detected box in pixels of the input."""
    cell_px: int | None = None
    """Side of a region in pixels; None: the default of the cut."""
    seed: int = 0
    """Seed of the method ``random``."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        return self.image.detector.input.size

    @property
    def stride(self) -> int:
        """Input pixels per cell of the box's level."""
        return self.image.detector.layout.levels[self.target.anchor.level].stride

    @property
    def cell(self) -> int:
        """Side of a region in pixels of the input."""
        return self.cell_px or self.image.detector.cut(self.target.anchor.level).cell_px

    @property
    def anchor_centre(self) -> tuple[float, float]:
        """Centre (x, y) of the anchor's cell in pixels of the input."""
        anchor = self.target.anchor
        return (anchor.column + 0.5) * self.stride, (anchor.row + 0.5) * self.stride


def recipro_map(box: ExplainedBox, mode: Mode, *, complete: bool = True) -> PlacedMap:
    """Return the map of Recipro-CAM, at the complete cut or at the cut of the box's own level."""
    image = box.image
    engine, boxes = (image.complete, image.complete_boxes) if complete else (image.level, image.level_boxes)
    heat: BoxHeat = engine.heat_of_targets(boxes, [box.target], box.cell, mode)[0]
    return PlacedMap(heat.evidence(), box.cell, absolute=mode == "drop", heat=heat.values)


def gaussian_map(box: ExplainedBox, centre: tuple[float, float], sigma: tuple[float, float]) -> PlacedMap:
    """Return a Gaussian at input resolution; centre and sigma are (x, y) in pixels."""
    height, width = box.size
    x, y = (
        (torch.arange(side) + 0.5 - c) / max(s, 1e-3) for side, c, s in zip((width, height), centre, sigma, strict=True)
    )
    return PlacedMap(torch.exp(-0.5 * (y[:, None] ** 2 + x[None, :] ** 2)), 1)


def gaussian_at_anchor(box: ExplainedBox) -> PlacedMap:
    """Return a Gaussian at the anchor; its sigma is two strides."""
    return gaussian_map(box, box.anchor_centre, (ANCHOR_SIGMA_STRIDES * box.stride,) * 2)


def gaussian_in_box(box: ExplainedBox) -> PlacedMap:
    """Return a Gaussian at the centre of the detected box; its sigmas are a quarter of the sides."""
    left, top, right, bottom = box.corners
    centre = ((left + right) / 2.0, (top + bottom) / 2.0)
    return gaussian_map(box, centre, (BOX_SIGMA * (right - left), BOX_SIGMA * (bottom - top)))


def random_map(box: ExplainedBox) -> PlacedMap:
    """Return independent uniform values on the grid of the regions."""
    generator = torch.Generator().manual_seed(box.seed)
    return PlacedMap(torch.rand(Regions(box.size, box.cell).grid, generator=generator), box.cell)


def odam(box: ExplainedBox) -> PlacedMap:
    """Return ODAM's map at the head's input: ReLU of the channel sum of gradient x activation.

    Gradients are those of the score. Zhao and Chan, arXiv:2304.06354, without their optional smoothing.
    """
    split = box.image.detector.split(box.target.anchor.level, "own level")
    (values,) = gradient_times_activation(box, split)
    return PlacedMap(values, split.cut.strides[0])


def odam_at_cut(box: ExplainedBox) -> PlacedMap:
    """Return the sum of ODAM's maps at all features of the complete cut, at input resolution."""
    split = box.image.detector.split(box.target.anchor.level, "complete")
    parts = gradient_times_activation(box, split)
    wide = [PlacedMap(part, s).on_input(box.size) for part, s in zip(parts, split.cut.strides, strict=True)]
    return PlacedMap(torch.stack(wide).sum(0), 1)


def gradient_times_activation(box: ExplainedBox, split: DetectorSplit) -> list[Tensor]:
    """Return ReLU(sum over channels of gradient x activation), (h, w), for each map of a cut."""
    layout, target = box.image.detector.layout, box.target
    with torch.inference_mode(mode=False), torch.enable_grad():
        leaves = [feature.clone().requires_grad_() for feature in box.image.features(split)]
        maps = split.tail(*leaves)
        reads = layout.reads(target.anchor)
        vectors = [maps[split.maps.index(read.map)][:, :, read.row, read.column] for read in reads]
        score = layout.log_score(vectors, target.class_index, target.anchor).exp().sum()
        gradients = torch.autograd.grad(score, leaves, allow_unused=True)
    return [
        torch.zeros(leaf.shape[2:]) if gradient is None else (gradient * leaf.detach()).sum(1)[0].clamp(min=0.0)
        for gradient, leaf in zip(gradients, leaves, strict=True)
    ]


def eigen_cam(box: ExplainedBox) -> PlacedMap:
    """Return EigenCAM of the box's level: features projected on their first principal component.

    The map depends neither on the box nor on the class. The sign of a singular vector is arbitrary; it is chosen so
    that the sum of the map is positive. Negative values become 0. Muhammad and Yeasin, arXiv:2008.00299.
    """
    split = box.image.detector.split(box.target.anchor.level, "own level")
    feature = box.image.features(split)[0][0]
    flat = feature.flatten(1).T.double()
    _, vectors = torch.linalg.eigh(flat.T @ flat)
    projected = (flat @ vectors[:, -1]).view(feature.shape[1:])
    projected = projected if float(projected.sum()) >= 0.0 else -projected
    return PlacedMap(projected.clamp(min=0.0).float(), split.cut.strides[0])


BoxMethod = Callable[[ExplainedBox], PlacedMap]

METHODS: Final[dict[str, BoxMethod]] = {
    "keep": lambda box: recipro_map(box, "keep"),
    "drop": lambda box: recipro_map(box, "drop"),
    "level-keep": lambda box: recipro_map(box, "keep", complete=False),
    "level-drop": lambda box: recipro_map(box, "drop", complete=False),
    "odam": odam,
    "odam-cut": odam_at_cut,
    "eigen-cam": eigen_cam,
    "gaussian-anchor": gaussian_at_anchor,
    "gaussian-box": gaussian_in_box,
    "random": random_map,
}
"""The methods by name."""

BLIND: Final = ("gaussian-anchor", "gaussian-box", "random")
"""Methods that do not depend on the image; they are always measured."""


def chosen_methods(text: str | None) -> tuple[str, ...]:
    """Return the methods in a comma-separated list, plus ``BLIND``; None: all methods.

    Raises:
        ConfigError: a method is unknown.
    """
    names = tuple(METHODS) if text is None else tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in METHODS:
            raise ConfigError(f"method {name!r}: {unknown_name_message('method', name, tuple(METHODS))}")
    return tuple(name for name in METHODS if name in names or name in BLIND)
