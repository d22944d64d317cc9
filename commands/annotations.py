"""Where objects lie in a picture, as the files say that the command line names."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from commands.console import read_text_file
from commands.dataset_csv import path_beside
from commands.json_input import read_json
from pipeline.config_loader import read_yaml
from pipeline.errors import ConfigError
from pipeline.frames import GroundTruth

Mask = npt.NDArray[np.bool_]
MaskLookup = Callable[[Path, tuple[int, int]], Mask | None]
BoxLookup = Callable[[Path, tuple[int, int]], tuple[GroundTruth, ...]]


@dataclass(frozen=True, slots=True)
class Annotations:
    """How to find what is known of a picture; None = nothing is."""

    place_of: Callable[[Path], Path | None] | None = None
    """What a picture's truth is read from: a file, or its name in one. No two pictures share it."""
    truths_of: BoxLookup | None = None
    mask_of: MaskLookup | None = None
    apart: bool = True
    """Whether each picture's truth is a file of its own; otherwise one file holds all of them."""

    def file_of(self, picture: Path) -> Path | None:
        """Return the file that holds this picture's truth alone, if there is one."""
        return self.place_of(picture) if self.place_of and self.apart else None

    def check(self, option: str, pictures: Sequence[Path]) -> None:
        """Refuse truths of which no picture has one, and one that two pictures would be given.

        Raises:
            ConfigError: it names the pictures.
        """
        if self.place_of is None:
            return
        first: dict[Path, Path] = {}
        for one in pictures:
            if (place := self.place_of(one)) is None:
                continue
            other = first.setdefault(place, one)
            if other.resolve() != one.resolve():
                raise ConfigError(
                    f"{option}: {place} would be that of {other} and of {one}; measure one of their folders at a time, "
                    "or let it lie in a folder of its picture's name"
                )
        if not first:
            some = f"{pictures[0]}, for one," if len(pictures) == 1 else f"{pictures[0]}, the first of {len(pictures)},"
            raise ConfigError(f"{option}: knows none of the pictures; {some} is not in it: names must be the same")


def load_boxes(boxes: Path, names: Path | None) -> Annotations:
    """Return how to find what a picture holds, by its path and (height, width)."""
    if boxes.is_file():
        return _of_coco(boxes)
    if not any(any(boxes.rglob(f"*{suffix}")) for suffix in (".txt", ".xml")):
        raise ConfigError(f"--boxes {str(boxes)!r}: holds no .txt or .xml; give a COCO JSON file or a folder of those")
    return _of_folder(boxes, read_box_names(names))


def read_box_names(place: Path | None) -> dict[int, str]:
    """Return the names of box classes by their index, of a data set's YAML or of a text file, one a line.

    Raises:
        ConfigError: the YAML has no list of names, nor a map of whole numbers to names.
    """
    from engine.models.labels import read_labels

    if place is None:
        return {}
    if place.suffix.lower() not in {".yaml", ".yml"}:
        return dict(enumerate(read_labels(place)))
    listed = read_yaml(read_text_file(place), str(place)).get("names")
    if isinstance(listed, list):
        listed = dict(enumerate(listed))
    if not isinstance(listed, dict) or not listed:
        raise ConfigError(
            f"--box-names {str(place)!r}: has no list 'names'; give names: [car, bus], or one a line in a text"
        )
    found: dict[int, str] = {}
    for key, name in listed.items():
        index = int(key) if isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 10 else key
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise ConfigError(
                f"--box-names {str(place)!r}: names: {str(key)[:40]!r} is no class's number; write whole numbers, as "
                "in 0: car, or a list of names"
            )
        if index in found:
            raise ConfigError(f"--box-names {str(place)!r}: names: class {index} is named twice; leave one out")
        if name is None or isinstance(name, dict | list | bool):
            raise ConfigError(
                f"--box-names {str(place)!r}: names: class {index} is called {name!r}, which is no text; put its name "
                "in quotes"
            )
        found[index] = str(name)
    return found


def _of_coco(boxes: Path) -> Annotations:
    """Find a picture by its path as the JSON has it; by its name alone where the JSON knows only one of that name."""
    from engine.evaluation.boxes import coco_boxes

    found = {PurePosixPath(name): truths for name, truths in coco_boxes(read_text_file(boxes), str(boxes)).items()}
    by_name: dict[str, list[PurePosixPath]] = {}
    for entry in found:
        by_name.setdefault(entry.name, []).append(entry)

    def entry_of(path: Path) -> PurePosixPath | None:
        several, parts = by_name.get(path.name, []), path.resolve().parts
        exact = [entry for entry in several if parts[-len(entry.parts) :] == entry.parts]
        if not exact and len(several) > 1:
            raise ConfigError(
                f"--boxes {str(boxes)!r}: knows {several[0]} and {several[1]}, and {path} may be either; let pictures "
                "lie in folders as the JSON names them"
            )
        return max(exact or several, key=lambda entry: len(entry.parts), default=None)

    def truths_of(path: Path, _size: tuple[int, int]) -> tuple[GroundTruth, ...]:
        entry = entry_of(path)
        return () if entry is None else found[entry]

    return Annotations(lambda path: None if (entry := entry_of(path)) is None else Path(entry), truths_of, apart=False)


def _of_folder(boxes: Path, labels: dict[int, str]) -> Annotations:
    """Find a picture's file beside it, or in the folder of boxes, or there in a folder called like the picture's."""
    from engine.evaluation.boxes import voc_boxes, yolo_boxes

    def place_of(path: Path) -> Path | None:
        beside = [path.parent] if path.resolve().is_relative_to(boxes.resolve()) else []
        folders = [*beside, boxes / path.parent.name, boxes]
        places = (folder / f"{path.stem}{suffix}" for folder in folders for suffix in (".xml", ".txt"))
        return next((place for place in places if place.is_file()), None)

    def truths_of(path: Path, size: tuple[int, int]) -> tuple[GroundTruth, ...]:
        if (place := place_of(path)) is None:
            return ()
        text = read_text_file(place)
        return voc_boxes(text, str(place)) if place.suffix == ".xml" else yolo_boxes(text, labels, size, str(place))

    return Annotations(place_of, truths_of)


def load_masks(masks: Path, above: int) -> Annotations:
    """Return how to find a picture's mask, by its path and (height, width).

    A mask has its picture's name, whatever its ending, and lies beside it, in the folder of masks, or there in a folder
    called like the picture's.
    """
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

    def place_of(path: Path) -> Path | None:
        for folder in (path.parent.name, ""):
            found = [one for one in places.get((folder, path.stem), ()) if one.resolve() != path.resolve()]
            if found:
                return found[0]
        return None

    def mask_of(path: Path, size: tuple[int, int]) -> Mask | None:
        place = place_of(path)
        return None if place is None else _mask(place, size, above)

    return Annotations(place_of, mask_of=mask_of)


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
    lines = enumerate(read_text_file(place).splitlines(), 1)
    paths = [path_beside(place, number, line.strip()) for number, line in lines if line.strip()]
    if not paths:
        raise ConfigError(f"{place}: names no pictures; give one path a line")
    return paths


def read_class_map(class_map: Path | None) -> dict[str, list[int]]:
    """Read which classes of the network a box class stands for; of a file that holds several maps, the first."""
    if class_map is None:
        return {}
    where = f"--class-map {str(class_map)!r}"
    told = read_json(read_text_file(class_map), where)
    if isinstance(told, dict) and told and all(isinstance(one, dict) for one in told.values()):
        told = next(iter(told.values()))
    if not isinstance(told, dict) or not told:
        raise ConfigError(f'{where}: not of the form {{"car": [817]}}, box classes and the numbers of the network\'s')
    for name, indices in told.items():
        if not isinstance(indices, list) or any(isinstance(one, bool) or not isinstance(one, int) for one in indices):
            raise ConfigError(
                f"{where}: {name[:40]!r} stands for {json.dumps(indices)[:40]}; write a list of whole numbers, the "
                "network's classes, as in [817, 511]"
            )
    return {name: list(indices) for name, indices in told.items()}
