"""Reads the ground truth of an evaluation from files: boxes, masks and class maps."""

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
    """Functions that look up the boxes and the mask of an image; None where the data set has none."""

    place_of: Callable[[Path], Path | None] | None = None
    """Returns the annotation file of an image, or the image's key in a common file; None without annotations."""
    truths_of: BoxLookup | None = None
    mask_of: MaskLookup | None = None
    apart: bool = True
    """Whether each image has its own annotation file; if False, one file contains all annotations."""

    def file_of(self, image_path: Path) -> Path | None:
        """Return the image's own annotation file; None if there is none."""
        return self.place_of(image_path) if self.place_of and self.apart else None

    def check(self, option: str, images: Sequence[Path]) -> None:
        """Check that at least one image is annotated and that no annotation belongs to two images.

        Args:
            option: the command line option of the annotations, for messages.
            images: the images to evaluate.

        Raises:
            ConfigError: the check failed.
        """
        if self.place_of is None:
            return
        first: dict[Path, Path] = {}
        for image in images:
            if (annotation := self.place_of(image)) is None:
                continue
            other = first.setdefault(annotation, image)
            if other.resolve() != image.resolve():
                raise ConfigError(
                    f"{option}: {annotation} matches both {other} and {image}; evaluate one of their folders at "
                    "a time, or move the annotation into a folder named like the folder of its image"
                )
        if not first:
            raise ConfigError(
                f"{option}: no annotation for any of the {len(images)} images, such as {images[0]}; give annotations "
                "with the names of the images"
            )


def load_boxes(boxes: Path, names: Path | None) -> Annotations:
    """Return annotations that look up the boxes of an image by its path and its size (height, width) in pixels.

    Args:
        boxes: a COCO JSON file, or a folder of YOLO or VOC files.
        names: the class names of YOLO files; see ``read_box_names``.

    Raises:
        ConfigError: the files are not COCO, YOLO or VOC annotations.
    """
    if boxes.is_file():
        return _of_coco(boxes)
    if not any(any(boxes.rglob(f"*{suffix}")) for suffix in (".txt", ".xml")):
        raise ConfigError(
            f"--boxes {str(boxes)!r}: contains no .txt or .xml; give a COCO JSON file or a folder of YOLO or VOC files"
        )
    return _of_folder(boxes, read_box_names(names))


def read_box_names(path: Path | None) -> dict[int, str]:
    """Return the box classes by index, from a data set's YAML or a text file with one name per line.

    Raises:
        ConfigError: the YAML's key ``names`` is not a list of names or a map of integers to names.
    """
    from engine.models.labels import read_labels

    if path is None:
        return {}
    if path.suffix.lower() not in {".yaml", ".yml"}:
        return dict(enumerate(read_labels(path)))
    listed = read_yaml(read_text_file(path), str(path)).get("names")
    if isinstance(listed, list):
        listed = dict(enumerate(listed))
    if not isinstance(listed, dict) or not listed:
        raise ConfigError(f"{path}: has no list 'names'; give names: [car, bus], or a text file with a name per line")
    names: dict[int, str] = {}
    for key, name in listed.items():
        index = int(key) if isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 10 else key
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise ConfigError(
                f"{path}: names: {str(key)[:40]!r} is not a class index; write integers, "
                "such as 0: car, or a list of names"
            )
        if index in names:
            raise ConfigError(f"{path}: names: class {index} has two names; remove one of them")
        if name is None or isinstance(name, dict | list | bool):
            raise ConfigError(
                f"{path}: names: class {index} has the name {name!r}, which is not text; put it in quotes"
            )
        names[index] = str(name)
    return names


def _of_coco(boxes: Path) -> Annotations:
    """Look up an image by its path in the JSON, or by its file name if only one entry has that name."""
    from engine.evaluation.boxes import at_size, coco_boxes, coco_sizes

    text = read_text_file(boxes)
    by_path = {PurePosixPath(name): truths for name, truths in coco_boxes(text, str(boxes)).items()}
    sizes = {PurePosixPath(name): size for name, size in coco_sizes(text).items()}
    by_name: dict[str, list[PurePosixPath]] = {}
    for entry in by_path:
        by_name.setdefault(entry.name, []).append(entry)

    def entry_of(path: Path) -> PurePosixPath | None:
        several, parts = by_name.get(path.name, []), path.resolve().parts
        exact = [entry for entry in several if parts[-len(entry.parts) :] == entry.parts]
        if not exact and len(several) > 1:
            raise ConfigError(
                f"--boxes {str(boxes)!r}: {path} matches both {several[0]} and {several[1]}; put the images "
                "into the folders that the JSON names"
            )
        return max(exact or several, key=lambda entry: len(entry.parts), default=None)

    def truths_of(path: Path, size: tuple[int, int]) -> tuple[GroundTruth, ...]:
        entry = entry_of(path)
        return () if entry is None else at_size(by_path[entry], sizes.get(entry), size, f"{boxes}: {entry}")

    return Annotations(lambda path: None if (entry := entry_of(path)) is None else Path(entry), truths_of, apart=False)


def _of_folder(boxes: Path, labels: dict[int, str]) -> Annotations:
    """Look up a file beside the image, in the subfolder of ``boxes`` named like the image's folder, or in ``boxes``."""
    from engine.evaluation.boxes import voc_boxes, yolo_boxes

    def place_of(path: Path) -> Path | None:
        beside = [path.parent] if path.resolve().is_relative_to(boxes.resolve()) else []
        folders = [*beside, boxes / path.parent.name, boxes]
        places = (folder / f"{path.stem}{suffix}" for folder in folders for suffix in (".xml", ".txt"))
        return next((candidate for candidate in places if candidate.is_file()), None)

    def truths_of(path: Path, size: tuple[int, int]) -> tuple[GroundTruth, ...]:
        if (annotation := place_of(path)) is None:
            return ()
        text = read_text_file(annotation)
        return (
            voc_boxes(text, str(annotation), size)
            if annotation.suffix == ".xml"
            else yolo_boxes(text, labels, size, str(annotation))
        )

    return Annotations(place_of, truths_of)


def load_masks(masks: Path, above: int) -> Annotations:
    """Return annotations that look up the mask of an image by its path and its size (height, width) in pixels.

    A mask has the stem of its image and any image suffix. It is in ``masks``, or in a subfolder named like the image's
    folder. The look-up returns a boolean array of shape (height, width).

    Args:
        masks: folder of the masks.
        above: mask pixels above this value (0 to 254) belong to the object.

    Raises:
        ConfigError: ``masks`` is not a folder, or contains no images.
    """
    if not masks.is_dir():
        raise ConfigError(f"--masks {str(masks)!r}: not a folder; give a folder of masks named like the images")
    places: dict[tuple[str, str], list[Path]] = {}
    from stream.sources import IMAGE_SUFFIXES

    for file in sorted(masks.rglob("*")):
        if file.suffix.lower() in IMAGE_SUFFIXES:
            for folder in {file.parent.name, ""} if file.parent == masks else {file.parent.name}:
                places.setdefault((folder, file.stem), []).append(file)
    if not places:
        raise ConfigError(f"--masks {str(masks)!r}: contains no images; give a folder of masks named like the images")

    def place_of(path: Path) -> Path | None:
        for folder in (path.parent.name, ""):
            candidates = [mask for mask in places.get((folder, path.stem), ()) if mask.resolve() != path.resolve()]
            if candidates:
                return candidates[0]
        return None

    def mask_of(path: Path, size: tuple[int, int]) -> Mask | None:
        annotation = place_of(path)
        return None if annotation is None else _mask(annotation, size, above)

    return Annotations(place_of, mask_of=mask_of)


def _mask(path: Path, size: tuple[int, int], above: int) -> Mask:
    from stream.images import read_image

    image = read_image(path)
    if image.shape[:2] != size:
        (height, width), (rows, columns) = image.shape[:2], size
        raise ConfigError(
            f"{path}: the mask is {height}x{width} and its image {rows}x{columns}; give a mask of the image's size"
        )
    mask: Mask = image.max(2) > above
    return mask


def read_paths(path: Path) -> list[Path]:
    """Return the image paths in a text file with one path per line, relative to the file's folder.

    Raises:
        ConfigError: the file cannot be read, or lists no images.
    """
    lines = enumerate(read_text_file(path).splitlines(), 1)
    paths = [path_beside(path, number, line.strip()) for number, line in lines if line.strip()]
    if not paths:
        raise ConfigError(f"{path}: lists no images; write one path per line")
    return paths


def read_class_map(class_map: Path | None) -> dict[str, list[int]]:
    """Return the indices of the network's classes for each box class; of several maps in the file, use the first.

    Raises:
        ConfigError: the file is not a map of box classes to lists of integers.
    """
    if class_map is None:
        return {}
    where = f"--class-map {str(class_map)!r}"
    mapping = read_json(read_text_file(class_map), where)
    if isinstance(mapping, dict) and mapping and all(isinstance(value, dict) for value in mapping.values()):
        mapping = next(iter(mapping.values()))
    if not isinstance(mapping, dict) or not mapping:
        raise ConfigError(f'{where}: must map box classes to network classes, as in {{"car": [817]}}')
    for name, indices in mapping.items():
        if not isinstance(indices, list) or any(
            isinstance(value, bool) or not isinstance(value, int) for value in indices
        ):
            raise ConfigError(
                f"{where}: {name[:40]!r} maps to {json.dumps(indices)[:40]}; write a list of integer network classes, "
                "as in [817, 511]"
            )
    return {name: list(indices) for name, indices in mapping.items()}
