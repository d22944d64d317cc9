"""Changes values in the YAML text of a configuration; comments, order and spelling of other parts stay. Pure.

ruamel.yaml attaches a comment to the value before it. A comment below the last entry of a list mostly describes the
text after the list. So the comment stays at the end of the list when entries are added or removed.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import CommentMark, YAMLError
from ruamel.yaml.scalarstring import DoubleQuotedScalarString
from ruamel.yaml.tokens import CommentToken
from ruamel.yaml.util import load_yaml_guess_indent
from yaml import ScalarNode
from yaml.resolver import Resolver

from pipeline.errors import ConfigError

_WIDTH: Final = 1 << 20
"""Line width in columns, large enough that no line is folded."""
_RESOLVER: Final = Resolver()
"""Resolves YAML 1.1 types as PyYAML does: unquoted ``on``, ``no`` and ``12:30`` are not strings."""
_TEXT: Final = "tag:yaml.org,2002:str"
_LINE_ENDS: Final = frozenset("\x85\u2028\u2029")
"""Characters that end a line in YAML 1.1 but not in YAML 1.2."""


@dataclass(frozen=True, slots=True)
class ListChange:
    """The new entries of a list."""

    wanted: Sequence[Mapping[str, Any]]
    """The entries. The key ``index`` is the position of the entry to replace; a new entry has no ``index``."""
    shown: frozenset[int]
    """Positions of the entries that can be replaced or removed; other entries stay."""


@dataclass(frozen=True, slots=True)
class ConfigEdit:
    """A change to one source and to the guards."""

    source: int
    """Position of the source in ``sources``."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """New values for keys of the source; None or an empty list removes the key."""
    places: Mapping[str, ListChange] = field(default_factory=dict)
    """Changes to the source's lists ``zones`` and ``lines``."""
    guards: Mapping[str, ListChange] = field(default_factory=dict)
    """Changes to lists under ``guards``."""


def edit_yaml(text: str, edit: ConfigEdit) -> str:
    """Return the text with the change applied; if the change has no effect, return ``text`` itself.

    Raises:
        ConfigError: the text cannot be parsed as YAML.
    """
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, _WIDTH
    try:
        _, indent, offset = load_yaml_guess_indent(text)
        yaml.indent(mapping=2, sequence=indent or 2, offset=offset or 0)
        document = yaml.load(text)
    except (YAMLError, ValueError) as error:
        raise ConfigError(f"the file cannot be changed here: {str(error).splitlines()[0]}; edit it by hand") from None
    before = _dumped(yaml, document)
    if edit.values or edit.places:
        _edit_source(document, edit)
    if any(change.wanted or change.shown for change in edit.guards.values()):
        if document.get("guards") is None:
            document["guards"] = CommentedMap()
        for key, change in edit.guards.items():
            _edit_list(document["guards"], key, change)
    after = _dumped(yaml, document)
    return text if after == before else after


def _dumped(yaml: YAML, document: CommentedMap) -> str:
    stream = io.StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()


def _edit_source(document: CommentedMap, edit: ConfigEdit) -> None:
    sources = document["sources"]
    if not isinstance(sources, CommentedSeq):
        rest = _take_rest(document, "sources")
        sources = document["sources"] = CommentedSeq([sources])
        _put_rest(document, "sources", rest)
    entry = sources[edit.source]
    if not isinstance(entry, CommentedMap) or "uri" not in entry:
        if not any(edit.values.values()) and not any(change.wanted for change in edit.places.values()):
            return
        _replace_text(sources, edit.source)
    for key, value in edit.values.items():
        _set(sources, edit.source, key, value)
    for key, change in edit.places.items():
        if change.wanted or change.shown:
            _edit_list(sources[edit.source], key, change, at=(sources, edit.source))


def _replace_text(sources: CommentedSeq, index: int) -> None:
    """Replace a source given as a string by a mapping with the key ``uri``.

    YAML reads an unquoted ``line:`` as a mapping with a null value; it is treated as a string.
    """
    entry = sources[index]
    text = f"{next(iter(entry))}:" if isinstance(entry, CommentedMap) else entry
    slot = sources.ca.items.pop(index, None)
    sources[index] = CommentedMap({"uri": text})
    if slot and slot[0] is not None:
        sources[index].ca.items["uri"] = [None, None, slot[0], None]


def _set(parent: CommentedSeq | CommentedMap, place: Any, key: str, value: Any) -> None:  # noqa: ANN401
    """Set or remove a key of the mapping at ``parent[place]``."""
    entry = parent[place]
    if value is None or value == []:
        if key in entry:
            rest = _take_rest(entry, key)
            del entry[key]
            if entry:
                _put_rest(entry, next(reversed(entry)), rest)
    elif key not in entry:
        rest = _take_rest(parent, place)
        entry[key] = _node(value)
        _put_rest(parent, place, rest)
    elif entry[key] != value:
        rest = _take_rest(entry, key)
        slot = entry.ca.items.get(key)
        entry[key] = _node(value)
        if slot is not None:
            entry.ca.items[key] = slot
        _put_rest(entry, key, rest)


def _edit_list(
    parent: CommentedMap, key: str, change: ListChange, at: tuple[CommentedSeq | CommentedMap, Any] | None = None
) -> None:
    """Change the list at ``parent[key]``; ``at`` locates ``parent`` in its own parent, for a new key."""
    if parent.get(key) is None:
        if change.wanted:
            _add_list(parent, key, change, at)
        return
    entries = parent[key]
    kept = {entry["index"]: entry for entry in change.wanted if entry.get("index") is not None}
    for index, wanted in kept.items():
        for name in [*entries[index], *(name for name in wanted if name not in entries[index])]:
            if name != "index":
                _set(entries, index, name, wanted.get(name))
    for index in sorted(change.shown - kept.keys(), reverse=True):
        _remove(parent, key, index)
    for entry in change.wanted:
        if entry.get("index") is None:
            rest = _take_rest(parent, key)
            entries.append(_without_index(entry))
            _put_rest(parent, key, rest)


def _add_list(
    parent: CommentedMap, key: str, change: ListChange, at: tuple[CommentedSeq | CommentedMap, Any] | None
) -> None:
    outer, place = at or (parent, next(reversed(parent), None))
    rest = _take_rest(outer, place) if place is not None else ""
    parent[key] = CommentedSeq()
    for entry in change.wanted:
        parent[key].append(_without_index(entry))
    if at is None:
        _put_rest(parent, key, rest)
    else:
        _put_rest(outer, place, rest)


def _without_index(entry: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a node of ruamel.yaml
    return _node({name: value for name, value in entry.items() if name != "index"})


def _remove(parent: CommentedMap, key: str, index: int) -> None:
    entries = parent[key]
    rest = _take_rest(entries, index)
    del entries[index]
    if index > 0:
        _put_rest(entries, index - 1, rest)
    elif entries and (words := rest.strip()):
        before = "\n".join(line.strip().removeprefix("#").strip() for line in words.splitlines())
        entries.yaml_set_comment_before_after_key(0, before=before, indent=entries.lc.col or 0)
    elif not entries:
        entries.fa.set_flow_style()
        _put_rest(parent, key, rest)


def _node(value: Any) -> Any:  # noqa: ANN401 - any value of YAML
    """Return a value as a ruamel.yaml node; a list without mappings is written on one line."""
    if isinstance(value, Mapping):
        return CommentedMap({key: _node(each) for key, each in value.items()})
    if isinstance(value, list | tuple):
        node = CommentedSeq([_node(each) for each in value])
        if not any(isinstance(each, Mapping) for each in value):
            node.fa.set_flow_style()
        return node
    if isinstance(value, str) and (_tag(value) != _TEXT or not _LINE_ENDS.isdisjoint(value)):
        return DoubleQuotedScalarString(value)
    return value


def _tag(text: str) -> str:
    """Return the YAML 1.1 tag of an unquoted text."""
    return str(_RESOLVER.resolve(ScalarNode, text, (True, False)))  # type: ignore[no-untyped-call]


def _slot(parent: CommentedMap | CommentedSeq, place: Any) -> tuple[CommentedMap | CommentedSeq, Any]:  # noqa: ANN401
    """Return the container and the key that store the comment after ``parent[place]``."""
    value = parent[place]
    if isinstance(value, CommentedMap | CommentedSeq) and value and not value.fa.flow_style():
        return _slot(value, next(reversed(value)) if isinstance(value, CommentedMap) else len(value) - 1)
    return parent, place


def _position(parent: CommentedMap | CommentedSeq) -> int:
    return 2 if isinstance(parent, CommentedMap) else 0


def _take_rest(parent: CommentedMap | CommentedSeq, place: Any) -> str:  # noqa: ANN401
    """Remove and return the comment lines below ``parent[place]``; a comment on the same line stays."""
    holder, last = _slot(parent, place)
    slot = holder.ca.items.get(last)
    token = slot[_position(holder)] if slot else None
    if token is None:
        return ""
    line, _, rest = token.value.partition("\n")
    token.value = f"{line}\n"
    return str(rest)


def _put_rest(parent: CommentedMap | CommentedSeq, place: Any, rest: str) -> None:  # noqa: ANN401
    """Insert comment lines below ``parent[place]``."""
    if not rest:
        return
    holder, last = _slot(parent, place)
    slot = holder.ca.items.setdefault(last, [None, None, None, None])
    token = slot[_position(holder)]
    if token is None:
        slot[_position(holder)] = CommentToken(f"\n{rest}", CommentMark(0), None)
    else:
        token.value = f"{token.value.rstrip(chr(10))}\n{rest}"
