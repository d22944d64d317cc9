"""Formats log lines as text or JSON, with control characters in external text escaped."""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from typing import Final

_INVISIBLE: Final = re.compile(
    # Control characters (C0, DEL, C1), line and paragraph separators, marks that change the direction of text,
    # unpaired surrogates, and the byte-order mark.
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)


def escaped(text: str, keep: str = "") -> str:
    r"""Return ``text`` on one line: invisible and control characters are written as escapes such as ``\x1b``.

    A camera's reply, a class name or a request header may contain control characters: a terminal would execute them,
    and a line break would look like another log line.

    Args:
        text: any text.
        keep: characters that are not escaped, such as line ends of the program's own text.
    """

    def escape(match: re.Match[str]) -> str:
        letter = match[0]
        return letter if letter in keep else letter.encode("unicode_escape").decode("ascii")

    return _INVISIBLE.sub(escape, text)


class TextLines(logging.Formatter):
    """Formats a record as one line, the first letter of the level and the message, followed by the traceback."""

    def __init__(self) -> None:
        super().__init__("%(levelname).1s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line without a traceback."""
        return escaped(super().formatMessage(record))

    def formatException(self, ei: object) -> str:  # noqa: N802 - logging's name
        """Return the traceback, escaped, because the text of an exception may be external."""
        return escaped(super().formatException(ei), keep="\n")  # type: ignore[arg-type]


class JsonFormatter(logging.Formatter):
    """Formats a record as a JSON object: ``time`` (ISO 8601, UTC), ``level``, ``logger``, ``message``.

    The key ``error`` has the traceback, if there is one.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line of JSON."""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        line = json.dumps(fields, ensure_ascii=False)
        # JSON escapes control characters itself, so that a parser gets the original text.
        return _INVISIBLE.sub(lambda match: f"\\u{ord(match[0]):04x}", line)


def make_formatter(kind: str) -> logging.Formatter:
    """Return the formatter for ``text`` or ``json``."""
    return JsonFormatter() if kind == "json" else TextLines()


def log_as_text() -> None:
    """Log records of level INFO and above as text lines to standard error, in a process without a command line."""
    logging.basicConfig(level=logging.INFO)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(make_formatter("text"))
