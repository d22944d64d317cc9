"""The commands, addresses and configurations in the documentation are accepted by the program's own parsers."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from commands.wiring.kinds import load_config
from overlays.sinks.registry import SINKS
from stream.sources import SOURCES
from tests.support.documents import (
    DOCUMENTS,
    ROOT,
    configurations,
    parse_arguments,
    program_arguments,
    shell_commands,
)

COMMANDS = [command for path in DOCUMENTS for command in shell_commands(path)]
PROGRAM = [(command.document, arguments) for command in COMMANDS if (arguments := program_arguments(command.words))]
CONFIGURATIONS = [
    pytest.param(settings, id=f"{path.stem}-{number}")
    for path in DOCUMENTS
    for number, settings in enumerate(configurations(path))
]
PLACEHOLDER = re.compile(r"[A-Z]+")
INLINE = sorted(
    {
        (path.name, option, uri.strip("'\""))
        for path in DOCUMENTS
        for text in re.findall(r"`([^`\n]+)`", path.read_text(encoding="utf-8"))
        for option, uri in re.findall(r"--(source|sink) ('[^']+'|\"[^\"]+\"|\S+)", text)
        if not PLACEHOLDER.fullmatch(uri)
    }
)
PLUGINS = ("lamp://", "bar://")
"""Schemes of the example packages in docs/python.md."""


def identifier(command):
    document, arguments = command
    return f"{Path(document).stem}: {' '.join(arguments)[:70]}"


def test_documents_of_all_integrations_have_commands_and_configurations():
    integrations = sorted(path.name for path in (ROOT / "docs/integrations").glob("*.md"))
    assert {Path(document).name for document, _ in PROGRAM if "integrations" in document} == set(integrations)
    assert len(PROGRAM) > 80
    assert len(CONFIGURATIONS) > 15
    assert len(INLINE) > 5


@pytest.mark.parametrize("command", PROGRAM, ids=identifier)
def test_documented_command_is_accepted_by_the_program(command, tmp_path, monkeypatch):
    _, arguments = command
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for name in arguments:  # the parser checks whether a configuration exists
        if name.endswith((".yaml", ".yml")) and "/" not in name:
            (tmp_path / name).write_text("sources: ['line:']\n")
    _, values = parse_arguments(list(arguments))
    for kind, registry in (("source", SOURCES), ("sink", SINKS)):
        given = values.get(kind) or []
        for uri in [given] if isinstance(given, str) else given:
            if not uri.startswith(PLUGINS):
                registry.settings(uri)


@pytest.mark.parametrize(("document", "option", "uri"), INLINE)
def test_documented_address_is_accepted_by_its_registry(document, option, uri):
    (SOURCES if option == "source" else SINKS).settings(uri)


@pytest.mark.parametrize("settings", CONFIGURATIONS)
def test_documented_configuration_is_valid(settings):
    entries = [each["uri"] if isinstance(each, dict) else each for each in settings.get("sinks", [])]
    if not any(uri.startswith(PLUGINS) for uri in entries):
        load_config(settings, "run.yaml")


def test_documented_extras_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert {name for path in DOCUMENTS for name in re.findall(r"--extra ([\w-]+)", path.read_text("utf-8"))} == set(
        extras
    )


@pytest.mark.parametrize("folder", ["commands", "engine", "overlays", "pipeline", "stream", "docs"])
def test_advice_to_install_an_extra_keeps_the_other_extras(folder):
    files = [path for path in (ROOT / folder).rglob("*") if path.suffix in {".py", ".md"}]
    advice = [
        (path.name, line) for path in files for line in re.findall(r"uv sync.*--extra.*", path.read_text("utf-8"))
    ]
    assert advice
    assert [line for line in advice if "--inexact" not in line[1]] == []
