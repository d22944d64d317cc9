"""Class names: read from a file, and chosen by those who want to see one explained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.methods.recipro import Target
from pipeline.errors import ConfigError, nearest


def read_labels(path: Path) -> tuple[str, ...]:
    """Return class names from a text file (one a line) or a JSON list.

    Raises:
        ConfigError: the file is missing, not text, or empty.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as reason:
        raise ConfigError(f"labels {str(path)!r}: not readable ({reason}); give a text file, one name a line") from None
    if text.lstrip().startswith("["):
        try:
            listed = json.loads(text)
        except (ValueError, RecursionError) as reason:
            raise ConfigError(f"labels {str(path)!r}: not JSON ({reason}); give a list of names") from None
        names = tuple(str(name) for name in listed)
    else:
        names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not names:
        raise ConfigError(f"labels {str(path)!r}: holds no names; give one a line")
    return names


def choose_target(words: Sequence[str], labels: Sequence[str]) -> Target:
    """Return the explained classes for ``top1``, ``topN``, class names or indices, or both: ``top1,scratch``.

    The network's top class is always among them: it is the verdict, whatever else is explained. The first word says
    which class's heat is drawn.

    Raises:
        ConfigError: a class the network does not have, with the nearest right one; more than one top-N.
    """
    tops = [word for word in words if _is_top(word)]
    if len(tops) > 1:
        raise ConfigError(f"target {','.join(words)!r}: names {tops[0]} and {tops[1]}; give one top-N, then classes")
    count = int(tops[0][3:]) if tops else 1
    if not 1 <= count <= len(labels):
        raise ConfigError(f"target {tops[0]!r}: the network has {len(labels)} classes; choose top1 to top{len(labels)}")
    folded = {label.casefold(): k for k, label in reversed(list(enumerate(labels)))}
    chosen = dict.fromkeys(_class_of(word, labels, folded) for word in words if not _is_top(word))
    return Target(count, tuple(chosen), classes_first=bool(chosen) and not _is_top(words[0]))


def _is_top(word: str) -> bool:
    return word.lower().startswith("top") and word[3:].isascii() and word[3:].isdigit()


def _class_of(word: str, labels: Sequence[str], folded: Mapping[str, int]) -> int:
    """Return the index of the class that a word names."""
    if word.casefold() in folded:
        return folded[word.casefold()]
    if word.isascii() and word.isdigit() and len(word) < 10 and int(word) < len(labels):
        return int(word)
    if word.lstrip("-").isdigit():
        raise ConfigError(f"target {word!r}: the network's classes go from 0 to {len(labels) - 1}")
    hint = nearest(word.casefold(), folded)
    for near in folded:
        hint = hint.replace(f"'{near}'", repr(labels[folded[near]]))
    raise ConfigError(
        f"target {word!r} is no class of this network.{hint} Give top1, top5, names or indices, by commas"
    )
