"""Compares two configuration texts and returns a diff without credentials. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import NamedTuple

import yaml

from stream.redact import SECRET, redact

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/.*", re.DOTALL)


class _Span(NamedTuple):
    """A value with an address: its start and end offsets (end exclusive) in the text, and its replacement."""

    begin: int
    end: int
    text: str


def difference(before: str, after: str, name: str) -> str:
    """Return a unified diff of two texts, with redacted addresses.

    Args:
        before: the text of the running configuration.
        after: the text of the file.
        name: the name of the file.
    """
    lines = difflib.unified_diff(_lines(before), _lines(after), f"{name} (running)", name, lineterm="", n=1)
    return "\n".join(line.partition("\0")[0] for line in lines)


def _lines(text: str) -> list[str]:
    """Return each redacted line, followed by NUL and a hash of the original line.

    The hash makes two lines different if only their passwords differ.
    """
    return [f"{shown}\0{hash(line)}" for shown, line in zip(_redacted(text).split("\n"), text.split("\n"), strict=True)]


def _redacted(text: str) -> str:
    """Return a YAML text with redacted addresses.

    YAML values are tokenized, because a password can contain quotes, spaces, escapes and line breaks. For an address
    elsewhere (in a comment, or after a syntax error), the rest of the line is removed.
    """
    shown, position = "", 0
    for span in _addresses(text):
        shown += _without_addresses(text[position : span.begin]) + span.text
        position = span.end
    return shown + _without_addresses(text[position:])


def _addresses(text: str) -> Iterator[_Span]:
    try:
        for token in yaml.scan(text, yaml.SafeLoader):
            if isinstance(token, yaml.ScalarToken) and (":/" in token.value or "@" in token.value):
                begin, end = token.start_mark.index, token.end_mark.index
                quote = token.style if token.style in {"'", '"'} else ""
                line_ends = "\n" * text.count("\n", begin, end)
                yield _Span(begin, end, f"{quote}{_address(token.value)}{quote}{line_ends}")
    except (yaml.YAMLError, ValueError):
        return


def _address(value: str) -> str:
    match = _ADDRESS.search(value)
    start = 0 if match is None else match.start()
    return " ".join((value[:start] + redact(value[start:])).split())


def _without_addresses(text: str) -> str:
    lines = text.split("\n")
    return "\n".join(re.sub(r"(:/+).*|\S*@.*", rf"\g<1>{SECRET}", line) for line in lines)
