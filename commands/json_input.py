"""JSON that a user gives: read whole, or refused in words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pipeline.errors import ConfigError


def read_json(text: str, where: str) -> Any:  # noqa: ANN401 - JSON is anything
    """Return what a JSON text holds. A key that an object has twice is refused: the first value would be lost.

    Raises:
        ConfigError: it is no JSON, nested too deep, or holds a number of too many digits.
    """
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ConfigError(f"{where}: no JSON that can be read (nested too deep)") from None
    except ValueError as reason:
        why = "a number has too many digits" if "integer string conversion" in str(reason) else reason
        raise ConfigError(f"{where}: no JSON that can be read ({why})") from None


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:40]!r} is given twice")
    return found
