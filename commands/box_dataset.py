"""Lists the images of a data set with boxes: YOLO text with a data.yaml, COCO JSON, or Pascal VOC."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, Literal

from commands.annotations import read_box_names
from commands.console import read_text_file
from commands.dataset_csv import path_beside
from commands.dataset_layout import TEST, TRAINING, VALIDATION, files_below, part_called
from commands.images import writable_names
from pipeline.config_loader import read_yaml
from pipeline.errors import ConfigError
from pipeline.frames import GroundTruth

if TYPE_CHECKING:
    from engine.finetuning.splits import Sample

log = logging.getLogger("recipro-stream")

BACKGROUND: Final = "background"
"""Label of an image without boxes when the data set is split."""
MAX_CLASS_NAME: Final = 200
"""Maximum length of a class name in characters."""
_YOLO_KEYS: Final = {"train": TRAINING, "val": VALIDATION, "valid": VALIDATION, "test": TEST}
_JSON_HEAD: Final = 4096
_UNIT: Final = (1, 1)
"""Image size (height, width) for calls that need only the labels of boxes, not their positions."""

Kind = Literal["yolo", "coco", "voc"]
Truths = tuple[GroundTruth, ...]
ReadTruths = Callable[[str, tuple[int, int]], Truths]


@dataclass(frozen=True, slots=True)
class BoxListing:
    """The images of a data set with boxes."""

    samples: list[Sample]
    """The images; each has the label of its rarest class, or ``BACKGROUND``."""
    labels: tuple[str, ...]
    """The classes with at least one box, in the order of the annotations."""
    truths_of: ReadTruths
    """Returns the boxes of an image, given its path and its size (height, width) in pixels."""
    grouped: bool
    """Whether a group pattern states which images show the same part."""
    divided: bool
    """Whether the data set has its own split."""
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Listed:
    """Images in an annotated data set, before their boxes are read."""

    parts: Mapping[str, str]
    """The split of each image by its path; "" means no split."""
    truths_of: ReadTruths
    names: tuple[str, ...]
    """The classes in the order of the annotations; empty if the annotations define no order."""
    left_out: tuple[str, ...] = ()


def find_boxes(data: Path) -> tuple[Kind, Path] | None:
    """Return the kind of a data set with boxes and the file or folder that defines it; None if it has no boxes.

    Args:
        data: a data.yaml, a COCO JSON, or a folder.
    """
    if data.is_file():
        kinds: dict[str, Kind] = {".json": "coco", ".yaml": "yolo", ".yml": "yolo"}
        kind = kinds.get(data.suffix.lower())
        return None if kind is None else (kind, data)
    if not data.is_dir():
        return None
    for path in sorted((*data.glob("*.yaml"), *data.glob("*.yml"))):
        if "names" in read_yaml(read_text_file(path), str(path)):
            return "yolo", path
    jsons = [path for path in sorted((*data.glob("*.json"), *data.glob("*/*.json"))) if _is_coco(path)]
    if jsons:
        return "coco", jsons[0] if len(jsons) == 1 else data
    return ("voc", data) if any(data.rglob("*.xml")) else None


def _is_coco(path: Path) -> bool:
    """Return whether a JSON file looks like COCO instance annotations."""
    with path.open("rb") as file:
        head = file.read(_JSON_HEAD)
        file.seek(max(0, path.stat().st_size - _JSON_HEAD))
        head += file.read(_JSON_HEAD)
    return any(key in head for key in (b'"annotations"', b'"categories"', b'"bbox"'))


def list_boxes(kind: Kind, data: Path, pattern: str | None, gap: int | None) -> BoxListing:
    """Return the images of a data set with their classes.

    Args:
        kind: kind of the annotations.
        data: the file or folder that defines the data set; see ``find_boxes``.
        pattern: regular expression that finds the group in an image's path; None puts each image in its own group.
        gap: maximum distance of frame numbers within a group; the pattern then finds the frame number.

    Raises:
        ConfigError: there are no images or no boxes, or an annotation cannot be read.
    """
    from engine.finetuning.splits import Sample, group_ids

    if gap is not None and pattern is None:
        raise ConfigError(r"--group-gap: needs the frame number in an image's path; add --group-pattern 'frame(\d+)'")
    listed = {"yolo": _list_yolo, "coco": _list_coco, "voc": _list_voc}[kind](data)
    paths = list(listed.parts)
    if not paths:
        raise ConfigError(f"{data}: has no annotated images; put the images beside their annotations")
    classes = {path: [truth.label for truth in listed.truths_of(path, _UNIT)] for path in paths}
    counts = Counter(label for labels in classes.values() for label in labels)
    if not counts:
        raise ConfigError(f"{data}: none of its {len(paths)} images has a box; annotate some")
    _check_names(data, [*listed.names, *counts])
    for name in listed.names:
        if name not in counts:
            log.warning("class %r has no boxes in any image, and is left out of the detector", name)
    labels = tuple(name for name in listed.names if name in counts)
    labels += tuple(sorted(name for name in counts if name not in labels))
    known = set(listed.parts.values())
    samples = [
        Sample(path, _rarest(classes[path], counts), group, split=_split_of(listed.parts[path], known))
        for path, group in zip(paths, group_ids(paths, pattern, gap), strict=True)
    ]
    divided = any(listed.parts.values())
    truths_of = listed.truths_of if kind == "yolo" else _logs_scaling(listed.truths_of)
    return BoxListing(samples, labels, truths_of, pattern is not None, divided, listed.left_out)


def _check_names(data: Path, names: Collection[str]) -> None:
    """Raise ``ConfigError`` for class names that are empty, too long or not printable."""
    for name in names:
        if not name.strip() or not name.isprintable() or len(name) > MAX_CLASS_NAME:
            raise ConfigError(
                f"{data}: the class name {name[:MAX_CLASS_NAME]!r} is empty, has control characters or is longer than "
                f"{MAX_CLASS_NAME} characters; rename the class"
            )


def _logs_scaling(truths_of: ReadTruths) -> ReadTruths:
    """Wrap a reader of boxes so that it logs the first image whose boxes are scaled to its size."""
    first: list[str] = []

    def read(path: str, size: tuple[int, int]) -> Truths:
        truths = truths_of(path, size)
        if size != _UNIT and not first and truths != truths_of(path, _UNIT):
            first.append(path)
            log.info(
                "%s: was resized to %dx%d after it was annotated; its boxes are scaled accordingly, and those of all "
                "other resized images, too", path, size[1], size[0],
            )  # fmt: skip
        return truths

    return read


def _rarest(labels: Sequence[str], counts: Mapping[str, int]) -> str:
    return min(labels, key=lambda label: (counts[label], label), default=BACKGROUND)


def _split_of(part: str, parts: Collection[str]) -> str:
    """Return the training's split for a split of the data set; without a test split, validation becomes test."""
    from engine.finetuning.splits import TEST as TEST_SPLIT
    from engine.finetuning.splits import TRAIN
    from engine.finetuning.splits import VALIDATION as VALIDATION_SPLIT

    validation = VALIDATION_SPLIT if TEST in parts else TEST_SPLIT
    return {"": "", TRAINING: TRAIN, VALIDATION: validation, TEST: TEST_SPLIT}[part]


def with_common_labels(samples: Sequence[Sample], splits: int) -> list[Sample]:
    """Return the samples; replace each label with fewer groups than splits by the most common label.

    These labels only balance the splits; a rare class is not required in every split.
    """
    groups = Counter(label for label, _ in {(sample.label, sample.group) for sample in samples})
    common = max(groups, key=lambda label: (groups[label], label))
    return [sample if groups[sample.label] >= splits else replace(sample, label=common) for sample in samples]


def check_copies(samples: Sequence[Sample], truths_of: ReadTruths) -> None:
    """Check that copies of an image have the same number of objects of each class.

    Raises:
        ConfigError: two copies differ; the message names both images and their objects.
    """
    first_of: dict[str, Sample] = {}
    for sample in samples:
        original = first_of.setdefault(sample.digest, sample) if sample.digest else sample
        if original is sample:
            continue
        first, second = (
            Counter(truth.label for truth in truths_of(path, _UNIT) for _ in truth.boxes)
            for path in (original.path, sample.path)
        )
        if first != second:
            raise ConfigError(
                f"the same image has two annotations: {original.path} ({_described(first)}) and {sample.path} "
                f"({_described(second)}); remove the wrong copy"
            )


def _described(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {label}" for label, count in sorted(counts.items())) or "nothing"


def _images_below(folder: Path) -> Iterator[Path]:
    from stream.sources import IMAGE_SUFFIXES

    yield from writable_names(sorted(path for path in files_below(folder) if path.suffix.lower() in IMAGE_SUFFIXES))


def _list_yolo(data: Path) -> _Listed:
    """List the images of a data.yaml; if it names no images, list all images below its folder."""
    from engine.evaluation.boxes import yolo_boxes

    names = read_box_names(data)
    name, count = Counter(names.values()).most_common(1)[0]
    if count > 1:
        raise ConfigError(f"{data}: names: {count} classes are called {name!r}; give each its own name")
    parts: dict[str, str] = {}
    for path, part in _yolo_images(data):
        if str(path) in parts and parts[str(path)] != part:
            raise ConfigError(f"{data}: {path} is in two splits; list it in one of them")
        parts[str(path)] = part
    without = [path for path in parts if yolo_file(Path(path)) is None]
    labelled = {path: part for path, part in parts.items() if path not in set(without)}
    if parts and not labelled:
        first = next(iter(parts))
        raise ConfigError(
            f"{data}: none of the {len(parts)} images has a label file, such as {_yolo_places(Path(first))[0]}; give "
            "each image a .txt, empty if it shows no object"
        )

    def truths_of(path: str, size: tuple[int, int]) -> Truths:
        file = yolo_file(Path(path))
        truths = () if file is None else yolo_boxes(read_text_file(file), names, size, str(file))
        for truth in truths:
            if truth.label not in names.values():
                raise ConfigError(
                    f"{file}: {truth.label} has no name in {data}, which names {len(names)} classes from index 0; "
                    "add the name, or correct the index"
                )
        return truths

    left_out = [f"{path}: has no label file; give it an empty one if it shows no object" for path in without]
    return _Listed(labelled, truths_of, tuple(names.values()), tuple(left_out))


def _yolo_images(data: Path) -> Iterator[tuple[Path, str]]:
    """Yield the path and the split of each image of a data.yaml; "" means no split."""
    content = read_yaml(read_text_file(data), str(data))
    entries = {key: content[key] for key in _YOLO_KEYS if content.get(key)}
    if not entries:
        for path in _images_below(data.parent):
            yield path, ""
        return
    base = data.parent / str(content.get("path") or "")
    for key, entry in entries.items():
        for location in entry if isinstance(entry, list) else [entry]:
            for path in _located(data, key, str(location), base):
                yield path, _YOLO_KEYS[key] if len(entries) > 1 else ""


def _located(data: Path, key: str, location: str, base: Path) -> list[Path]:
    """Return the images of one entry of a data.yaml: a folder, or a text file of paths.

    Exported data sets often contain paths such as ``../train/images`` that should start at the file's folder.
    """
    inner = location.replace("\\", "/").lstrip("./")
    found = next((p for p in (base / location, data.parent / location, data.parent / inner) if p.exists()), None)
    if found is None:
        raise ConfigError(f"{data}: {key}: {location!r} does not exist; write the path relative to {base}")
    if found.is_dir():
        return list(_images_below(found))
    lines = enumerate(read_text_file(found).splitlines(), 1)
    return [path_beside(found, number, line.strip()) for number, line in lines if line.strip()]


def _yolo_places(image: Path) -> list[Path]:
    """Return the possible label files of an image: with its last folder ``images`` named ``labels``, or beside it."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[:-1][::-1].index("images")
        parts[last] = "labels"
    return [Path(*parts).with_suffix(".txt"), image.with_suffix(".txt")]


def yolo_file(image: Path) -> Path | None:
    """Return the label file of an image; None if there is no label file."""
    return next((place for place in _yolo_places(image) if place.is_file()), None)


def _list_coco(data: Path) -> _Listed:
    """List the images of a COCO JSON file, or of a folder with one such file per split."""
    from engine.evaluation.boxes import at_size, coco_boxes, coco_sizes

    files = [data] if data.is_file() else [path for path in sorted(data.glob("*/*.json")) if _is_coco(path)]
    parts: dict[str, str] = {}
    truths: dict[str, Truths] = {}
    stated: dict[str, tuple[str, tuple[int, int] | None]] = {}
    names: list[str] = []
    left_out: list[str] = []
    for file in files:
        text = read_text_file(file)
        part = part_called(file.parent.name) or part_called(file.stem) or "" if len(files) > 1 else ""
        below = _by_name(file.parent)
        listed = coco_boxes(text, str(file))
        sizes = coco_sizes(text)
        for name, boxes in listed.items():
            path = _find_image(file, name, below)
            if path is None:
                left_out.append(f"{name}: {file} lists it, but it does not exist")
                continue
            parts[str(path)], truths[str(path)] = part, boxes
            stated[str(path)] = (f"{file}: {name}", sizes.get(name))
        names += [name for name in _coco_names(text) if name not in names]
    if not parts:
        raise ConfigError(f"{data}: none of its images was found; put them into {files[0].parent} or a folder in it")

    def truths_of(path: str, size: tuple[int, int]) -> Truths:
        where, annotated = stated[path]
        return truths[path] if size == _UNIT else at_size(truths[path], annotated, size, where)

    return _Listed(parts, truths_of, tuple(names), tuple(left_out))


def _coco_names(text: str) -> list[str]:
    return [str(entry["name"]) for entry in json.loads(text)["categories"]]


def _by_name(folder: Path) -> dict[str, list[Path]]:
    """Return the images below a folder, grouped by file name."""
    found: dict[str, list[Path]] = {}
    for path in _images_below(folder):
        found.setdefault(path.name, []).append(path)
    return found


def _find_image(file: Path, name: str, below: Mapping[str, Sequence[Path]]) -> Path | None:
    """Return the image for a path in an annotation file; None if it does not exist."""
    if (direct := file.parent / name).is_file():
        return direct
    wanted = PurePosixPath(name).parts
    several = below.get(wanted[-1], ())
    exact = [path for path in several if path.parts[-len(wanted) :] == wanted]
    if len(exact) > 1 or (not exact and len(several) > 1):
        raise ConfigError(
            f"{file}: {name} matches both {several[0]} and {several[1]}; write file_name with the image's folder"
        )
    return next(iter(exact or several), None)


def _list_voc(data: Path) -> _Listed:
    """List the images below a folder that have a Pascal VOC file with the same stem."""
    from engine.evaluation.boxes import voc_boxes

    images = list(_images_below(data))
    annotations: dict[str, list[Path]] = {}
    for path in sorted(data.rglob("*.xml")):
        annotations.setdefault(path.stem, []).append(path)
    file_of: dict[str, Path] = {}
    for image in images:
        several = annotations.get(image.stem, [])
        best = max(several, key=lambda path: _common_parts(path, image), default=None)
        if best is not None:
            file_of[str(image)] = best
    owners = Counter(file_of.values())
    if twice := next((path for path, count in owners.items() if count > 1), None):
        both = [image for image, path in file_of.items() if path == twice]
        raise ConfigError(f"{twice}: matches both {both[0]} and {both[1]}; give every image its own annotation")
    parts = {image: _folder_part(Path(image), data) for image in file_of}
    parts = parts if len({part for part in parts.values() if part}) > 1 else dict.fromkeys(parts, "")
    left_out = tuple(f"{image}: has no annotation" for image in images if str(image) not in file_of)

    def truths_of(path: str, size: tuple[int, int]) -> Truths:
        return voc_boxes(read_text_file(file_of[path]), str(file_of[path]), None if size == _UNIT else size)

    return _Listed(parts, truths_of, (), left_out)


def _common_parts(first: Path, second: Path) -> int:
    return sum(a == b for a, b in zip(first.parts, second.parts, strict=False))


def _folder_part(image: Path, data: Path) -> str:
    """Return the split of an image from the folder names in its path; "" if none names a split."""
    words = image.relative_to(data).parts[:-1]
    return next((part for word in words if (part := part_called(word)) is not None), "")
