"""Reads files of class names, and resolves the classes in ``--target``."""

from __future__ import annotations

import ast
import codecs
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from engine.methods.recipro import Target
from pipeline.errors import ConfigError, did_you_mean

log = logging.getLogger(__name__)

MAX_LABEL_BYTES: Final = 16 << 20
_INDEXED: Final = re.compile(r"""['"]?(\d{1,9})['"]?(?:\s*[:=,;\t]\s*|\s+)(\S.*)""")
_MAX_SUGGESTED: Final = 4


def read_labels(path: Path) -> tuple[str, ...]:
    """Read class names from a text or JSON file, in the order of the network's outputs.

    Accepts one name per line, quoted or not; ``index: name``, ``index,name`` or ``index name`` on each line; a list; a
    map of indices to names, or of names to indices (torchvision's ``class_to_idx``); a map of indices to [id, name]
    (ImageNet's class index); one of these under ``names`` or ``id2label`` (Hugging Face's ``config.json``). Lists and
    maps are JSON or Python literals. A byte-order mark is ignored.

    Raises:
        ConfigError: the file is missing, no text, empty, or does not contain each index from 0 exactly once.
    """
    text = _text_of(path)
    begin = text.lstrip()[:1]
    names = _structured(path, text) if begin and begin in "[{" else _lines(path, text)
    if not names:
        raise ConfigError(f"labels {str(path)!r}: contains no names; write one name per line")
    return names


def _text_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_LABEL_BYTES + 1)
        if len(raw) > MAX_LABEL_BYTES:
            raise ConfigError(f"labels {str(path)!r}: is larger than {MAX_LABEL_BYTES >> 20} MiB; write only the names")
        utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return raw.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as reason:
        raise ConfigError(
            f"labels {str(path)!r}: is not UTF-8 text (byte {reason.start}); save it as UTF-8, one name per line"
        ) from None
    except (OSError, ValueError) as reason:
        raise ConfigError(
            f"labels {str(path)!r}: cannot be read ({reason}); use a text file with one name per line"
        ) from None


def _structured(path: Path, text: str) -> tuple[str, ...]:
    """Parse a list or map in JSON or as a Python literal."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        try:
            content = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError) as reason:
            message = str(reason).splitlines()[0][:120] if str(reason) else type(reason).__name__
            raise ConfigError(
                f"labels {str(path)!r}: starts like a list or map, but is neither JSON nor a Python literal "
                f"({message}); write one name per line"
            ) from None
    if isinstance(content, dict):
        nested = next(
            (content[key] for key in ("names", "id2label") if isinstance(content.get(key), dict | list)), None
        )
        content = content if nested is None else nested
    if isinstance(content, dict):
        return _from_map(path, content)
    if isinstance(content, list | tuple):
        return tuple(_name(path, value) for value in content)
    raise ConfigError(f"labels {str(path)!r}: contains a {type(content).__name__}; write one name per line")


def _from_map(path: Path, content: dict[object, object]) -> tuple[str, ...]:
    """Return names in order of index, from a map of indices to names or of names to indices."""
    by_index = {_index(key): value for key, value in content.items()}
    if None in by_index:
        by_index = {_index(value): key for key, value in content.items()}
    if set(by_index) != set(range(len(content))):
        raise ConfigError(
            f"labels {str(path)!r}: a map must contain each class once, with indices from 0 to {len(content) - 1}; "
            f"this one has {', '.join(repr(key) for key in list(content)[:4])}{', ...' if len(content) > 4 else ''}"
        )
    return tuple(_name(path, by_index[k]) for k in range(len(content)))


def _index(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = value.strip() if isinstance(value, str) else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _name(path: Path, value: object) -> str:
    """Return a class name: a string or number, or the last item of [id, name]."""
    if isinstance(value, list | tuple) and value:
        value = value[-1]
    if isinstance(value, str | int | float) and not isinstance(value, bool) and str(value).strip():
        return str(value).strip()
    raise ConfigError(f"labels {str(path)!r}: {str(value)[:60]!r} is not a class name; write a string")


def _lines(path: Path, text: str) -> tuple[str, ...]:
    """Return one name per line, without indices if every line has one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and re.fullmatch(r"names\s*:", lines[0]):
        lines = lines[1:]
    matched = [_INDEXED.fullmatch(line) for line in lines]
    indexed = {int(match[1]): _bare(match[2]) for match in matched if match is not None}
    is_whole = len(lines) > 1 and len(indexed) == len(lines) and set(indexed) == set(range(len(lines)))
    if is_whole and len(set(indexed.values())) == len(lines):  # "0 spots", "1 spot", "2 spots" are names
        return tuple(indexed[k] for k in range(len(lines)))
    if len(lines) > 1 and not is_whole and all(match is not None for match in matched):
        log.warning(
            "labels %s: every line starts with a number (%r), but the numbers are not exactly 0 to %d, so they are "
            "read as part of the names", path, lines[0], len(lines) - 1,
        )  # fmt: skip
    bare = tuple(_bare(line) for line in lines)
    is_quoted = all(name != line.removesuffix(",").strip() for name, line in zip(bare, lines, strict=True))
    return bare if is_quoted else tuple(lines)


def _bare(name: str) -> str:
    name = name.strip().removesuffix(",").strip()
    quoted = len(name) > 1 and name[0] == name[-1] and name[0] in "'\""
    return name[1:-1] if quoted else name


def parse_target(words: Sequence[str], labels: Sequence[str]) -> Target:
    """Return the explained classes for words such as ``top1``, ``topN``, class names or indices.

    The network's top class is always explained, as its prediction. The heat map of the first class is drawn.

    Args:
        words: the parts of ``--target``, such as ("top1", "scratch").
        labels: the network's class names.

    Raises:
        ConfigError: a class is unknown (the message suggests the nearest name), or there is more than one top-N.
    """
    tops = [word for word in words if _is_top(word)]
    if len(tops) > 1:
        raise ConfigError(
            f"target {','.join(words)!r}: contains {tops[0]} and {tops[1]}; use one top-N only, followed by classes"
        )
    count = int(tops[0][3:]) if tops else 1
    if not 1 <= count <= len(labels):
        raise ConfigError(f"target {tops[0]!r}: the network has {len(labels)} classes; choose top1 to top{len(labels)}")
    folded = {label.casefold(): k for k, label in reversed(list(enumerate(labels)))}
    chosen = dict.fromkeys(_class_of(word, labels, folded) for word in words if not _is_top(word))
    return Target(count, tuple(chosen), classes_first=bool(chosen) and not _is_top(words[0]))


def _is_top(word: str) -> bool:
    return word.lower().startswith("top") and word[3:].isascii() and word[3:].isdigit()


def _class_of(word: str, labels: Sequence[str], folded: Mapping[str, int]) -> int:
    """Return the index of the class with this name or index."""
    if word.casefold() in folded:
        return folded[word.casefold()]
    if word.isascii() and word.isdigit() and len(word) < 10 and int(word) < len(labels):
        return int(word)
    if word.lstrip("-").isdigit():
        raise ConfigError(f"target {word!r}: the network's classes are 0 to {len(labels) - 1}; use one of these")
    hint = _suggestion(word, labels, folded)
    raise ConfigError(
        f"target {word!r} is not a class of this network.{hint} Use top1, top5, names or indices, separated by commas"
    )


def _suggestion(word: str, labels: Sequence[str], folded: Mapping[str, int]) -> str:
    """Suggest classes for an unknown word: those that contain it, as a word if possible, or the nearest."""
    plain = word.casefold().strip()
    parts_of = {label: [part for part in re.split(r"[\W_]+", label.casefold()) if part] for label in labels}
    as_word = [label for label in labels if plain and plain in parts_of[label]]
    as_word.sort(key=lambda label: parts_of[label][-1] != plain)  # prefer "sports car" to "car wheel" for "car"
    as_part = [label for label in labels if len(plain) > 2 and plain in label.casefold()]
    similar = list(dict.fromkeys(as_word or as_part))
    if not similar:
        hint = did_you_mean(plain, folded)
        for near in folded:
            hint = hint.replace(f"'{near}'", repr(labels[folded[near]]))
        return hint
    more = f" (and {len(similar) - _MAX_SUGGESTED} more)" if len(similar) > _MAX_SUGGESTED else ""
    return f" Did you mean {' or '.join(map(repr, similar[:_MAX_SUGGESTED]))}{more}?"
