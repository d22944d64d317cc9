"""Data sets whose folders are divided already: ``train/CLASS``, ``val/CLASS``, ``test/CLASS``."""

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
_WORDS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("train", "training", "trn"), TRAINING),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing", "tst", "eval", "evaluation", "holdout"), TEST),
}
_FILLING: Final = frozenset({"set", "data", "dataset", "split", "images", "imgs", "img", "image", "pictures", "folder"})
_ARCHIVE_LEFTOVERS: Final = frozenset({"__macosx", "$recycle.bin", "system volume information"})
_DETECTION: Final = frozenset({"labels", "annotations", "masks", "ground_truth"})


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the class folders of a data set lie."""

    parts: Mapping[str, tuple[Path, ...]]
    """Part of the split -> folders of class folders; of a data set that is not divided: "" -> the folder."""
    left_out: tuple[str, ...] = ()
    """What is not used, a line each."""


def find_layout(folder: Path, suffixes: frozenset[str]) -> Layout:
    """Return whether a folder holds classes, or a split of classes.

    A folder called like a part of a split is one where it holds folders of pictures and no pictures itself: a class may
    be called ``train``.

    Args:
        folder: what the user named.
        suffixes: of pictures.

    Raises:
        ConfigError: the folders are called like a split, and cannot be used as one.
    """
    inner = {one: _Content.of(one, suffixes) for one in visible_folders(folder)}
    named = {one: part for one in inner if (part := part_called(one.name)) is not None}
    split = {one: part for one, part in named.items() if inner[one].classes and not inner[one].images}
    others = [one for one in inner if one not in named and (inner[one].images or inner[one].classes)]
    if not split:
        _check_unlabelled(folder, named, others, inner)
        _warn_of_parts(folder, {one: content for one, content in inner.items() if content.images or content.classes})
        return Layout({"": (folder,)})
    if set(split.values()) == {TRAINING} and len(split) == len(inner):
        raise ConfigError(
            f"{folder}: holds {_listed(split)} alone, which is called like a part of a split; its folders "
            f"({_some(inner[next(iter(split))].classes)}) are the classes: give {next(iter(split))}"
        )
    plain = [one.name for one in others if inner[one].images]
    repeated = sorted(set().union(*(inner[one].classes for one in split)) & {one.name for one in others})
    if len(set(split.values())) < 2:
        if not repeated and plain:
            return Layout({"": (folder,)})  # a class that is called so, with folders in it
        raise ConfigError(
            f"{folder}: {_listed(split)} is called like a part of a split and holds "
            f"{_some(inner[next(iter(split))].classes)}, beside {_listed(others) or 'nothing else'}; give a folder "
            "that holds the classes, or train and val (or test) with the same classes in each"
        )
    if TRAINING not in split.values():
        raise ConfigError(
            f"{folder}: holds {_listed(split)}, parts of a split, and none to learn from; add a folder train with the "
            "same classes, or give one of them alone: then it is divided anew"
        )
    _check_detection(folder, split, inner)
    homes = {one: _class_home(one, suffixes) for one in split}
    left = [f"{one}: is neither a part of the split nor needed" for one in others]
    left += [
        f"{one}: {inner[one].images} pictures without folders of classes, so nobody knows what they show"
        for one in named
        if one not in split and inner[one].images
    ]
    parts = {part: tuple(homes[one] for one in split if split[one] == part) for part in (TRAINING, VALIDATION, TEST)}
    return Layout({part: several for part, several in parts.items() if several}, tuple(left))


def parts_within(folder: Path, classes: Mapping[str, Sequence[Path]]) -> dict[str, list[str]] | None:
    """Return the part of each picture where class folders are split inside, as ``ok/train``, ``ok/val``; else None.

    Args:
        folder: what the user named.
        classes: the pictures of each class's folder.

    Raises:
        ConfigError: some pictures lie in folders called like a split, and others do not.
    """
    parts: dict[str, list[str]] = {}
    stray: Path | None = None
    for label, found in classes.items():
        for one in found:
            words = one.relative_to(folder / label).parts
            part = part_called(words[0]) if len(words) > 1 else None
            stray = stray or (one if part is None else None)
            parts.setdefault(label, []).append(part or "")
    every = {part for several in parts.values() for part in several if part}
    if TRAINING not in every or len(every) < 2:
        return None
    if stray is not None:
        raise ConfigError(
            f"{folder}: class folders hold a split (train, val or test), and {stray} lies in none of its parts; move "
            "it into one, or remove the folders of the split"
        )
    return parts


def _class_home(folder: Path, suffixes: frozenset[str]) -> Path:
    """Return where the class folders of a part lie: in it, or in the one folder in between, as ``train/images``."""
    inner = [one for one in visible_folders(folder) if any(_is_image(each, suffixes) for each in files_below(one))]
    if len(inner) == 1 and inner[0].name.casefold() in _FILLING and _Content.of(inner[0], suffixes).classes:
        return inner[0]
    return folder


def part_called(name: str) -> str | None:
    """Return the part of a split that a folder's name stands for, such as ``Train_set`` or ``val2017``; else None."""
    words = [word for word in re.split(r"[^a-z]+", name.casefold()) if word]
    joined = "".join(words)
    if joined.endswith("set") and joined[:-3] in _WORDS:
        return _WORDS[joined[:-3]]
    if joined in {"holdout", "heldout"}:
        return TEST
    parts = {_WORDS[word] for word in words if word in _WORDS}
    return parts.pop() if len(parts) == 1 and all(word in _WORDS or word in _FILLING for word in words) else None


def visible_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted; what programs leave hidden, and archivers leave over, is passed over.

    Raises:
        ConfigError: the folder may not be read.
    """
    try:
        return sorted(one for one in folder.iterdir() if one.is_dir() and not is_hidden(one.name))
    except OSError as reason:
        raise _refusal(reason) from None


def files_below(folder: Path) -> Iterator[Path]:
    """Give all files in a folder, at any depth.

    Raises:
        ConfigError: a folder may not be read: what lies in it would be lost in silence.
    """

    def refuse(reason: OSError) -> None:
        raise _refusal(reason)

    for home, folders, names in os.walk(folder, onerror=refuse):
        folders.sort()
        yield from (Path(home, name) for name in names)


def _refusal(reason: OSError) -> ConfigError:
    return ConfigError(f"{reason.filename}: cannot be read ({reason.strerror}); allow it, or move the folder away")


def is_hidden(name: str) -> bool:
    """Say whether a file or folder is a program's own, such as ``.ipynb_checkpoints``, ``._x.jpg`` or ``__MACOSX``."""
    return name.startswith(".") or name.casefold() in _ARCHIVE_LEFTOVERS


@dataclass(frozen=True, slots=True)
class _Content:
    """What lies in a folder."""

    images: int
    """Directly in it."""
    classes: frozenset[str]
    """Its folders that hold pictures, at any depth."""

    @classmethod
    def of(cls, folder: Path, suffixes: frozenset[str]) -> _Content:
        pictures = sum(_is_image(one, suffixes) for one in folder.iterdir())
        inner = (one for one in visible_folders(folder) if any(_is_image(each, suffixes) for each in files_below(one)))
        return cls(pictures, frozenset(one.name for one in inner))


def _is_image(place: Path, suffixes: frozenset[str]) -> bool:
    return place.suffix.lower() in suffixes and not is_hidden(place.name) and place.is_file()


def _check_unlabelled(
    folder: Path, named: Mapping[Path, str], others: Iterable[Path], inner: Mapping[Path, _Content]
) -> None:
    """Refuse ``train`` and ``test`` that hold pictures side by side: they are no classes."""
    if len(set(named.values())) > 1 and TRAINING in named.values() and not list(others):
        raise ConfigError(
            f"{folder}: {_listed(named)} are called like the parts of a split, and hold pictures without a folder for "
            "each class; put them into folders such as "
            f"{next(one for one in named if named[one] == TRAINING)}/ok, or give a CSV with the columns path,label"
        )
    wrapper = [one for one, content in inner.items() if content.images or content.classes]
    if len(wrapper) == 1 and not inner[wrapper[0]].images:
        _check_detection(folder, dict.fromkeys(wrapper, ""), inner)
        raise ConfigError(
            f"{folder}: one class ({wrapper[0].name}), and in it the folders {_some(inner[wrapper[0]].classes)}; if "
            f"those are the classes, give {wrapper[0]}"
        )


def _warn_of_parts(folder: Path, inner: Mapping[Path, _Content]) -> None:
    """Say where the folders look like parts of a data set (``fold_1``, ``line_a``) rather than classes."""
    several = [content.classes for content in inner.values()]
    if len(several) < 2 or any(content.images for content in inner.values()):
        return
    if len(shared := frozenset.intersection(*several)) > 1 and not any(map(part_called, shared)):
        log.warning(
            "%s: %s are taken for the classes, and each of them holds the folders %s; if those are the classes, write "
            "a CSV with the columns path,label, or give one of the folders",
            folder, _listed(inner), _some(shared),
        )  # fmt: skip


def _check_detection(folder: Path, split: Mapping[Path, str], inner: Mapping[Path, _Content]) -> None:
    """Refuse a data set for detectors: pictures in one folder, text files with boxes in another."""
    for one in split:
        beside = {each.name.casefold() for each in (*visible_folders(one), *inner)}
        pictures = [one / name for name in inner[one].classes if name.casefold() in {"images", "imgs", "jpegimages"}]
        if pictures and len(pictures) == len(inner[one].classes) and not visible_folders(pictures[0]):
            boxes = sorted(beside & _DETECTION)
            raise ConfigError(
                f"{folder}: {pictures[0]} holds the pictures of all classes"
                + (f", beside {boxes[0]}: a data set for detectors" if boxes else "")
                + "; a network of classes needs a folder for each class, or a CSV with the columns path,label"
            )


def _listed(folders: Iterable[Path]) -> str:
    return _some([one.name for one in folders])


def _some(names: Iterable[str]) -> str:
    several = sorted(names)
    return ", ".join(several[:4]) + (f" and {len(several) - 4} more" if len(several) > 4 else "")
