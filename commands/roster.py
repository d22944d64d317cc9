"""Labelled pictures as the command line names them: a folder of classes, or a CSV."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from commands.terminal import progress_bar, text_of
from pipeline.errors import ConfigError, SourceError
from pipeline.frames import Image

if TYPE_CHECKING:
    from engine.finetuning.roster import Sample

log = logging.getLogger("recipro-stream")

COLUMNS = ("path", "label")
GROUP = "group"


def listed(place: Path, pictures: str | None, pattern: str | None, gap: int | None) -> list[Sample]:
    """Return every labelled picture that a folder of classes or a CSV names.

    Raises:
        ConfigError: there is none, a class is empty or alone, or the files leave in doubt what is a picture.
    """
    from engine.finetuning.roster import Sample, sources_of

    if gap is not None and pattern is None:
        raise ConfigError(r"--source-gap: needs the number in a picture's name; add --source-pattern 'frame(\d+)'")
    if place.suffix.lower() == ".csv":
        paths, labels, groups = _of_csv(place)
        if groups and pattern:
            raise ConfigError(f"--source-pattern {pattern!r}: {place} has a column {GROUP!r}; leave one of them out")
    else:
        paths, labels = _of_folder(place, pictures)
        groups = []
    names = sorted(set(labels))
    if len(names) < 2:
        raise ConfigError(f"{place}: one class ({', '.join(names)}); a network tells two or more apart, add another")
    sources = groups or sources_of(paths, pattern, gap)
    return [Sample(*one) for one in zip(paths, labels, sources, strict=True)]


def _of_folder(folder: Path, pictures: str | None) -> tuple[list[str], list[str]]:
    from stream.sources import IMAGE_SUFFIXES

    if pictures and (Path(pictures).is_absolute() or ".." in Path(pictures).parts):
        raise ConfigError(f"--pictures {pictures!r}: leads out of a class's folder; give what lies in it, as '*.jpg'")
    if not folder.is_dir():
        raise ConfigError(f"{str(folder)!r}: is no folder; give one that holds a folder of pictures for each class")
    kinds = sorted(one for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))
    if not kinds:
        raise ConfigError(f"{folder}: holds no folders; put the pictures of each class into a folder of its name")
    paths: list[str] = []
    labels: list[str] = []
    for kind in kinds:
        every = kind.glob(pictures) if pictures else kind.rglob("*")
        found = sorted(one for one in every if one.is_file() and one.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            asked = f" like {pictures!r}" if pictures else ""
            raise ConfigError(f"class {kind.name!r}: {kind} holds no pictures{asked}; add some, or remove the folder")
        _check_twins(kind.name, found)
        paths += map(str, found)
        labels += [kind.name] * len(found)
    loose = sum(one.is_file() and one.suffix.lower() in IMAGE_SUFFIXES for one in folder.iterdir())
    if loose:
        log.warning("%s: %d pictures lie in no class's folder; left out", folder, loose)
    return paths, labels


def _check_twins(kind: str, found: Sequence[Path]) -> None:
    """Refuse a picture beside a mask of the same name: both would be learned."""
    counts = Counter(one.with_suffix("") for one in found)
    twin = next((stem for stem, count in counts.items() if count > 1), None)
    if twin is not None:
        both = " and ".join(one.name for one in found if one.with_suffix("") == twin)
        raise ConfigError(
            f"class {kind!r}: {both} have one name; say which are the pictures, such as --pictures '*{found[0].suffix}'"
        )


def _of_csv(place: Path) -> tuple[list[str], list[str], list[str]]:
    text = text_of(place).removeprefix("\ufeff")  # spreadsheets begin so
    first = text.partition("\n")[0]
    mark = max(",;\t", key=first.count)  # ... and where a comma is decimal, they put semicolons between columns
    rows = csv.DictReader(io.StringIO(text), delimiter=mark, skipinitialspace=True)
    columns = [name.strip() for name in rows.fieldnames or ()]
    rows.fieldnames = columns
    lacking = [name for name in COLUMNS if name not in columns]
    if lacking:
        raise ConfigError(
            f"{place}: its first line has no {' and no '.join(map(repr, lacking))}; it must name the columns "
            f"path, label and, where several pictures show one part, {GROUP}"
        )
    paths: list[str] = []
    labels: list[str] = []
    groups: list[str] = []
    for number, told in enumerate(rows, 2):
        row = {key: (value or "").strip() for key, value in told.items() if key}
        if not row["path"] or not row["label"]:
            raise ConfigError(f"{place}:{number}: path or label is empty; fill both in, or remove the line")
        paths.append(str(place.parent / row["path"]))
        labels.append(row["label"])
        if GROUP in columns:
            groups.append(row[GROUP] or paths[-1])
    if not paths:
        raise ConfigError(f"{place}: names no pictures; give one a line")
    return paths, labels, groups


def readable(samples: Sequence[Sample]) -> tuple[list[Sample], list[str]]:
    """Return the samples whose pictures decode, with digests, and a line on each that does not.

    Raises:
        ConfigError: a class has none left.
    """
    from stream.images import read_image

    good: list[Sample] = []
    bad: list[str] = []
    with progress_bar() as progress:
        for one in progress.track(samples, description="reading pictures"):
            try:
                image = read_image(Path(one.path))
            except SourceError as reason:
                bad.append(str(reason))
            else:
                good.append(replace(one, digest=_digest(image)))
    if blank := sum(not one.digest for one in good):
        log.warning("%d of the pictures have one colour all over, and show nothing", blank)
    for label in sorted({one.label for one in samples} - {one.label for one in good}):
        raise ConfigError(f"class {label!r}: none of its pictures decodes; the last: {bad[-1]}")
    return good, bad


def _digest(image: Image) -> str:
    """Return what only the same pixels have, whatever the file's format; empty where all pixels are alike.

    A picture of one colour shows no part: it ties together nothing that it lies among.
    """
    if (image == image[0, 0]).all():
        return ""
    size = "x".join(map(str, image.shape)).encode()
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8, person=size[:16]).hexdigest()
