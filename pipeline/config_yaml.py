"""Writes a configuration as YAML with a description of each key; ``config_loader`` reads the YAML."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any, get_args

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.config import BASE_KINDS, Config, Kinds

_WIDTH = 118
_KINDS_OF = ("sources", "sinks")


def to_documented_yaml(config: Config, kinds: Kinds = BASE_KINDS) -> str:
    """Return a configuration as YAML: every key, each below its description.

    A key without a value is a comment. An empty list has an example entry (``sources`` and ``sinks``: one of each
    kind) as comments.
    """
    return "\n".join(_lines(config, type(config), 0, kinds)) + "\n"


def _lines(
    values: BaseModel | None, model: type[BaseModel], depth: int, kinds: Kinds, *, off: bool = False
) -> Iterator[str]:
    """Yield the lines of a model's keys; as comments if ``off``, for an entry that the configuration does not have."""
    indent = "  " * depth
    for name, field in model.model_fields.items():
        description = " ".join((field.description or "").split())
        yield from (f"{indent}# {line}" for line in textwrap.wrap(description, _WIDTH - len(indent)))
        value = getattr(values, name) if values is not None else _default(field)
        inner = model_of(field)
        mark = "# " if off or value is None else ""
        if inner is not None and isinstance(value, list):
            empty = not value
            yield f"{indent}{'# ' if off else ''}{name}:{' []' if empty and not off else ''}"
            for entry in value:
                yield from _entry(entry, type(entry), depth + 1, kinds, off=off)
            if empty:
                yield from _example_entries(name, inner, depth + 1, kinds)
        elif inner is not None:
            yield f"{indent}{mark}{name}:"
            yield from _lines(value, inner, depth + 1, kinds, off=bool(mark))
        else:
            yield f"{indent}{mark}{name}:{_text(value)}"


def _example_entries(name: str, inner: type[BaseModel], depth: int, kinds: Kinds) -> Iterator[str]:
    """Yield example entries of an empty list as comments; for ``sources`` and ``sinks`` one of each kind."""
    if name not in _KINDS_OF:
        yield from _entry(None, inner, depth, kinds, off=True)
        return
    for kind, keys, model in kinds.models(name):
        if kind:
            yield f"{'  ' * depth}# {kind} ({', '.join(keys)}):"
        yield from _entry(None, model, depth, kinds, off=True)


def _entry(entry: BaseModel | None, model: type[BaseModel], depth: int, kinds: Kinds, *, off: bool) -> Iterator[str]:
    """Yield the lines of one entry of a list, the first with a dash."""
    indent = "  " * depth
    yield f"{indent}{'# ' if off else ''}-"
    yield from _lines(entry, model, depth + 1, kinds, off=off)


def _default(field: FieldInfo) -> Any:  # noqa: ANN401 - a default is anything
    return None if field.is_required() else field.get_default(call_default_factory=True)


def _text(value: object) -> str:
    """Return the value as YAML on one line, after a space; ``""`` for None."""
    if value is None:
        return ""
    plain = value
    if isinstance(value, list | tuple):
        plain = [entry.model_dump(mode="json") if isinstance(entry, BaseModel) else entry for entry in value]
    text: str = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return " " + text.removesuffix("\n").removesuffix("\n...").strip()


def model_of(field: FieldInfo) -> type[BaseModel] | None:
    """Return the first settings model in the type of a field, or None."""
    waiting: list[Any] = [field.annotation]
    while waiting:
        kind = waiting.pop()
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
        waiting.extend(get_args(kind))
    return None
