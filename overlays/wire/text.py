"""Text for JSON and UTF-8 from file names, which may hold bytes that cannot be decoded. Pure."""

from __future__ import annotations


def replace_undecodable(text: str) -> str:
    """Return ``text`` in a form that UTF-8 can encode: an undecodable byte of a file name becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def escaped(path: str) -> str:
    """Return a path in a form that UTF-8 can encode: undecodable bytes are escaped, so that names stay distinct."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")
