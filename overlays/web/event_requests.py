"""Parses queries and actions of the events' HTTP interface and formats its answers; reads only the clock."""

from __future__ import annotations

import csv
import io
import math
import re
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, cast, get_args

from starlette.requests import Request
from starlette.responses import Response

from overlays.events.event import KINDS, MAX_TEXT, STATES, EventKind, State
from overlays.events.query import MAX_LIMIT, EventFilter
from overlays.events.store import Action, Verb
from overlays.wire.text import replace_undecodable
from pipeline.shapes import one_line

_MAX_VALUES: Final = 100
"""Maximum number of values of one filter."""
MAX_SNOOZE_MINUTES: Final = 7 * 24 * 60.0
MAX_NAME: Final = 64
"""Maximum length of a viewer's name in characters."""
CSV_FIELDS: Final = (
    "id", "kind", "camera", "rule", "text", "start", "end", "label", "score", "track", "figure_name", "figure_value",
    "figure_bound", "state", "by", "acted", "snoozed_until", "note", "interrupted",
)  # fmt: skip
_FORMULA: Final = re.compile(r"[\s\x00-\x1f]*[=+\-@＝＋－＠]|[\t\r\n]")  # noqa: RUF001
_TIMES: Final = frozenset({"start", "end", "acted", "snoozed_until"})


class RequestError(Exception):
    """A request cannot be answered. ``status`` is the HTTP status of the response."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def read_query(request: Request) -> tuple[EventFilter, int, str | None]:
    """Return the filter, the maximum number of events, and ``before_id`` of a query; ``before_id`` may be None.

    Raises:
        RequestError: a query parameter is invalid (400).
    """
    values = request.query_params
    limit = values.get("limit", "100")
    if not limit.isascii() or not limit.isdecimal() or not 1 <= int(limit[:6]) <= MAX_LIMIT:
        raise RequestError(400, f"limit: must be an integer from 1 to {MAX_LIMIT}")
    before_id = values.get("before_id")
    chosen = EventFilter(
        _time(request, "after"),
        _time(request, "before"),
        _list(request, "camera"),
        cast("list[EventKind]", _list(request, "kind", KINDS)),
        _list(request, "label"),
        cast("list[State]", _list(request, "state", STATES)),
    )
    return chosen, int(limit), before_id


def read_action(event_id: str, verb: str, body: Mapping[str, Any]) -> Action:
    """Return a viewer's action on an event.

    Args:
        event_id: identifier of the event.
        verb: the action's name, from the path.
        body: the JSON object of the request: optional ``by`` (the viewer's name) and ``version``; ``note`` for the
            verb ``note``; ``minutes`` for the verb ``snooze``.

    Raises:
        RequestError: the verb is unknown (404), or a value is invalid (400).
    """
    if verb not in get_args(Verb):
        raise RequestError(404, f"{verb[:40]!r} is not an action on events; use one of {', '.join(get_args(Verb))}")
    by, note, minutes = body.get("by", ""), body.get("note", ""), body.get("minutes")
    if not isinstance(by, str) or len(by) > MAX_NAME:
        raise RequestError(400, f"by: must be a text of at most {MAX_NAME} characters")
    try:
        one_line(by.strip())
    except ValueError as error:
        raise RequestError(400, f"by: {error}") from None
    if verb == "note" and (not isinstance(body.get("note"), str) or len(note) > MAX_TEXT):
        raise RequestError(400, f"note: must be a text of at most {MAX_TEXT} characters")
    version = body.get("version")
    if version is not None and (not isinstance(version, int) or isinstance(version, bool)):
        raise RequestError(400, "version: must be an integer, the ``version`` of the event as last read")
    until = None
    if verb == "snooze":
        is_number = isinstance(minutes, int | float) and not isinstance(minutes, bool)
        if not is_number or not 0 < cast("float", minutes) <= MAX_SNOOZE_MINUTES:
            raise RequestError(400, f"minutes: must be a number above 0 and at most {MAX_SNOOZE_MINUTES:g}")
        until = time.time() + 60.0 * cast("float", minutes)
    name, text = replace_undecodable(by.strip()), replace_undecodable(note) if verb == "note" else ""
    return Action(event_id, cast("Verb", verb), name, until, text, version)


def as_csv(events: Sequence[Mapping[str, Any]]) -> str:
    """Return events as CSV (RFC 4180), times in ISO 8601; cells that look like formulas are quoted with ``'``."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(CSV_FIELDS)
    for event in events:
        figure = event["figure"] or {}
        flat = dict(event) | {f"figure_{name}": figure.get(name) for name in ("name", "value", "bound")}
        writer.writerow([_cell(name, flat[name]) for name in CSV_FIELDS])
    return text.getvalue()


def _cell(name: str, value: object) -> object:
    if name in _TIMES and isinstance(value, float):
        return datetime.fromtimestamp(value, UTC).isoformat(timespec="milliseconds")
    # Spreadsheets execute cells that start like a formula; some also after blanks, or with full-width characters.
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def _time(request: Request, name: str) -> float | None:
    """Return a query parameter in Unix seconds or ISO 8601 as Unix seconds; None if it is absent."""
    value = request.query_params.get(name)
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = datetime.fromisoformat(value).timestamp()
        except (ValueError, OverflowError):
            seconds = math.nan
    if not abs(seconds) < 1e11:
        raise RequestError(400, f"{name}: must be a time in Unix seconds, or in the form 2026-11-28T07:00:00Z")
    return seconds


def _list(request: Request, name: str, known: Sequence[str] = ()) -> list[str]:
    values = request.query_params.getlist(name)
    wrong = next((value for value in values if known and value not in known), None)
    if wrong is not None:
        raise RequestError(400, f"{name}: {wrong[:40]!r} is unknown; use one of {', '.join(known)}")
    if len(values) > _MAX_VALUES:
        raise RequestError(400, f"{name}: is given {len(values)} times; give it at most {_MAX_VALUES} times")
    return values


def read_choice(request: Request, name: str, known: Sequence[str], default: str) -> str:
    """Return a query parameter that must be one of ``known``; raises ``RequestError`` (400) for another value."""
    value = request.query_params.get(name, default)
    if value not in known:
        raise RequestError(400, f"{name}: {value[:40]!r} is unknown; use one of {', '.join(known)}")
    return value


async def answer_error(_request: Request, error: Exception) -> Response:
    """Return the HTTP response for a ``RequestError``: its status, with the reason as text."""
    assert isinstance(error, RequestError)  # noqa: S101 - registered for this type only
    return Response(str(error), error.status, media_type="text/plain")
