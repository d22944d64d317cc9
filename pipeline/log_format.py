"""How log lines look: short ones for people, JSON for machines. Foreign text in them forges no line and no colour."""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from typing import Final

_UNSEEN: Final = re.compile(
    # Control characters (C0, DEL, C1), line and paragraph separators, marks that turn the direction of text,
    # unpaired surrogates, and the byte-order mark.
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)


def escaped(text: str, keep: str = "") -> str:
    r"""Return ``text`` on one line: what is not seen, or moves what is seen, is written as an escape such as ``\x1b``.

    A camera's answer, a class's name or a header of a request may hold such characters; a terminal obeys them, and a
    new line in them would look like a line of ours.

    Args:
        text: whatever is told.
        keep: characters that are left as they are, such as the line ends of our own text.
    """

    def escape(found: re.Match[str]) -> str:
        letter = found[0]
        return letter if letter in keep else letter.encode("unicode_escape").decode("ascii")

    return _UNSEEN.sub(escape, text)


class TextLines(logging.Formatter):
    """The level's letter and the message, on one line; a traceback follows on its own lines."""

    def __init__(self) -> None:
        super().__init__("%(levelname).1s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line without a traceback."""
        return escaped(super().formatMessage(record))

    def formatException(self, ei: object) -> str:  # noqa: N802 - logging's name
        """Return the traceback; an error's text may be foreign, too."""
        return escaped(super().formatException(ei), keep="\n")  # type: ignore[arg-type]


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time`` (ISO 8601, UTC), ``level``, ``logger``, ``message``; ``error``.

    A traceback.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            told["error"] = self.formatException(record.exc_info)
        line = json.dumps(told, ensure_ascii=False)
        # JSON's own escapes: a reader gets the text as it was.
        return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


def make_formatter(kind: str) -> logging.Formatter:
    """Return the formatter for ``text`` or ``json``."""
    return JsonFormatter() if kind == "json" else TextLines()
