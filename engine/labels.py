"""Class names: read from a file, and chosen by those who want to see one explained."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
        except json.JSONDecodeError as reason:
            raise ConfigError(f"labels {str(path)!r}: not JSON ({reason}); give a list of names") from None
        names = tuple(str(name) for name in listed)
    else:
        names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not names:
        raise ConfigError(f"labels {str(path)!r}: holds no names; give one a line")
    return names


def choose_target(words: Sequence[str], labels: Sequence[str]) -> Target:
    """Return the explained classes for ``top1``, ``topN``, class names or indices.

    Raises:
        ConfigError: a class the network does not have, with the nearest right one; or top-N mixed with names.
    """
    if len(words) == 1 and words[0].lower().startswith("top") and words[0][3:].isdigit():
        count = int(words[0][3:])
        if not 1 <= count <= len(labels):
            raise ConfigError(
                f"target {words[0]!r}: the network has {len(labels)} classes; choose top1 to top{len(labels)}"
            )
        return Target(top=count)
    folded = {label.casefold(): k for k, label in reversed(list(enumerate(labels)))}
    chosen: list[int] = []
    for word in words:
        if word.casefold() in folded:
            chosen.append(folded[word.casefold()])
        elif word.isdigit() and int(word) < len(labels):
            chosen.append(int(word))
        elif word.lstrip("-").isdigit():
            raise ConfigError(f"target {word!r}: the network's classes go from 0 to {len(labels) - 1}")
        elif word.lower().startswith("top") and word[3:].isdigit():
            raise ConfigError(f"target {word!r} stands alone; it cannot be mixed with names and indices")
        else:
            hint = nearest(word.casefold(), folded)
            for near in folded:
                hint = hint.replace(f"'{near}'", repr(labels[folded[near]]))
            raise ConfigError(
                f"target {word!r} is no class of this network.{hint} Give top1, top5, names or indices, by commas"
            )
    return Target(classes=tuple(dict.fromkeys(chosen)))
