"""The commands and configurations in the documentation."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import typer
import yaml

from commands.app import app

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^ *```(\w+)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
_VARIABLE = re.compile(r"[A-Z]+=")
_SECTIONS = frozenset({"sources", "sinks", "engine", "guards", "models", "overlay"})


class Command(NamedTuple):
    """One command line of a document."""

    document: str
    words: tuple[str, ...]
    """Words as the shell passes them, without comments."""


def blocks(path: Path, language: str) -> list[str]:
    """Return the code blocks of one language in a document."""
    return [text for name, text in _BLOCK.findall(path.read_text(encoding="utf-8")) if name == language]


def shell_commands(path: Path) -> Iterator[Command]:
    """Yield the command lines of a document, in blocks and in lines; variables set in a block are replaced."""
    for block in blocks(path, "sh"):
        variables: dict[str, str] = {}
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for word in [word for word in words if _VARIABLE.match(word)]:
                name, _, value = word.partition("=")
                variables[name] = value.rstrip(";")
            expanded = shlex.split(Template(line).safe_substitute(variables), comments=True)
            if expanded and not _VARIABLE.match(expanded[0]):
                yield Command(path.relative_to(ROOT).as_posix(), _first_command(expanded))
    for text in re.findall(r"`((?:uv run run\.py|recipro-stream) [a-z][^`\n]+)`", path.read_text(encoding="utf-8")):
        yield Command(path.relative_to(ROOT).as_posix(), _first_command(shlex.split(text)))


def _first_command(words: list[str]) -> tuple[str, ...]:
    """Return the words before a redirection or a further command."""
    ends = [number for number, word in enumerate(words) if word in {">", "|", "&&", "||"}]
    return tuple(words[: ends[0]] if ends else words)


def program_arguments(words: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return the arguments of a command that runs this program; None for other programs."""
    if words[0] == "recipro-stream":
        return words[1:]
    if words[:2] == ("uv", "run") and "run.py" in words:
        return words[words.index("run.py") + 1 :]
    return None


def configurations(path: Path) -> list[dict[str, Any]]:
    """Return the YAML blocks of a document that are configurations of ``stream``."""
    found = [yaml.safe_load(block) for block in blocks(path, "yaml")]
    return [settings for settings in found if isinstance(settings, dict) and settings.keys() <= _SECTIONS]


@cache
def _program() -> Any:
    return typer.main.get_command(app)


def parse_arguments(arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the words of the command and its values, as the program's own parser reads them; nothing runs."""
    context, words = _program().make_context("recipro-stream", list(arguments)), []
    while hasattr(context.command, "commands"):
        name, command, rest = context.command.resolve_command(context, [*context._protected_args, *context.args])
        words.append(name)
        context = command.make_context(name, rest, parent=context)
    return words, context.params
