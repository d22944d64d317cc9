"""Parses JSON input of users, with errors that state the reason."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pipeline.errors import ConfigError


def read_json(text: str, where: str) -> Any:  # noqa: ANN401 - JSON is anything
    """Return the value of a JSON text.

    Args:
        text: the JSON text.
        where: name of the input, for messages.

    Raises:
        ConfigError: the text is not JSON, has a duplicate key or a too long number, or is nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_reject_duplicates)
    except RecursionError:
        raise ConfigError(f"{where}: not valid JSON (nested too deeply); correct it") from None
    except ValueError as reason:
        why = "a number has too many digits" if "integer string conversion" in str(reason) else reason
        raise ConfigError(f"{where}: not valid JSON ({why}); correct it") from None


def _reject_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"duplicate key {twice[:40]!r}")
    return members
