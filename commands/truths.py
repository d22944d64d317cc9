"""Where objects lie in a picture, as the files say that the command line names."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from commands.terminal import text_of
from pipeline.config import read_yaml
from pipeline.errors import ConfigError
from pipeline.frames import Truth

Mask = npt.NDArray[np.bool_]
MaskOf = Callable[[Path, tuple[int, int]], Mask | None]
TruthsOf = Callable[[Path, tuple[int, int]], tuple[Truth, ...]]


@dataclass(frozen=True, slots=True)
class Known:
    """How to find what is known of a picture; None = nothing is."""

    truths_of: TruthsOf | None = None
    mask_of: MaskOf | None = None


def find_truths(boxes: Path | None, names: Path | None) -> TruthsOf | None:
    """Return how to find what a picture holds, by its path and (height, width); None where nobody knows."""
    from engine.evaluation.boxes import coco_boxes, voc_boxes, yolo_boxes
    from engine.networks import read_labels

    if boxes is None:
        return None
    if boxes.is_file():
        known = {Path(name).name: found for name, found in coco_boxes(text_of(boxes), str(boxes)).items()}
        return lambda path, _size: known.get(path.name, ())
    if not any(any(boxes.rglob(f"*{suffix}")) for suffix in (".txt", ".xml")):
        raise ConfigError(f"--boxes {str(boxes)!r}: holds no .txt or .xml; give a COCO JSON file or a folder of those")
    labels: tuple[str, ...] = ()
    if names is not None:
        listed = read_yaml(text_of(names), names.name).get("names") if names.suffix in {".yaml", ".yml"} else None
        ordered = [listed[key] for key in sorted(listed)] if isinstance(listed, dict) else listed
        labels = read_labels(names) if ordered is None else tuple(map(str, ordered))

    def find(path: Path, size: tuple[int, int]) -> tuple[Truth, ...]:
        folders = [path.parent, boxes] if path.resolve().is_relative_to(boxes.resolve()) else [boxes]
        for place in (folder / f"{path.stem}{suffix}" for folder in folders for suffix in (".xml", ".txt")):
            if place.is_file():
                text = text_of(place)
                return (
                    voc_boxes(text, str(place))
                    if place.suffix == ".xml"
                    else yolo_boxes(text, labels, size, str(place))
                )
        return ()

    return find


def find_masks(masks: Path | None, above: int) -> MaskOf | None:
    """Return how to find a picture's mask, by its path and (height, width); None where there are none.

    A mask has its picture's name, whatever its ending, and lies beside it, in the folder of masks, or there in a folder
    called like the picture's.
    """
    if masks is None:
        return None
    if not masks.is_dir():
        raise ConfigError(f"--masks {str(masks)!r}: is no folder; give one of masks named like the pictures")
    places: dict[tuple[str, str], list[Path]] = {}
    from stream.sources import IMAGE_SUFFIXES

    for one in sorted(masks.rglob("*")):
        if one.suffix.lower() in IMAGE_SUFFIXES:
            for folder in {one.parent.name, ""} if one.parent == masks else {one.parent.name}:
                places.setdefault((folder, one.stem), []).append(one)
    if not places:
        raise ConfigError(f"--masks {str(masks)!r}: holds no pictures; give a folder of masks named like the pictures")

    def find(path: Path, size: tuple[int, int]) -> Mask | None:
        for folder in (path.parent.name, ""):
            found = [one for one in places.get((folder, path.stem), ()) if one.resolve() != path.resolve()]
            if found:
                return _mask(found[0], size, above)
        return None

    return find


def _mask(path: Path, size: tuple[int, int], above: int) -> Mask:
    from stream.images import read_image

    image = read_image(path)
    if image.shape[:2] != size:
        (height, width), (rows, columns) = image.shape[:2], size
        raise ConfigError(f"{path}: is {height}x{width} and its picture {rows}x{columns}; give a mask of its size")
    found: Mask = image.max(2) > above
    return found


def read_paths(place: Path) -> list[Path]:
    """Return the pictures that a text file names, one path a line, as seen from its folder."""
    paths = [place.parent / line.strip() for line in text_of(place).splitlines() if line.strip()]
    if not paths:
        raise ConfigError(f"{place}: names no pictures; give one path a line")
    return paths


def read_meaning(class_map: Path | None) -> dict[str, list[int]]:
    """Read which classes of the network a box class stands for; of a file that holds several maps, the first."""
    if class_map is None:
        return {}
    try:
        told = json.loads(text_of(class_map))
        if all(isinstance(one, dict) for one in told.values()):
            told = next(iter(told.values()), {})
        return {str(name): [int(index) for index in indices] for name, indices in told.items()}
    except (ValueError, TypeError, AttributeError) as reason:
        raise ConfigError(f'--class-map {str(class_map)!r}: not of the form {{"car": [817]}} ({reason})') from None
