"""Finds bags by their paths, and the files of a bag folder; imports no bag library."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from pipeline.errors import SourceError
from stream.paths import kind_of, shown

_SUFFIXES: Final = (".mcap", ".db3", ".bag", ".bag.active")
_STORED: Final = (".mcap", ".db3")
_COMPRESSED: Final = (".zstd", ".zst")
_NUMBER: Final = re.compile(r"\d+")
_TOPIC: Final = re.compile(r"(?<=[?&])topic=[^&?]*")


def is_bag(path: str) -> bool:
    """Return whether ``path`` is a bag: a file with a bag's suffix, or a folder with ``metadata.yaml``."""
    if path.lower().endswith(_SUFFIXES):
        return kind_of(path) != "folder"
    return kind_of(path) == "folder" and (Path(path) / "metadata.yaml").is_file()


def with_quoted_topic(uri: str) -> str:
    """Percent-encode the slashes in ``?topic=/camera/image``, which a query cannot contain."""
    return _TOPIC.sub(lambda match: match[0].replace("/", "%2F"), uri)


def bag_files(path: str) -> list[Path]:
    """Return the files of a bag, in the order of their numbers.

    Raises:
        SourceError: a folder contains no readable file, or files that are compressed as a whole.
    """
    if kind_of(path) != "folder":
        return [Path(path)]
    files = [each for each in Path(path).iterdir() if each.is_file()]
    stored = [each for each in files if each.suffix.lower() in _STORED]
    packed = [each for each in files if each.suffix.lower() in _COMPRESSED]
    if packed:
        raise SourceError(
            f"{shown(path)}: its files are compressed as a whole ({shown(packed[0].name)}); decompress them: "
            f"zstd -d {shown(packed[0])}"
        )
    if not stored:
        raise SourceError(f"{shown(path)}: the bag folder contains no .db3 or .mcap file; check the path")
    return sorted(stored, key=lambda each: [int(number) for number in _NUMBER.findall(each.stem)])
