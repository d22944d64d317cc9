"""Matches the boxes of a detector to ground truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from pipeline.frames import Box, GroundTruth

MIN_IOU: Final = 0.5
"""Minimum IoU of a detection and its object (the rule of PASCAL VOC)."""


class Match(NamedTuple):
    """A detection and its object."""

    detection: int
    """Index of the detection."""
    truth: Box
    iou: float


@dataclass(frozen=True, slots=True)
class Matching:
    """The result of matching one image."""

    matches: tuple[Match, ...]
    """In the order of the detections."""
    missed: int
    """Number of undetected objects whose class the network has."""
    unknown: int
    """Number of objects whose class the network does not have."""
    extra: int
    """Number of detections without an object."""


@dataclass(frozen=True)
class BoxClasses:
    """Mapping of box classes to the classes of a detector."""

    labels: Sequence[str]
    """The detector's class names."""
    class_map: Mapping[str, Sequence[int]]
    """Box class -> corresponding classes of the detector, in addition to the class of the same name."""
    any_box: bool = False
    """True: a box corresponds to every class."""

    def of(self, label: str) -> frozenset[int]:
        """Return the detector's classes that correspond to a box class; empty if none does."""
        if self.any_box:
            return frozenset(range(len(self.labels)))
        folded = label.casefold()
        named = {index for index, name in enumerate(self.labels) if name.casefold() == folded}
        return frozenset(named | set(self.class_map.get(label, ())))


def cut_at_edges(truths: Sequence[GroundTruth], size: tuple[int, int]) -> list[GroundTruth]:
    """Clip objects to the edges of their image, like detections; a box outside becomes empty.

    Args:
        truths: the objects, in pixels of the image.
        size: height and width of the image.
    """
    height, width = size

    def cut(box: Box) -> Box:
        x, y = ([min(max(v, 0.0), float(side)) for v in pair] for pair, side in
                (((box.left, box.right), width), ((box.top, box.bottom), height)))  # fmt: skip
        return Box(x[0], y[0], x[1], y[1])

    return [GroundTruth(truth.label, tuple(cut(box) for box in truth.boxes)) for truth in truths]


def match_boxes(
    boxes: Sequence[Box], classes: Sequence[int], truths: Sequence[GroundTruth], known: BoxClasses
) -> Matching:
    """Match detections to objects, best detection first.

    Each detection is matched with the object of its class with which it has the highest IoU, if the IoU is at least
    ``MIN_IOU`` and no better detection is matched with this object.

    Args:
        boxes: the detections, best first, in pixels of the frame.
        classes: the classes of the detections.
        truths: the objects, in pixels of the frame.
        known: the mapping between box classes and the detector's classes.
    """
    objects = [(box, known.of(truth.label)) for truth in truths for box in truth.boxes]
    free = [index for index, (_, several) in enumerate(objects) if several]
    unknown = len(objects) - len(free)
    matches = []
    for number, (box, class_index) in enumerate(zip(boxes, classes, strict=True)):
        overlaps = [(objects[index][0].iou(box), index) for index in free if class_index in objects[index][1]]
        iou, best = max(overlaps, default=(0.0, -1))
        if iou >= MIN_IOU:
            free.remove(best)
            matches.append(Match(number, objects[best][0], iou))
    return Matching(tuple(matches), len(free), unknown, len(boxes) - len(matches))
