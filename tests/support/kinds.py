"""Example addresses for each kind of source and sink; a new kind needs no entry here."""

from __future__ import annotations

_EXAMPLES = {"VIDEO": "a.mp4", "FOLDER": "a.png", "BAG": "a.bag", "/": "clips/", "stills:": "stills:a/"}


def example_of(key: str) -> str:
    """Return an address whose kind has this key: a scheme (``x://``), a prefix (``x:``), a suffix or a word."""
    if key in _EXAMPLES:
        return _EXAMPLES[key]
    if key.endswith("://"):
        return f"{key}127.0.0.1:5555/a"
    return f"a{key}" if key.startswith(".") else key
