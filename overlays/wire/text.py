"""Converts file names with undecodable bytes to text for UTF-8 and JSON."""

from __future__ import annotations


def replace_undecodable(text: str) -> str:
    """Return ``text`` with each undecodable byte of a file name replaced by a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def escaped(path: str) -> str:
    """Return a path with each undecodable byte escaped by a backslash, so that different paths stay different."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")
