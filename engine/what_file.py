"""What a file is that was meant to hold weights: a failed download looks like weights until it is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Final

LOOKED_AT_BYTES: Final = 512
_SHOWN: Final = 40


def no_weights(begin: bytes) -> str | None:
    """Return what a file is, and the cure, by its first bytes; None where it may hold weights."""
    if not begin:
        return "is empty; fetch or save it again"
    if begin.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, and not the file it stands for; fetch that with `git lfs pull`"
    if begin.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return "is a web page, perhaps an error's: the download failed; fetch it again, from where the file itself lies"
    try:
        text = begin.decode("utf-8", "ignore" if len(begin) == LOOKED_AT_BYTES else "strict")
    except UnicodeDecodeError:
        return None
    if not all(one.isprintable() or one in "\t\r\n" for one in text):
        return None
    line = (text.strip().splitlines() or [""])[0]
    return f"is text, which begins {line[:_SHOWN]!r}; give the file of weights itself"


def begins_like_safetensors(begin: bytes) -> bool:
    """Say whether a file looks like safetensors, whatever its name: a length of eight bytes, then JSON."""
    return begin[8:9] == b"{"


def first_bytes(path: Path) -> bytes:
    """Return as much as is looked at."""
    with path.open("rb") as file:
        return file.read(LOOKED_AT_BYTES)
