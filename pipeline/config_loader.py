"""Parses YAML into validated configurations, and writes them. Reads no files and no environment variables.

An unknown key, a wrong type or a value out of range raises ``ConfigError`` with the key, the rule and the remedy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticSerializationError

from pipeline.config import BASE_KINDS, Config, EngineConfig, Kinds, OverlayConfig
from pipeline.config_yaml import model_of
from pipeline.errors import ConfigError, did_you_mean
from pipeline.kinds import UNKNOWN_OPTION

MAX_VALUES: Final = 100_000
"""Maximum number of values of a configuration after all aliases (``*name``) are expanded."""
_MAX_SHOWN: Final = 100


class _Reader(yaml.SafeLoader):
    """Loads plain values only, and refuses duplicate keys, because the first value would be lost.

    Nested aliases that would expand to more than ``MAX_VALUES`` values are refused before they are expanded.
    """

    def get_single_node(self) -> yaml.Node | None:
        """Return the root node of the document; an alias is the same node object as its anchor."""
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _written_out(node, {}) > MAX_VALUES:
            raise yaml.constructor.ConstructorError(
                None,
                None,
                f"the text has more than {MAX_VALUES} values when its aliases are expanded; use fewer aliases",
                node.start_mark,
            )
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        """Return the map of a node; a key of the map replaces the same key of a merged map (``<<``)."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be text, not a list or a map", key.start_mark
                )
            if key.tag != "tag:yaml.org,2002:merge" and key.value in seen and isinstance(key.value, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} is given twice; remove one", key.start_mark
                )
            if isinstance(key.value, str):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _written_out(node: yaml.Node, known: dict[int, int]) -> int:
    """Return the number of values of a node after its aliases are expanded."""
    if id(node) in known:
        if known[id(node)] == 0:
            raise yaml.constructor.ConstructorError(
                None, None, "an alias refers to a list or map that contains the alias; remove it", node.start_mark
            )
        return known[id(node)]
    known[id(node)] = 0
    parts = node.value if isinstance(node, yaml.CollectionNode) else []
    each = [part for pair in parts for part in pair] if isinstance(node, yaml.MappingNode) else parts
    known[id(node)] = count = 1 + sum(_written_out(part, known) for part in each)
    return count


def read_yaml(text: str, name: str) -> dict[str, Any]:
    """Parse a YAML text that is a map.

    Args:
        text: the YAML text.
        name: name of the file, for messages.

    Raises:
        ConfigError: the text is not YAML, is empty, or is not a map.
    """
    try:
        settings = yaml.load(text, _Reader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as reason:
        mark = getattr(reason, "problem_mark", None)
        where = f"at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        kind = "" if isinstance(reason, yaml.constructor.ConstructorError) else "not YAML"
        place = " ".join(filter(None, (kind, where)))
        problem = getattr(reason, "problem", None) or _why(reason)
        raise ConfigError(": ".join(filter(None, (name, place, problem)))) from reason
    if settings is None:
        raise ConfigError(f"{name}: is empty; start from one of configs/*.yaml, or give --source on the command line")
    if not isinstance(settings, dict):
        raise ConfigError(
            f"{name}: holds a {type(settings).__name__}, not a map of keys such as 'sources:' and 'engine:'"
        )
    return settings


def _why(reason: Exception) -> str:
    """Return the message for an exception of the YAML parser that has no position."""
    if isinstance(reason, RecursionError):
        return "the nesting is too many levels deep; use fewer levels"
    if isinstance(reason, yaml.reader.ReaderError):
        code = reason.character if isinstance(reason.character, int) else ord(reason.character)
        return f"the character #x{code:04x} is not allowed in YAML; remove it"
    return str(reason)[:_MAX_SHOWN] or "not readable"


def _shown(value: object) -> str:
    """Return a value as text for an error message; a long value is shortened."""
    if isinstance(value, int) and value.bit_length() > 300:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``below`` with the values of ``above``; nested maps are merged, lists are replaced."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def validate_config(
    settings: Mapping[str, Any],
    name: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    kinds: Kinds = BASE_KINDS,
    options: Mapping[str, str] = MappingProxyType({}),
) -> Config:
    """Return the validated configuration.

    Args:
        settings: the content of the file.
        name: the name of the file, for messages.
        overrides: options of the command line, which take precedence.
        kinds: the kinds of sources and sinks; by default only the options that every kind has are accepted.
        options: for messages, the command-line option, such as ``--record-when``, that sets each key of a sink.

    Raises:
        ConfigError: one line per mistake, with key, value and remedy.
        SourceError | SinkError: no kind matches a URI.
    """
    overrides = overrides or {}
    if (key := _with_nul(settings)) is not None:
        raise ConfigError(f"{name}: {_dotted(key)}: holds a NUL character, which no name or path may; remove it")
    try:
        return Config.model_validate(merge(settings, overrides), context={"kinds": kinds})
    except ValidationError as wrong:
        sentences = dict.fromkeys(_sentence(error, name, overrides, kinds, options) for error in wrong.errors())
        raise ConfigError("\n".join(sentences)) from None


def _with_nul(value: object) -> list[int | str] | None:
    """Return the keys that lead to the first text with a NUL character; None if there is none."""
    if isinstance(value, str):
        return [] if "\0" in value else None
    each: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        each = value.items()
    elif isinstance(value, list):
        each = enumerate(value)
    for key, part in each:
        if (inner := _with_nul(part)) is not None:
            return [key if isinstance(key, int) else str(key), *inner]
    return None


def _sentence(
    error: ErrorDetails, name: str, overrides: Mapping[str, Any], kinds: Kinds, options: Mapping[str, str]
) -> str:
    path = [part for part in error["loc"] if not (isinstance(part, str) and part.startswith("function-"))]
    location = f"{name}: {_dotted(path)}"
    if _given(path, overrides):
        key = next((str(p) for p in reversed(path) if isinstance(p, str)), "")
        if key in options:
            location = options[key]
        elif path[0] in {"sources", "sinks"}:
            location = f"--{_OPTIONS[str(path[0])]}" + (f": {key}" if key not in {"uri", path[0]} else "")
        else:
            location = "--" + _OPTIONS.get(key, key.replace("_", "-"))
    if error["type"] == UNKNOWN_OPTION:
        return f"{location}: {error['msg']}"
    if error["type"] == "extra_forbidden":
        return f"{location}: unknown key.{_hint(path, kinds)}"
    if error["type"] == "missing":
        return f"{location}: is missing"
    rule = _said(error)
    value = error["input"]
    holds_address = isinstance(value, str) and ("://" in value or "@" in value)
    if (path and path[-1] == "uri") or isinstance(value, Mapping | list) or holds_address:
        # A URI may hold a password, and a whole map says nothing.
        return f"{location}: {rule}"
    return f"{location}: {_shown(value)}: {rule}"


_OPTIONS = {
    "smoothing_seconds": "smoothing", "max_age_seconds": "max-age", "sources": "source", "sinks": "sink",
    "models": "trial", "cell_px": "cell",
}  # fmt: skip
"""Command-line options whose name differs from the name of their key."""


def _said(error: ErrorDetails) -> str:
    """Return the violated rule of an error, in the words of this module."""
    least = error.get("ctx", {}).get("min_length", 1)
    kinds = {
        "model_type": "should be a map of keys",
        "dict_type": "should be a map of keys",
        "list_type": "should be a list",
        "string_type": "should be text",
        "too_short": "should not be empty" if least < 2 else f"should have at least {least} entries",
        "string_too_short": "should not be empty",
    }
    rule = error["msg"].removeprefix("Value error, ")
    return kinds.get(error["type"]) or re.sub("^(Input|String) should ", "should ", rule)


def _hint(path: list[int | str], kinds: Kinds) -> str:
    """Return a hint for an unknown key: the section that has the key, or the most similar known key."""
    key = str(path[-1])
    homes: dict[str, type[BaseModel]] = {"engine": EngineConfig, "overlay": OverlayConfig}
    home = next((name for name, model in homes.items() if key in model.model_fields), None)
    if home is not None and path[0] != home:
        return f" It belongs under '{home}:'"
    return did_you_mean(key, _known_keys(path, kinds))


def _dotted(path: list[int | str]) -> str:
    text = ""
    for part in path:
        # A URI written where a key belongs may hold a password.
        name = re.sub(r"://.*", "://...", str(part))
        text += f"[{part}]" if isinstance(part, int) else f".{name}" if text else name
    return text or "the file"


def _given(path: list[int | str], overrides: Mapping[str, Any]) -> bool:
    level: Any = overrides
    for part in path:
        if isinstance(part, int):
            return True
        if not isinstance(level, Mapping) or part not in level:
            return False
        level = level[part]
    return bool(path)


def _known_keys(path: list[int | str], kinds: Kinds) -> list[str]:
    """Return the allowed keys of the map that contains the last key of ``path``."""
    models: list[type[BaseModel]] = [Config]
    for part in path[:-1]:
        if part in {"sources", "sinks"}:
            models = [model for _, _, model in kinds.models(str(part))]
        elif isinstance(part, str):
            fields = [model.model_fields[part] for model in models if part in model.model_fields]
            models = [inner for inner in map(model_of, fields) if inner is not None]
    return [key for model in models for key in model.model_fields]


def to_yaml(config: Config) -> str:
    """Return the configuration as YAML with all options; ``read_yaml`` and ``validate_config`` parse it."""
    try:
        settings = config.model_dump(mode="json", exclude_none=True)
    except PydanticSerializationError:
        raise ConfigError(
            "a URI contains bytes that are not UTF-8, which YAML cannot represent; rename the file"
        ) from None
    text: str = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    return text
