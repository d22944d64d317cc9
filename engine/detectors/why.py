"""Answers why a detector sees an object at a place, or why it does not.

The anchor with the highest product of score and overlap with the given box is explained as a found box is: by the score
with one region of the input only (``keep``), and by what the score loses or gains without one region (``drop``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.detectors.detections import missed_anchor
from engine.detectors.detector import Detector
from engine.detectors.heat import BoxHeat
from engine.detectors.outputs import Target
from engine.detectors.regions import Regions
from engine.detectors.runtime import CutKind, OneStageEngine
from engine.detectors.two_stage import RegionDetector
from pipeline.errors import ConfigError, unknown_name_message
from pipeline.frames import Box, BoxMap, Finding, Image


@dataclass(frozen=True, slots=True)
class Influence:
    """Effect of a region of the image on the score."""

    box: Box
    """The region in pixels of the image."""
    score_without: float
    """The score with this region masked."""


@dataclass(frozen=True, eq=False)
class Answer:
    """The explanation of one place and class."""

    score: float
    """The score of the class at the best anchor, 0 to 1."""
    threshold: float
    """The lowest score of a detection."""
    overlap: float
    """IoU of the anchor's box with the given box."""
    stride: int
    """Pixels of the network's input per cell of the anchor's level."""
    keep: Finding
    drop: Finding
    supporting: Influence | None
    """The region without which the score is lowest; None if none lowers it."""
    suppressing: Influence | None
    """The region without which the score is highest; None if none raises it."""


def class_number(labels: tuple[str, ...], name: str) -> int:
    """Return the index of a class.

    Raises:
        ConfigError: there is no class of this name.
    """
    if name not in labels:
        raise ConfigError(unknown_name_message("class", name, labels))
    return labels.index(name)


def explain_place(
    detector: Detector | RegionDetector,
    image: Image,
    box: Box,
    label: str,
    *,
    cut: CutKind = "complete",
    cell_px: int | None = None,
) -> Answer:
    """Explain the score of a class at a place of an image.

    Args:
        detector: a one-stage detector.
        image: uint8 RGB, (height, width, 3).
        box: the place in pixels of the image.
        label: the class.
        cut: which features are masked.
        cell_px: side of a region in pixels of the network's input; None = the stride of the anchor's level, at least
            16: finer regions take seconds.

    Raises:
        ConfigError: the class is unknown, the box lies outside the image or has no area, or the detector has two
            stages.
    """
    if isinstance(detector, RegionDetector):
        raise ConfigError(f"{detector.name}: its first stage chooses regions, so a missed place has none; use YOLOX")
    height, width = image.shape[:2]
    if box.left >= width or box.top >= height or box.right <= 0 or box.bottom <= 0:
        raise ConfigError(f"box {_text(box)}: lies outside the image of {width}x{height} pixels; give a place inside")
    class_index = class_number(detector.labels, label)
    engine = OneStageEngine(detector, detector.input.size, cut=cut)
    boxes = engine.run(detector.input.prepare([image]))[0]
    placement = detector.input.place(height, width)
    place = placement.to_input(torch.tensor(tuple(box), dtype=torch.float32))
    candidates = boxes.source.candidates
    missed = missed_anchor(candidates, place, class_index)
    anchor = detector.layout.locate(candidates.grids, missed.anchor)
    stride = detector.layout.levels[anchor.level].stride
    cell = cell_px or max(16, stride)
    target = Target(anchor, class_index)
    edges = Box(*placement.to_image(candidates.boxes[0, missed.anchor]).tolist())
    keep, drop = (engine.heat_of_targets(boxes, [target], cell, mode)[0] for mode in ("keep", "drop"))
    region = Box(*placement.to_image(torch.tensor(keep.rectangle)).tolist())
    size = (detector.input.size, cell)
    return Answer(
        score=missed.score,
        threshold=detector.score,
        overlap=missed.iou,
        stride=stride,
        keep=_finding(keep, edges, label, class_index, region),
        drop=_finding(drop, edges, label, class_index, region),
        supporting=_influence(drop, region, size, largest=True),
        suppressing=_influence(drop, region, size, largest=False),
    )


def _text(box: Box) -> str:
    return f"{box.left:g},{box.top:g},{box.width:g},{box.height:g}"


def _finding(heat: BoxHeat, edges: Box, label: str, class_index: int, region: Box) -> Finding:
    shown = heat.normalised()
    against = None if shown.against is None else shown.against.numpy()
    box_map = BoxMap(heat.mode, heat.cut, region, shown.scale, against, shown.lowest_score)
    return Finding(label, heat.plain_score, shown.heat.numpy(), class_index, box=edges, box_map=box_map)


def _influence(drop: BoxHeat, region: Box, size: tuple[tuple[int, int], int], *, largest: bool) -> Influence | None:
    """Return the region that lowers or raises the score most when it is masked."""
    values = drop.values
    index = int(values.argmax() if largest else values.argmin())
    change = float(values.flatten()[index])
    if (change <= 0.0) if largest else (change >= 0.0):
        return None
    rows, columns = Regions(*size).grid
    row, column = divmod(index, columns)
    width, height = region.width / columns, region.height / rows
    left, top = region.left + column * width, region.top + row * height
    return Influence(Box(left, top, left + width, top + height), drop.plain_score - change)
