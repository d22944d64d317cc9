"""Generates the configuration's JSON Schema and its Markdown reference from the settings models."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.config import Config, Kinds
from pipeline.config_yaml import model_of
from pipeline.settings import EntrySettings

_TITLE: Final = "Configuration of recipro-stream"
_SECTIONS: Final = {"sources": "Sources", "sinks": "Sinks"}


def config_schema(kinds: Kinds) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a configuration, with a definition for each kind."""
    schema = Config.model_json_schema()
    definitions: dict[str, Any] = schema.setdefault("$defs", {})
    for section in _SECTIONS:
        choices: list[dict[str, Any]] = [{"type": "string", "description": "A URI, with default options."}]
        for name, keys, model in kinds.models(section):
            entry = model.model_json_schema(ref_template="#/$defs/{model}")
            definitions.update(entry.pop("$defs", {}))
            entry["title"] = f"{name} ({', '.join(keys)})"
            if pattern := _pattern(keys):
                entry["properties"]["uri"]["pattern"] = pattern
            definitions[model.__name__] = entry
            choices.append({"$ref": f"#/$defs/{model.__name__}"})
        property_ = schema["properties"][section]
        one_or_more = {"anyOf": [*choices, {"type": "array", "items": {"anyOf": choices}}]}
        schema["properties"][section] = {
            key: value for key, value in property_.items() if key in {"default", "description", "title"}
        } | one_or_more
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": _TITLE}


def _pattern(keys: tuple[str, ...]) -> str:
    """Return a regular expression for the URIs of a kind; "" if the URI alone does not tell the kind."""
    choices = []
    for key in keys:
        if key.endswith((":", "://")):
            number = r"|^\d+$" if key == "camera:" else ""
            choices.append(f"^{re.escape(key)}{number}")
        elif key == "/":
            choices.append(r"^(?!.*://).*/(\?.*)?$")
        elif key.startswith("."):
            choices.append(f"{re.escape(key)}(\\?.*)?$")
        elif key.isupper():  # a path: VIDEO, FOLDER
            return ""
        else:
            choices.append(f"^{re.escape(key)}$")
    return "|".join(choices)


def config_reference(kinds: Kinds) -> str:
    """Return the reference of all options as Markdown."""
    lines = [
        "# Configuration",
        "",
        "A configuration is a YAML file (`run.py stream FILE.yaml`). The options of the command line take precedence.",
        "`run.py stream FILE.yaml --print-config --all` prints every key with its description, and `run.py schema`",
        "the JSON Schema for editors. This page is generated: `run.py schema --markdown`.",
        "",
        "An entry of `sources` or `sinks` is a URI, or a map with `uri` and the options of its kind. Options may also",
        "follow a path: `out.mp4?crf=28&preset=fast`, `clips/?rotate_seconds=60`, `film.mp4?loop=1`,",
        "`camera:0?size=1280x720`; `%26` stands for `&`, `%2F` for `/`. If a file exists whose name contains",
        "`?`, the name is read as a whole. The query of a network address (`://`) is for the server: its options are",
        "given in a map.",
        "",
        "## Top level",
        "",
        *_table(Config, without=set(Config.model_fields) & {"sources", "sinks", "engine", "overlay", "guards"}),
    ]
    for section, title in _SECTIONS.items():
        lines += ["", f"## {title}"]
        base = set(EntrySettings.model_fields)
        for name, keys, model in kinds.models(section):
            shown = ", ".join(f"`{key}`" for key in keys)
            lines += ["", f"### {name[:1].upper()}{name[1:]}", "", f"{shown}: {_first_line(model)}", ""]
            lines += _table(model, without=base) or ["It has no options."]
    for section in ("engine", "overlay", "guards"):
        part = model_of(Config.model_fields[section])
        if part is not None:
            lines += ["", f"## {section.capitalize()}", "", _first_line(part), "", *_table(part)]
    return "\n".join(lines) + "\n"


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").partition("\n")[0]


def _table(model: type[BaseModel], *, without: set[str] | None = None) -> list[str]:
    """Return the rows of a model's options, with those of nested models; an empty list if it has no options."""
    rows = list(_rows(model, "", without or set()))
    return ["| option | values | default | meaning |", "|---|---|---|---|", *rows] if rows else []


def _rows(model: type[BaseModel], prefix: str, without: set[str]) -> Iterator[str]:
    properties = model.model_json_schema()["properties"]
    for name, field in model.model_fields.items():
        if name in without:
            continue
        inner = model_of(field)
        is_list = inner is not None and properties[name].get("type") == "array"
        values = _words(properties[name]) if inner is None else "list of maps" if is_list else "map"
        description = " ".join((field.description or "").split())
        cells = (f"`{prefix}{name}`", values, _default(field, inner), description)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        if inner is not None:
            yield from _rows(inner, f"{prefix}{name}{'[]' if is_list else ''}.", set())


def _default(field: FieldInfo, inner: type[BaseModel] | None) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or inner is not None:
        return ""
    shown = {True: "true", False: "false"}.get(value, value) if isinstance(value, bool) else value
    return f"`{shown}`" if shown != "" else "empty"


def _words(schema: dict[str, Any]) -> str:
    """Return the values that a JSON Schema allows as text, such as ``integer, 0 to 51``."""
    if "anyOf" in schema:
        parts = [_words(part) for part in schema["anyOf"] if part.get("type") != "null"]
        return " or ".join(dict.fromkeys(parts))
    if choices := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return ", ".join(f"`{value}`" for value in choices)
    kind = {"string": "text", "array": "list", "boolean": "`true`, `false`"}.get(schema.get("type", ""))
    kind = kind or str(schema.get("type", "value"))
    if isinstance(schema.get("items"), dict):
        return f"list of {_words(schema['items'])}"
    return kind + _range(schema)


def _range(schema: dict[str, Any]) -> str:
    """Return the range of a number as text, such as `` 0 to 51``; "" without limits."""
    low, above, high = (schema.get(key) for key in ("minimum", "exclusiveMinimum", "maximum"))
    start = _number(low) if low is not None else f"above {_number(above)}" if above is not None else ""
    if not start:
        return ""
    end = f" to {_number(high)}" if high is not None else " or more" if low is not None else ""
    return f", {start}{end}"


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:g}"
