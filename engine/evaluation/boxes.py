"""Parses YOLO text, COCO JSON and Pascal VOC XML into boxes in pixels.

The caller reads the files. Boxes that are not finite, have a negative size or exceed ``MAX_PIXELS`` are refused.
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
"""Maximum distance of a box corner from the image's origin, in pixels."""
_FRACTIONS: Final = (-0.5, 1.5)
"""Allowed range of a YOLO box's edges, as fractions of the image: labels may lie slightly outside the image."""
_ROUNDING: Final = 1.5
"""Maximum difference of a side that counts as rounding, in pixels."""

Names = Mapping[int, str] | Sequence[str]
"""Box classes by their index."""


def yolo_boxes(text: str, names: Names, size: tuple[int, int], where: str) -> tuple[GroundTruth, ...]:
    """Parse a YOLO label file: lines ``class x y width height``, or ``class`` and polygon corners.

    Args:
        text: the content of the file; empty: no object.
        names: the box classes by index; a class without a name is named by its number, such as ``class 7``.
        size: height and width of the image in pixels.
        where: the file, for messages.

    Raises:
        ConfigError: a line has neither of these forms, or a box lies outside the image.
    """
    height, width = size
    truths = []
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
                f"{where}:{number}: {line[:60]!r} is not a YOLO box; write: class x y width height, as "
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
        truths.append(GroundTruth(_name(names, int(index)), (box,)))
    return tuple(truths)


def coco_boxes(text: str, where: str) -> dict[str, tuple[GroundTruth, ...]]:
    """Parse a COCO instances file to boxes by ``file_name``, which may contain folders.

    Raises:
        ConfigError: the text is not a COCO instances file, or two images have the same name.
    """
    try:
        coco: Mapping[str, Any] = json.loads(text)
        names = {entry["id"]: str(entry["name"]) for entry in coco["categories"]}
        files = {entry["id"]: str(entry["file_name"]).replace("\\", "/") for entry in coco["images"]}
        truths: dict[str, list[GroundTruth]] = {name: [] for name in files.values()}
        twin = next((name for name, count in Counter(files.values()).items() if count > 1), None)
        for entry in coco["annotations"]:
            left, top, width, height = map(float, entry["bbox"])
            box = _checked(Box(left, top, left + width, top + height))
            truths[files[entry["image_id"]]].append(GroundTruth(names[entry["category_id"]], (box,)))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as reason:
        raise ConfigError(
            f"{where}: is not a COCO JSON with images, annotations and categories ({_why(reason)}); use a COCO "
            "instances file"
        ) from None
    if twin is not None:
        raise ConfigError(f"{where}: two images have the name {twin!r}; write file_name with its folder: a/{twin}")
    return {name: tuple(truths) for name, truths in truths.items()}


def coco_sizes(text: str) -> dict[str, tuple[int, int]]:
    """Return the declared (height, width) of each image of a COCO file, by the image's name."""
    entries = json.loads(text)["images"]
    sizes = {str(one["file_name"]).replace("\\", "/"): (one.get("height"), one.get("width")) for one in entries}
    return {
        name: (int(height), int(width))
        for name, (height, width) in sizes.items()
        if isinstance(height, int | float) and isinstance(width, int | float) and 0 < height < MAX_PIXELS > width > 0
    }


def at_size(
    truths: tuple[GroundTruth, ...], stated: tuple[int, int] | None, size: tuple[int, int], where: str
) -> tuple[GroundTruth, ...]:
    """Scale boxes to an image that may have been resized after its annotation.

    Args:
        truths: boxes in pixels of the annotated image.
        stated: declared height and width in the annotation; None: not declared.
        size: height and width of the image.
        where: the file, for messages.

    Raises:
        ConfigError: the sizes have different aspect ratios, or a box is outside the stated size.
    """
    if stated is None or stated == size:
        return truths
    (rows, columns), (height, width) = stated, size
    y, x = height / rows, width / columns
    if min(abs(height - rows * x), abs(width - columns * y)) > _ROUNDING:
        raise ConfigError(
            f"{where}: states {columns}x{rows} pixels, but the image has {width}x{height} pixels and another aspect "
            "ratio; correct the size, and the boxes if the image was cropped or rotated"
        )
    for truth in truths:
        for box in truth.boxes:
            if box.right > columns + _ROUNDING or box.bottom > rows + _ROUNDING:
                raise ConfigError(
                    f"{where}: a box ends at {box.right:g}, {box.bottom:g}, outside the stated {columns}x{rows} "
                    f"pixels, but the image has {width}x{height} pixels; correct the stated size"
                )
    return tuple(
        GroundTruth(truth.label, tuple(Box(b.left * x, b.top * y, b.right * x, b.bottom * y) for b in truth.boxes))
        for truth in truths
    )


def voc_boxes(text: str, where: str, size: tuple[int, int] | None = None) -> tuple[GroundTruth, ...]:
    """Parse a Pascal VOC annotation, whose corners count from 1 and belong to the object.

    Args:
        text: the content of the file.
        where: the file, for messages.
        size: height and width of the image; see ``at_size``. None: boxes are in pixels of the annotated image.

    Raises:
        ConfigError: the text is no VOC annotation, declares entities, or belongs to an image of another aspect ratio.
    """
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ConfigError(f"{where}: has a document type declaration, which VOC annotations do not need; remove it")
    try:
        truths = []
        root = ET.fromstring(text)  # noqa: S314 - entities are refused above
        for entry in root.iter("object"):
            left, top, right, bottom = (
                float(entry.findtext(f"bndbox/{side}") or "missing") for side in ("xmin", "ymin", "xmax", "ymax")
            )
            truths.append(GroundTruth(entry.findtext("name") or "", (_checked(Box(left - 1, top - 1, right, bottom)),)))
    except (ET.ParseError, ValueError, RecursionError) as reason:
        raise ConfigError(
            f"{where}: is not a Pascal VOC XML with object/bndbox ({reason}); correct or remove the file"
        ) from None
    return tuple(truths) if size is None else at_size(tuple(truths), _voc_size(root), size, where)


def _voc_size(root: ET.Element) -> tuple[int, int] | None:
    """Return the declared height and width; None if missing or zero, as some tools write."""
    try:
        height, width = (int(float(root.findtext(f"size/{side}") or "0")) for side in ("height", "width"))
    except (ValueError, OverflowError):
        return None
    return (height, width) if min(height, width) > 0 and max(height, width) < MAX_PIXELS else None


def boxes_of_class(
    truths: Sequence[GroundTruth], label: str, index: int, meaning: Mapping[str, Sequence[int]]
) -> tuple[Box, ...]:
    """Return the boxes of the explained class, or of a class that ``meaning`` maps to it.

    Args:
        truths: all boxes of the image.
        label: the name of the explained class; compared case-insensitively.
        index: the index of the explained class in the network's output.
        meaning: box class -> corresponding network classes.
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
    """Return why a JSON file was refused, for a message."""
    if isinstance(reason, RecursionError):
        return "nested too deep"
    if isinstance(reason, KeyError):
        return f"{reason} is missing"
    if "integer string conversion" in str(reason) or isinstance(reason, OverflowError):
        return "a number has too many digits"
    return str(reason)


def _checked(box: Box) -> Box:
    """Return ``box``; raises ``ValueError`` if its corners are implausible."""
    if not all(abs(side) <= MAX_PIXELS for side in box):  # also refuses NaN
        raise ValueError(
            f"a box from {box.left:g}, {box.top:g} to {box.right:g}, {box.bottom:g} exceeds {MAX_PIXELS:g} pixels"
        )
    if box.width < 0 or box.height < 0:
        raise ValueError(f"a box of {box.width:g} x {box.height:g} has a negative size")
    return box
