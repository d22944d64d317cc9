"""Parses YOLO text, COCO JSON and Pascal VOC XML into boxes in pixels.

The caller reads the files. Boxes that are not finite, have a negative size or are farther out than ``MAX_PIXELS`` are
refused.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final
from xml.etree import ElementTree as ET

from pipeline.errors import ConfigError
from pipeline.frames import Box, GroundTruth

MAX_PIXELS: Final = 1e6
"""How far from a picture's corner a box may reach: more is a mistake."""
_FRACTIONS: Final = (-0.5, 1.5)
"""Between which shares of a picture a YOLO box may reach: labels may lie a little beyond its edge."""

Names = Mapping[int, str] | Sequence[str]
"""Box classes by their index."""


def yolo_boxes(text: str, names: Names, size: tuple[int, int], where: str) -> tuple[GroundTruth, ...]:
    """Read a YOLO label file: ``class x y width height`` in shares, or ``class`` and a polygon's corners.

    Args:
        text: what the file holds; empty = no object.
        names: the box classes by index; one without a name is called ``class 7``.
        size: the picture's height and width in pixels.
        where: the file, for messages.

    Raises:
        ConfigError: a line that is neither.
    """
    height, width = size
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            index, *fractions = (float(part) for part in line.split())
        except ValueError:
            index, fractions = math.nan, []
        polygon = len(fractions) >= 6 and len(fractions) % 2 == 0
        whole = math.isfinite(index) and 0 <= index < MAX_PIXELS and index == int(index)
        if not (len(fractions) == 4 or polygon) or not whole or not all(map(math.isfinite, fractions)):
            raise ConfigError(
                f"{where}:{number}: {line[:60]!r} not a YOLO box; write: class x y width height, as "
                "fractions of the image"
            )
        if polygon:
            left, right, top, bottom = (
                min(fractions[::2]),
                max(fractions[::2]),
                min(fractions[1::2]),
                max(fractions[1::2]),
            )
        else:
            x, y, w, h = fractions
            left, right, top, bottom = x - w / 2, x + w / 2, y - h / 2, y + h / 2
        if min(left, top) < _FRACTIONS[0] or max(right, bottom) > _FRACTIONS[1] or right < left or bottom < top:
            raise ConfigError(
                f"{where}:{number}: {line[:60]!r} is outside the image or has a negative size; write fractions of "
                "its width and height, 0 to 1, not pixels"
            )
        box = Box(left * width, top * height, right * width, bottom * height)
        found.append(GroundTruth(_name(names, int(index)), (box,)))
    return tuple(found)


def coco_boxes(text: str, where: str) -> dict[str, tuple[GroundTruth, ...]]:
    """Read a COCO instances file: boxes by the picture's file name, folders and all, with slashes.

    Raises:
        ConfigError: it is not JSON of that form, or has two pictures of one name.
    """
    try:
        coco: Mapping[str, Any] = json.loads(text)
        names = {entry["id"]: str(entry["name"]) for entry in coco["categories"]}
        files = {entry["id"]: str(entry["file_name"]).replace("\\", "/") for entry in coco["images"]}
        found: dict[str, list[GroundTruth]] = {name: [] for name in files.values()}
        twin = next((name for name, count in Counter(files.values()).items() if count > 1), None)
        for entry in coco["annotations"]:
            left, top, width, height = map(float, entry["bbox"])
            box = _checked(Box(left, top, left + width, top + height))
            found[files[entry["image_id"]]].append(GroundTruth(names[entry["category_id"]], (box,)))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as reason:
        raise ConfigError(
            f"{where}: not a COCO JSON with images, annotations and categories ({_why(reason)})"
        ) from None
    if twin is not None:
        raise ConfigError(f"{where}: two images have the name {twin!r}; write file_name with its folder: a/{twin}")
    return {name: tuple(truths) for name, truths in found.items()}


def voc_boxes(text: str, where: str) -> tuple[GroundTruth, ...]:
    """Read a Pascal VOC annotation; its corners count from 1 and are part of the object.

    Raises:
        ConfigError: it is not XML of that form, or declares entities.
    """
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ConfigError(f"{where}: has a document type declaration, which VOC annotations do not need; remove it")
    try:
        found = []
        for entry in ET.fromstring(text).iter("object"):  # noqa: S314 - entities are refused above
            left, top, right, bottom = (
                float(entry.findtext(f"bndbox/{side}") or "missing") for side in ("xmin", "ymin", "xmax", "ymax")
            )
            found.append(GroundTruth(entry.findtext("name") or "", (_checked(Box(left - 1, top - 1, right, bottom)),)))
    except (ET.ParseError, ValueError, RecursionError) as reason:
        raise ConfigError(f"{where}: not a Pascal VOC XML with object/bndbox ({reason})") from None
    return tuple(found)


def boxes_of_class(
    truths: Sequence[GroundTruth], label: str, index: int, meaning: Mapping[str, Sequence[int]]
) -> tuple[Box, ...]:
    """Return the boxes of the explained class: those of its name, or of a name that means it.

    Args:
        truths: what the picture holds.
        label: the explained class's name, capitals forgiven.
        index: its place in the network's output.
        meaning: box class -> classes of the network that it stands for.
    """
    folded = label.casefold()
    return tuple(
        box
        for truth in truths
        if truth.label.casefold() == folded or index in meaning.get(truth.label, ())
        for box in truth.boxes
    )


def _name(names: Names, index: int) -> str:
    try:
        return names[index]
    except (KeyError, IndexError):
        return f"class {index}"


def _why(reason: Exception) -> str:
    """Return what was wrong with a JSON, for people to read."""
    if isinstance(reason, RecursionError):
        return "nested too deep"
    if isinstance(reason, KeyError):
        return f"{reason} is missing"
    if "integer string conversion" in str(reason) or isinstance(reason, OverflowError):
        return "a number has too many digits"
    return str(reason)


def _checked(box: Box) -> Box:
    """Return a box of a picture. Raises ``ValueError`` for one that none can have."""
    if not all(abs(side) <= MAX_PIXELS for side in box):  # false for what is no number
        raise ValueError(f"a box from {box.left:g}, {box.top:g} to {box.right:g}, {box.bottom:g} reaches too far")
    if box.width < 0 or box.height < 0:
        raise ValueError(f"a box of {box.width:g} x {box.height:g} has a negative size")
    return box
