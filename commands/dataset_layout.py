"""Finds the layout of a data set: class folders, or a split such as ``train/CLASS``, ``val/CLASS``, ``test/CLASS``."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.errors import ConfigError

log = logging.getLogger(__name__)

TRAINING, VALIDATION, TEST = "training", "validation", "test"
_SPLIT_WORDS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("train", "training", "trn"), TRAINING),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing", "tst", "eval", "evaluation", "holdout"), TEST),
}
_NEUTRAL_WORDS: Final = frozenset({
    "set", "data", "dataset", "split", "images", "imgs", "img", "image", "pictures", "folder",
})  # fmt: skip
_ARCHIVE_LEFTOVERS: Final = frozenset({"__macosx", "$recycle.bin", "system volume information"})
_DETECTION_FOLDERS: Final = frozenset({"labels", "annotations", "masks", "ground_truth"})
_IMAGE_FOLDERS: Final = frozenset({"images", "imgs", "jpegimages"})
_MAX_NAMED: Final = 4


@dataclass(frozen=True, slots=True)
class Layout:
    """The folders that contain the class folders of a data set."""

    parts: Mapping[str, tuple[Path, ...]]
    """Parents of the class folders, by split; without a split, the only key is ""."""
    left_out: tuple[str, ...] = ()
    """Messages about unused folders, one per folder."""


def find_layout(folder: Path, suffixes: frozenset[str]) -> Layout:
    """Return the layout of a folder: class folders, or a split into parts with class folders.

    A folder named like a split, such as ``train``, can also be a class. It counts as a split only if it contains
    folders of images and no images directly.

    Args:
        folder: the folder of the data set.
        suffixes: suffixes of image files, such as ``.jpg``.

    Raises:
        ConfigError: folders have names of a split, but cannot be used as a split.
    """
    contents = {path: _Content.of(path, suffixes) for path in visible_folders(folder)}
    named = {path: part for path in contents if (part := part_called(path.name)) is not None}
    split = {path: part for path, part in named.items() if contents[path].classes and not contents[path].images}
    others = [path for path in contents if path not in named and (contents[path].images or contents[path].classes)]
    if not split:
        _check_unlabelled(folder, named, others, contents)
        _warn_of_parts(
            folder, {path: content for path, content in contents.items() if content.images or content.classes}
        )
        return Layout({"": (folder,)})
    if set(split.values()) == {TRAINING} and len(split) == len(contents):
        raise ConfigError(
            f"{folder}: contains only {_listed(split)}, which is the name of a split; the folders in it "
            f"({_some(contents[next(iter(split))].classes)}) are the classes: give {next(iter(split))}"
        )
    if _is_class_with_folders(split, others, contents):
        return Layout({"": (folder,)})
    _check_split(folder, split, others, contents)
    class_parents = {path: _class_parent(path, suffixes) for path in split}
    left_out = [f"{path}: is not part of a split, and is not used" for path in others]
    left_out += [
        f"{path}: {contents[path].images} images without class folders, so their classes are unknown"
        for path in named
        if path not in split and contents[path].images
    ]
    parts = {
        part: tuple(class_parents[path] for path in split if split[path] == part)
        for part in (TRAINING, VALIDATION, TEST)
    }
    return Layout({part: paths for part, paths in parts.items() if paths}, tuple(left_out))


def _is_class_with_folders(
    split: Mapping[Path, str], others: Sequence[Path], contents: Mapping[Path, _Content]
) -> bool:
    """Return whether the only folder named like a split is in fact a class with subfolders."""
    if len(set(split.values())) > 1:
        return False
    return any(contents[path].images for path in others) and not _repeated_classes(split, others, contents)


def _repeated_classes(split: Mapping[Path, str], others: Sequence[Path], contents: Mapping[Path, _Content]) -> set[str]:
    return set().union(*(contents[path].classes for path in split)) & {path.name for path in others}


def _check_split(
    folder: Path, split: Mapping[Path, str], others: Sequence[Path], contents: Mapping[Path, _Content]
) -> None:
    """Raise ``ConfigError`` for a single split, a missing training split, or a data set for object detection."""
    if len(set(split.values())) < 2:
        beside = f"beside it are {_listed(others)}" if others else "beside it is no other folder"
        raise ConfigError(
            f"{folder}: {_listed(split)} has the name of a split and contains "
            f"{_some(contents[next(iter(split))].classes)}, and {beside}; give a folder "
            "of classes, or a folder with train and val (or test), each with the same classes"
        )
    if TRAINING not in split.values():
        raise ConfigError(
            f"{folder}: has the splits {_listed(split)}, but no training split; add a folder train with the "
            "same classes, or give only one of these folders, which is then split automatically"
        )
    _check_detection(folder, split, contents)


def parts_within(folder: Path, classes: Mapping[str, Sequence[Path]]) -> dict[str, list[str]] | None:
    """Return the splits of each class's images if class folders contain a split (``ok/train``, ``ok/val``), else None.

    Args:
        folder: the folder of the data set.
        classes: the images of each class folder.

    Raises:
        ConfigError: only some of the images are in folders named like a split.
    """
    parts: dict[str, list[str]] = {}
    outside: Path | None = None
    for label, images in classes.items():
        for path in images:
            words = path.relative_to(folder / label).parts
            part = part_called(words[0]) if len(words) > 1 else None
            outside = outside or (path if part is None else None)
            parts.setdefault(label, []).append(part or "")
    present = {part for of_class in parts.values() for part in of_class if part}
    if TRAINING not in present or len(present) < 2:
        return None
    if outside is not None:
        raise ConfigError(
            f"{folder}: class folders contain a split (train, val or test), but {outside} is in none of these "
            "folders; move it into one of them, or remove these folders"
        )
    return parts


def _class_parent(folder: Path, suffixes: frozenset[str]) -> Path:
    """Return the parent of a split's class folders: the split's folder, or its only subfolder (``train/images``)."""
    inner = [path for path in visible_folders(folder) if _has_images(path, suffixes)]
    if len(inner) == 1 and inner[0].name.casefold() in _NEUTRAL_WORDS and _Content.of(inner[0], suffixes).classes:
        return inner[0]
    return folder


def part_called(name: str) -> str | None:
    """Return the split for a folder's name, such as ``Train_set`` or ``val2017``; None for other names."""
    words = [word for word in re.split(r"[^a-z]+", name.casefold()) if word]
    joined = "".join(words)
    if joined.endswith("set") and joined[:-3] in _SPLIT_WORDS:
        return _SPLIT_WORDS[joined[:-3]]
    if joined in {"holdout", "heldout"}:
        return TEST
    parts = {_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS}
    known = all(word in _SPLIT_WORDS or word in _NEUTRAL_WORDS for word in words)
    return parts.pop() if len(parts) == 1 and known else None


def visible_folders(folder: Path) -> list[Path]:
    """Return the sorted subfolders of a folder, without hidden folders and leftovers of archive programs.

    Raises:
        ConfigError: the folder cannot be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))
    except OSError as reason:
        raise _unreadable(reason) from None


def files_below(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder, recursively.

    Raises:
        ConfigError: a subfolder cannot be read.
    """

    def raise_unreadable(reason: OSError) -> None:
        raise _unreadable(reason)

    for parent, folders, names in os.walk(folder, onerror=raise_unreadable):
        folders.sort()
        yield from (Path(parent, name) for name in names)


def _unreadable(reason: OSError) -> ConfigError:
    return ConfigError(
        f"{reason.filename}: cannot be read ({reason.strerror}); change its permissions, or move the folder away"
    )


def is_hidden(name: str) -> bool:
    """Return whether a name is hidden or a leftover of an archive program, such as ``._x.jpg`` or ``__MACOSX``."""
    return name.startswith(".") or name.casefold() in _ARCHIVE_LEFTOVERS


@dataclass(frozen=True, slots=True)
class _Content:
    """Summary of a folder's content."""

    images: int
    """Number of images directly in the folder."""
    classes: frozenset[str]
    """Names of the subfolders that contain images at any depth."""

    @classmethod
    def of(cls, folder: Path, suffixes: frozenset[str]) -> _Content:
        images = sum(_is_image(path, suffixes) for path in folder.iterdir())
        return cls(images, frozenset(path.name for path in visible_folders(folder) if _has_images(path, suffixes)))


def _has_images(folder: Path, suffixes: frozenset[str]) -> bool:
    return any(_is_image(path, suffixes) for path in files_below(folder))


def _is_image(path: Path, suffixes: frozenset[str]) -> bool:
    return path.suffix.lower() in suffixes and not is_hidden(path.name) and path.is_file()


def _check_unlabelled(
    folder: Path, named: Mapping[Path, str], others: Iterable[Path], contents: Mapping[Path, _Content]
) -> None:
    """Raise ``ConfigError`` for splits without class folders, and for a single class."""
    if len(set(named.values())) > 1 and TRAINING in named.values() and not list(others):
        training = next(path for path in named if named[path] == TRAINING)
        raise ConfigError(
            f"{folder}: {_listed(named)} have the names of splits, and contain images without class folders; "
            f"put the images into folders such as {training}/ok, or give a CSV with the columns path,label"
        )
    used = [path for path, content in contents.items() if content.images or content.classes]
    if len(used) == 1 and not contents[used[0]].images:
        _check_detection(folder, dict.fromkeys(used, ""), contents)
        raise ConfigError(
            f"{folder}: one class ({used[0].name}), and in it the folders {_some(contents[used[0]].classes)}; if "
            f"those are the classes, give {used[0]}"
        )


def _warn_of_parts(folder: Path, contents: Mapping[Path, _Content]) -> None:
    """Log a warning if the folders look like parts of a data set (``fold_1``, ``line_a``) and not like classes."""
    classes = [content.classes for content in contents.values()]
    if len(classes) < 2 or any(content.images for content in contents.values()):
        return
    if len(shared := frozenset.intersection(*classes)) > 1 and not any(map(part_called, shared)):
        log.warning(
            "%s: %s are used as the classes, and each of them contains the folders %s; if those are the classes, write "
            "a CSV with the columns path,label, or give one of the folders",
            folder, _listed(contents), _some(shared),
        )  # fmt: skip


def _check_detection(folder: Path, split: Mapping[Path, str], contents: Mapping[Path, _Content]) -> None:
    """Raise ``ConfigError`` for a data set for object detection: images in one folder, boxes in another."""
    for part in split:
        siblings = {path.name.casefold() for path in (*visible_folders(part), *contents)}
        image_folders = [part / name for name in contents[part].classes if name.casefold() in _IMAGE_FOLDERS]
        if (
            image_folders
            and len(image_folders) == len(contents[part].classes)
            and not visible_folders(image_folders[0])
        ):
            annotations = sorted(siblings & _DETECTION_FOLDERS)
            raise ConfigError(
                f"{folder}: {image_folders[0]} contains the images of all classes"
                + (f", beside {annotations[0]}: a data set for object detection" if annotations else "")
                + "; a classifier needs a folder for each class, or a CSV with the columns path,label"
            )


def _listed(folders: Iterable[Path]) -> str:
    return _some([folder.name for folder in folders])


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _MAX_NAMED} more" if len(ordered) > _MAX_NAMED else ""
    return ", ".join(ordered[:_MAX_NAMED]) + more
