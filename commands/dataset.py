"""Lists the labelled images of a data set: a folder with one folder per class, or a CSV."""

from __future__ import annotations

import hashlib
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from commands.console import progress_bar
from commands.dataset_csv import GROUP, read_table
from commands.dataset_layout import (
    TEST,
    TRAINING,
    VALIDATION,
    files_below,
    find_layout,
    is_hidden,
    parts_within,
    visible_folders,
)
from commands.images import ReadImage, writable_names
from pipeline.errors import ConfigError, SourceError
from pipeline.frames import Image

if TYPE_CHECKING:
    from engine.finetuning.splits import Sample
    from engine.io.perceptual_hash import Spectrum

log = logging.getLogger("recipro-stream")

MAX_SUFFIXES: Final = 8
"""Maximum number of file suffixes in a warning."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The labelled images of a data set."""

    samples: list[Sample]
    grouped: bool
    """Whether the data set states which images show the same part."""
    divided: bool = False
    """Whether the data set has its own split."""
    left_out: tuple[str, ...] = ()
    """Messages about unused folders and files, one per item."""


def list_samples(data: Path, pictures: str | None, pattern: str | None, gap: int | None) -> Listing:
    """Return the labelled images of a folder of classes, a split of such folders, or a CSV.

    Args:
        data: the folder or the CSV.
        pictures: glob for the images in a class folder; None for all images.
        pattern: regular expression that finds the group in an image's path; with ``gap``, it finds the frame number.
        gap: maximum distance of frame numbers within a group.

    Raises:
        ConfigError: there are no images, fewer than two classes, an empty class, or ambiguous folders.
    """
    from engine.finetuning.given_split import check_given
    from engine.finetuning.splits import Sample, group_ids

    if gap is not None and pattern is None:
        raise ConfigError(r"--group-gap: needs the frame number in an image's path; add --group-pattern 'frame(\d+)'")
    parts: list[str] = []
    groups: list[str] = []
    left_out: tuple[str, ...] = ()
    if data.suffix.lower() in {".csv", ".tsv"}:
        paths, labels, groups = read_table(data)
        if any(groups) and pattern:
            raise ConfigError(f"--group-pattern {pattern!r}: {data} has a column {GROUP!r}; omit one of them")
    else:
        paths, labels, parts, left_out = _list_folder(data, pictures)
    names = sorted(set(labels))
    if len(names) < 2:
        raise ConfigError(
            f"{data}: has only one class ({', '.join(names)}), but a classifier needs at least two; add another class"
        )
    _warn_of_similar_labels(names)
    has_groups = any(groups)
    groups = (
        [group or path for group, path in zip(groups, paths, strict=True)]
        if has_groups
        else (group_ids(paths, pattern, gap))
    )
    parts = parts or [""] * len(paths)
    samples = [
        Sample(path, label, group, split=part)
        for path, label, group, part in zip(paths, labels, groups, parts, strict=True)
    ]
    if divided := any(parts):
        check_given(samples)
    return Listing(samples, grouped=has_groups or pattern is not None, divided=divided, left_out=left_out)


def _warn_of_similar_labels(names: Sequence[str]) -> None:
    """Log a warning about class names that differ only in capitals, spaces or punctuation."""
    first: dict[str, str] = {}
    for name in names:
        letters = re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold()) or name
        if (other := first.setdefault(letters, name)) != name:
            log.warning(
                "classes %r and %r differ in capitals, spaces or punctuation only, and count as two classes; if they "
                "are the same, give them one name", other, name,
            )  # fmt: skip


def _list_folder(folder: Path, pictures: str | None) -> tuple[list[str], list[str], list[str], tuple[str, ...]]:
    """Return the paths, labels and splits of the images in a folder, and messages about unused folders."""
    from engine.finetuning.splits import TEST as TEST_SPLIT
    from engine.finetuning.splits import TRAIN
    from engine.finetuning.splits import VALIDATION as VALIDATION_SPLIT
    from stream.sources import IMAGE_SUFFIXES

    if pictures and (Path(pictures).is_absolute() or ".." in Path(pictures).parts):
        raise ConfigError(f"--pictures {pictures!r}: leaves the class's folder; give a glob inside it, such as '*.jpg'")
    if not folder.is_dir():
        raise ConfigError(
            f"{str(folder)!r}: not a folder; give one with a folder of images for each class, or a .csv or .tsv file "
            "with the columns path,label"
        )
    layout = find_layout(folder, IMAGE_SUFFIXES)
    classes = [
        (part, label, images)
        for part, folders in layout.parts.items()
        for parent in folders
        for label, images in _class_folders(parent, pictures)
    ]
    paths = [str(path) for _, _, images in classes for path in images]
    labels = [label for _, label, images in classes for _ in images]
    parts = [part for part, _, images in classes for _ in images]
    if "" in layout.parts:
        within = parts_within(folder, {label: images for _, label, images in classes})
        parts = [part for of_class in within.values() for part in of_class] if within else parts
    validation = (
        VALIDATION_SPLIT if TEST in parts else TEST_SPLIT
    )  # without a test split, validation becomes the test split
    part_of = {"": "", TRAINING: TRAIN, VALIDATION: validation, TEST: TEST_SPLIT}
    return paths, labels, [part_of[part] for part in parts], layout.left_out


def _class_folders(folder: Path, pictures: str | None) -> Iterator[tuple[str, list[Path]]]:
    """Yield the name and the sorted images of each class in a folder."""
    from stream.sources import IMAGE_SUFFIXES

    class_folders = visible_folders(folder)
    if not class_folders:
        raise ConfigError(
            f"{folder}: contains no folders; put the images of each class into a folder with the class's name"
        )
    other: Counter[str] = Counter()
    for class_folder in class_folders:
        files = [
            path
            for path in (class_folder.glob(pictures) if pictures else files_below(class_folder))
            if not any(is_hidden(word) for word in path.relative_to(class_folder).parts) and path.is_file()
        ]
        images = writable_names(sorted(path for path in files if path.suffix.lower() in IMAGE_SUFFIXES))
        if not images:
            condition = f" like {pictures!r}" if pictures else ""
            raise ConfigError(
                f"class {class_folder.name!r}: {class_folder} contains no images{condition}; add some, or remove the "
                "folder"
            )
        other.update(path.suffix.lower() or path.name for path in files if path.suffix.lower() not in IMAGE_SUFFIXES)
        _check_duplicates(class_folder.name, images)
        yield class_folder.name, images
    outside = sum(path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir())
    if outside:
        log.warning("%s: %d images outside the class folders are left out", folder, outside)
    if other:
        counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(other.items())[:MAX_SUFFIXES])
        log.warning("%s: files that are not images are left out: %s", folder, counts)


def _check_duplicates(label: str, images: Sequence[Path]) -> None:
    """Raise ``ConfigError`` if two images have the same stem, such as a photo and its mask."""
    counts = Counter(path.with_suffix("") for path in images)
    repeated = next((stem for stem, count in counts.items() if count > 1), None)
    if repeated is not None:
        both = " and ".join(path.name for path in images if path.with_suffix("") == repeated)
        raise ConfigError(
            f"class {label!r}: {both} have the same name; select the images with a glob, such as "
            f"--pictures '*{images[0].suffix}'"
        )


def drop_unreadable(samples: Sequence[Sample], read: ReadImage) -> tuple[list[Sample], dict[str, Spectrum], list[str]]:
    """Decode all images; return the readable samples with digests, their spectra by path, and the error messages.

    Raises:
        ConfigError: no image of a class can be decoded.
    """
    from engine.io.perceptual_hash import spectrum_of

    readable: list[Sample] = []
    errors: list[str] = []
    spectra: dict[str, Spectrum] = {}
    last_error: dict[str, str] = {}
    with progress_bar() as progress:
        for sample in progress.track(samples, description="reading images"):
            try:
                image = read(Path(sample.path))
            except SourceError as reason:
                errors.append(str(reason))
                last_error[sample.label] = str(reason)
            else:
                readable.append(replace(sample, digest=_digest(image)))
                spectra[sample.path] = spectrum_of(image)
    if blank := sum(not sample.digest for sample in readable):
        log.warning("%d images have a single colour, and show nothing", blank)
    for label in sorted({sample.label for sample in samples} - {sample.label for sample in readable}):
        raise ConfigError(f"class {label!r}: none of its images can be decoded; the last error: {last_error[label]}")
    return readable, spectra, errors


def _digest(image: Image) -> str:
    """Return a digest of the pixels, independent of the file format; empty for an image of a single colour.

    An image of a single colour shows no part, so two equal images of this kind must not merge their groups.
    """
    if (image == image[0, 0]).all():
        return ""
    size = "x".join(map(str, image.shape)).encode()
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8, person=size[:16]).hexdigest()
