"""Draws a detector's boxes: heat maps in the colours of the tracks, outlines and labels.

Only the heat above the median of each map is painted, so that the base levels of many maps do not cover the image.
Boxes with a low score are painted fainter. Where heat maps overlap, the strongest is shown.
"""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from overlays.render.heatmap import Levels, draw_box, heat_levels
from overlays.render.text import GREY, TextLine, text_size, text_tile
from pipeline.frames import Box, Explanation, Finding, Heat, Image

Colour = tuple[int, int, int]

AGAINST: Final[Colour] = (40, 110, 255)
"""RGB colour of evidence against a box (mode ``drop``); no track has this colour."""
_DARK: Final[Colour] = (16, 18, 22)
_REDUCTION: Final = 4
"""Divisor of the frame's size at which heat maps are composed; one pixel there is smaller than a cell."""
_GOLDEN_ANGLE: Final = 0.381966
_BLUES: Final = (0.52, 0.76)
"""Range of hues that tracks do not use, reserved for ``AGAINST``."""
_FULL_SCORE: Final = 0.5
"""Score below which the heat of a box is fainter, in proportion to the score."""
_SMALL_LABELS: Final = 3
"""Height in letters below which a box counts as small: labels do not cover its middle."""
_STALE_SECONDS: Final = 0.05
"""Age of a map in seconds above which its label shows the age."""
_MAX_COUNTS: Final = 4
"""Maximum number of classes counted in the legend."""


def track_colour(finding: Finding) -> Colour:
    """Return the RGB colour of a box, chosen by its track, or by its class without tracking."""
    number = finding.class_index if finding.track is None else finding.track
    first, last = _BLUES
    hue = (number * _GOLDEN_ANGLE % 1.0) * (1.0 - last + first)
    hue = hue if hue < first else hue + last - first
    lightness = (0.62, 0.5, 0.72)[number % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def evidence(heat: Heat) -> Heat:
    """Return the heat above its median, scaled so that 1 stays 1; float32 in [0, 1], (rows, columns)."""
    floor = np.float32(np.median(heat))
    return np.zeros_like(heat) if floor >= 1.0 else np.maximum(heat - floor, 0.0) / (np.float32(1.0) - floor)


def paint_box_heat(image: Image, explanation: Explanation, opacity: float, *, full_score: float = _FULL_SCORE) -> Image:
    """Return a new image with the heat of all boxes blended over it.

    Args:
        image: uint8 RGB, (height, width, 3); not modified.
        explanation: the explanation, whose findings with a ``box_map`` are painted.
        opacity: opacity of the strongest evidence, in [0, 1].
        full_score: score below which the heat of a box is fainter, in proportion to the score; 0: never.
    """
    height, width = image.shape[:2]
    rows, columns = -(-height // _REDUCTION), -(-width // _REDUCTION)
    heats = list(_heats(explanation.findings, full_score))
    if not heats:
        return image.copy()
    levels = np.stack(
        [heat_levels(heat, Box(*(edge / _REDUCTION for edge in region)), rows, columns) for heat, region, _ in heats]
    )
    strongest = levels.max(axis=0)
    colours = np.asarray([colour for _, _, colour in heats], np.float32)[levels.argmax(axis=0)]
    alpha = strongest.astype(np.float32)[..., None] * np.float32(opacity / 255.0)
    keep = _enlarge(255.0 * (1.0 - alpha[..., 0]), height, width)
    kept = cv2.multiply(image, cv2.cvtColor(keep, cv2.COLOR_GRAY2RGB), scale=1.0 / 255.0)
    return np.asarray(cv2.add(kept, _enlarge(colours * alpha, height, width)), np.uint8)


def _enlarge(values: npt.NDArray[np.float32], height: int, width: int) -> Image:
    """Return values in [0, 255] of the reduced frame, enlarged to the frame's size, as uint8."""
    size = (values.shape[1] * _REDUCTION, values.shape[0] * _REDUCTION)
    enlarged = cv2.resize(np.rint(values).astype(np.uint8), size, interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(enlarged[:height, :width])


def _heats(findings: Sequence[Finding], full_score: float) -> Iterable[tuple[Heat, Box, Colour]]:
    """Yield the evidence for and against each box, the region it covers, and its colour."""
    for finding in findings:
        box_map = finding.box_map
        if box_map is None:
            continue
        # Maps of mode keep have a base level; maps of mode drop are zero where a cell has no effect.
        heat = finding.heat if box_map.mode == "drop" else evidence(finding.heat)
        weight = np.float32(1.0 if finding.score >= full_score else finding.score / full_score)
        yield heat * weight, box_map.region, track_colour(finding)
        if box_map.against is not None:
            yield box_map.against * weight, box_map.region, AGAINST


def draw_boxes(image: Image, explanation: Explanation, *, covered: Sequence[Box] = ()) -> None:
    """Draw outlines and labels of all boxes; the highest scores are labelled first.

    A label that would cover another label or a small box is moved, shortened to the score, or omitted.

    Args:
        image: uint8 RGB, (height, width, 3), writable.
        explanation: the explanation, whose findings with a box are drawn.
        covered: areas of the image that are drawn over later; labels are placed beside them where there is room.
    """
    size = max(9, round(0.75 * text_size(image.shape[0], image.shape[1])))
    stroke = max(2, size // 7)
    findings = [finding for finding in explanation.findings if finding.box is not None]
    for finding in reversed(findings):
        assert finding.box is not None  # noqa: S101 - filtered above
        draw_box(image, finding.box, _DARK, stroke + 2)
        draw_box(image, finding.box, track_colour(finding), stroke if finding.box_map is not None else 1)
    texts = [label_texts(finding) for finding in findings]
    boxes = [finding.box for finding in findings if finding.box is not None]
    placed = place_labels(boxes, texts, size, image.shape[:2], covered)
    for finding, label in zip(findings, placed, strict=True):
        if label is not None:
            _draw_label(image, label, track_colour(finding))


def label_texts(finding: Finding) -> tuple[str, ...]:
    """Return the possible texts of a box's label, longest first."""
    score = "<1%" if 0.0 < finding.score < 0.01 else f"{finding.score:.0%}"
    text = f"{finding.label} {score}"
    if finding.box_map is None:
        return f"{text} · no map", text, score
    age = finding.box_map.age_seconds
    return (f"{text} · {age:.1f} s", text, score) if age > _STALE_SECONDS else (text, score)


class PlacedLabel(NamedTuple):
    """A rendered label and its position in the image."""

    left: int
    top: int
    width: int
    """Width of the plate in pixels; the plate is as high as the text."""
    text: Levels
    """Coverage of the rendered text, uint8, (rows, columns)."""


def place_labels(
    boxes: Sequence[Box],
    texts: Sequence[Sequence[str]],
    size: int,
    shape: tuple[int, int],
    covered: Sequence[Box] = (),
) -> list[PlacedLabel | None]:
    """Return a position for each box's label, so that labels cover neither each other nor the middle of small boxes.

    Args:
        boxes: the boxes, most important first.
        texts: for each box, the possible texts, preferred first.
        size: size of the letters in pixels.
        shape: height and width of the image in pixels.
        covered: areas without labels.

    Returns:
        For each box, the label with the first text that fits beside or inside it; None if no text fits.
    """
    taken = np.zeros(shape, np.bool_)
    small = [_middle(box) for box in boxes if box.height < _SMALL_LABELS * size]  # a label would hide such an outline
    for area in (*covered, *small):
        left, top, right, bottom = (max(round(edge), 0) for edge in area)
        taken[top:bottom, left:right] = True
    placed = []
    for box, candidates in zip(boxes, texts, strict=True):
        label = next(_free_labels(box, candidates, size, taken), None)
        if label is not None:
            taken[label.top : label.top + label.text.shape[0], label.left : label.left + label.width] = True
        placed.append(label)
    return placed


def _middle(box: Box) -> Box:
    """Return the middle half of a box."""
    x, y = box.width / 4, box.height / 4
    return Box(box.left + x, box.top + y, box.right - x, box.bottom - y)


def _free_labels(box: Box, texts: Sequence[str], size: int, taken: npt.NDArray[np.bool_]) -> Iterator[PlacedLabel]:
    rows, columns = taken.shape
    for text in texts:
        tile = text_tile(text, size, 600, max(columns // 2, 1))
        height, width = tile.shape[0], tile.shape[1] + size // 2
        for left, top in _positions(box, height, width) if tile.shape[1] else ():
            inside = left >= 0 and top >= 0 and left + width <= columns and top + height <= rows
            if inside and not taken[top : top + height, left : left + width].any():
                yield PlacedLabel(left, top, width, tile)


def _draw_label(image: Image, label: PlacedLabel, colour: Colour) -> None:
    height, columns = label.text.shape
    plate = image[label.top : label.top + height, label.left : label.left + label.width]
    plate[...] = colour
    start = (label.width - columns) // 2
    coverage = label.text[..., None].astype(np.float32) / 255.0
    area = plate[:, start : start + columns]
    area[...] = np.rint(area * (1.0 - coverage) + np.array(_DARK, np.float32) * coverage)


def _positions(box: Box, height: int, width: int) -> tuple[tuple[int, int], ...]:
    """Return the possible positions (left, top) of a label: above, below, inside, right and left of the box."""
    left, top, right, bottom = (round(edge) for edge in box)
    return (
        (left, top - height), (right - width, top - height), (left, bottom), (right - width, bottom), (left, top),
        (left, bottom - height), (right, top), (left - width, top), (right, bottom - height),
    )  # fmt: skip


def box_lines(explanation: Explanation) -> list[TextLine]:
    """Return a detector's legend lines: the number of boxes per class, and the number of boxes with a map."""
    boxes = [finding for finding in explanation.findings if finding.box is not None]
    counts = Counter(finding.label for finding in boxes).most_common()
    shown = [f"{count} {label}" for label, count in counts[:_MAX_COUNTS]]
    others = sum(count for _, count in counts[_MAX_COUNTS:])
    explained = sum(finding.box_map is not None for finding in boxes)
    text = " · ".join([*shown, *([f"{others} other{'s' if others > 1 else ''}"] if others else [])])
    return [TextLine(text, weight=700), TextLine(f"{explained} of {len(boxes)} explained", GREY, scale=0.75)]
