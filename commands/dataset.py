"""Labelled pictures as the command line names them: a folder of classes, or a CSV."""

from __future__ import annotations

import hashlib
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

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


@dataclass(frozen=True, slots=True)
class Listing:
    """Every labelled picture that was named."""

    samples: list[Sample]
    grouped: bool
    """Whether it is known which pictures show one part."""
    divided: bool = False
    """Whether the samples have their parts already."""
    left_out: tuple[str, ...] = ()
    """What is not used, a line each."""


def list_samples(place: Path, pictures: str | None, pattern: str | None, gap: int | None) -> Listing:
    """Return every labelled picture that a folder of classes, a split of them, or a CSV names.

    Raises:
        ConfigError: there is none, a class is empty or alone, or the files leave in doubt what is a picture or a class.
    """
    from engine.finetuning.given_split import check_given
    from engine.finetuning.splits import Sample, group_ids

    if gap is not None and pattern is None:
        raise ConfigError(r"--group-gap: needs the number in a picture's name; add --group-pattern 'frame(\d+)'")
    parts: list[str] = []
    groups: list[str] = []
    left: tuple[str, ...] = ()
    if place.suffix.lower() in {".csv", ".tsv"}:
        paths, labels, groups = read_table(place)
        if any(groups) and pattern:
            raise ConfigError(f"--group-pattern {pattern!r}: {place} has a column {GROUP!r}; leave one of them out")
    else:
        paths, labels, parts, left = _of_folder(place, pictures)
    names = sorted(set(labels))
    if len(names) < 2:
        raise ConfigError(f"{place}: one class ({', '.join(names)}); a network tells two or more apart, add another")
    _warn_of_twin_labels(names)
    filled = any(groups)
    sources = (
        [group or path for group, path in zip(groups, paths, strict=True)]
        if filled
        else (group_ids(paths, pattern, gap))
    )
    parts = parts or [""] * len(paths)
    samples = [
        Sample(path, label, source, split=part)
        for path, label, source, part in zip(paths, labels, sources, parts, strict=True)
    ]
    if divided := any(parts):
        check_given(samples)
    return Listing(samples, grouped=filled or pattern is not None, divided=divided, left_out=left)


def _warn_of_twin_labels(names: Sequence[str]) -> None:
    """Tell of two classes whose names a person takes for one."""
    first: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold()) or name
        if (other := first.setdefault(plain, name)) != name:
            log.warning(
                "classes %r and %r differ in capitals, spaces or signs alone, and are learned as two; if they are one, "
                "give them one name", other, name,
            )  # fmt: skip


def _of_folder(folder: Path, pictures: str | None) -> tuple[list[str], list[str], list[str], tuple[str, ...]]:
    """Return paths, labels and parts of the pictures in a folder, and what is left out of it."""
    from engine.finetuning.splits import TEST as HELD_OUT
    from engine.finetuning.splits import TRAIN
    from engine.finetuning.splits import VALIDATION as STOPPING
    from stream.sources import IMAGE_SUFFIXES

    if pictures and (Path(pictures).is_absolute() or ".." in Path(pictures).parts):
        raise ConfigError(f"--pictures {pictures!r}: leads out of a class's folder; give what lies in it, as '*.jpg'")
    if not folder.is_dir():
        raise ConfigError(
            f"{str(folder)!r}: is no folder; give one that holds a folder of pictures for each class, or a table with "
            "the columns path,label whose name ends in .csv or .tsv"
        )
    layout = find_layout(folder, IMAGE_SUFFIXES)
    classes = [
        (part, label, found)
        for part, homes in layout.parts.items()
        for home in homes
        for label, found in _class_folders(home, pictures)
    ]
    paths = [str(one) for _, _, found in classes for one in found]
    labels = [label for _, label, found in classes for _ in found]
    parts = [part for part, _, found in classes for _ in found]
    if "" in layout.parts:
        within = parts_within(folder, {label: found for _, label, found in classes})
        parts = [part for several in within.values() for part in several] if within else parts
    validation = STOPPING if TEST in parts else HELD_OUT  # one part has to examine what was learned
    part_of = {"": "", TRAINING: TRAIN, VALIDATION: validation, TEST: HELD_OUT}
    return paths, labels, [part_of[part] for part in parts], layout.left_out


def _class_folders(folder: Path, pictures: str | None) -> Iterator[tuple[str, list[Path]]]:
    """Give each class in a folder with its pictures."""
    from stream.sources import IMAGE_SUFFIXES

    kinds = visible_folders(folder)
    if not kinds:
        raise ConfigError(f"{folder}: holds no folders; put the pictures of each class into a folder of its name")
    other: Counter[str] = Counter()
    for kind in kinds:
        every = [
            one
            for one in (kind.glob(pictures) if pictures else files_below(kind))
            if not any(is_hidden(word) for word in one.relative_to(kind).parts) and one.is_file()
        ]
        found = writable_names(sorted(one for one in every if one.suffix.lower() in IMAGE_SUFFIXES))
        if not found:
            asked = f" like {pictures!r}" if pictures else ""
            raise ConfigError(f"class {kind.name!r}: {kind} holds no pictures{asked}; add some, or remove the folder")
        other.update(one.suffix.lower() or one.name for one in every if one.suffix.lower() not in IMAGE_SUFFIXES)
        _check_duplicates(kind.name, found)
        yield kind.name, found
    loose = sum(one.is_file() and one.suffix.lower() in IMAGE_SUFFIXES for one in folder.iterdir())
    if loose:
        log.warning("%s: %d pictures lie in no class's folder; left out", folder, loose)
    if other:
        several = ", ".join(f"{count} {suffix}" for suffix, count in sorted(other.items())[:8])
        log.warning("%s: files that are not read as pictures are left out: %s", folder, several)


def _check_duplicates(kind: str, found: Sequence[Path]) -> None:
    """Refuse a picture beside a mask of the same name: both would be learned."""
    counts = Counter(one.with_suffix("") for one in found)
    twin = next((stem for stem, count in counts.items() if count > 1), None)
    if twin is not None:
        both = " and ".join(one.name for one in found if one.with_suffix("") == twin)
        raise ConfigError(
            f"class {kind!r}: {both} have one name; say which are the pictures, such as --pictures '*{found[0].suffix}'"
        )


def drop_unreadable(samples: Sequence[Sample], read: ReadImage) -> tuple[list[Sample], dict[str, Spectrum], list[str]]:
    """Return the samples whose pictures decode, with digests; what their hashes are made of; a line on each other one.

    Raises:
        ConfigError: a class has none left.
    """
    from engine.io.perceptual_hash import spectrum_of

    good: list[Sample] = []
    bad: list[str] = []
    spectra: dict[str, Spectrum] = {}
    last: dict[str, str] = {}
    with progress_bar() as progress:
        for one in progress.track(samples, description="reading pictures"):
            try:
                image = read(Path(one.path))
            except SourceError as reason:
                bad.append(str(reason))
                last[one.label] = str(reason)
            else:
                good.append(replace(one, digest=_digest(image)))
                spectra[one.path] = spectrum_of(image)
    if blank := sum(not one.digest for one in good):
        log.warning("%d of the pictures have one colour all over, and show nothing", blank)
    for label in sorted({one.label for one in samples} - {one.label for one in good}):
        raise ConfigError(f"class {label!r}: none of its pictures decodes; the last: {last[label]}")
    return good, spectra, bad


def _digest(image: Image) -> str:
    """Return what only the same pixels have, whatever the file's format; empty where all pixels are alike.

    A picture of one colour shows no part: it ties together nothing that it lies among.
    """
    if (image == image[0, 0]).all():
        return ""
    size = "x".join(map(str, image.shape)).encode()
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8, person=size[:16]).hexdigest()
