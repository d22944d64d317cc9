"""The documents and project files: links resolve, configurations are valid."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import yaml

import overlays.diagnostics
import stream.diagnostics
from commands.wiring.kinds import load_config
from overlays.sinks.registry import SINKS
from pipeline.config_loader import read_yaml
from stream.sources import SOURCES

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").glob("*.md")])
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)")
YAML = ["compose.yaml", "mkdocs.yml", ".pre-commit-config.yaml", *(f".github/workflows/{n}" for n in ("ci.yml",))]


def headings(text: str) -> set[str]:
    """Return the anchors of a document's headings, as GitHub and MkDocs make them."""
    lines = re.findall(r"^#+ +(.*)$", text, re.MULTILINE)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", line.lower()).strip()) for line in lines}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_document_links_resolve(document):
    for target, anchor in LINK.findall(document.read_text(encoding="utf-8")):
        path = (document.parent / target).resolve() if target else document
        assert path.exists(), f"{document.name}: {target} does not exist"
        if anchor and path.suffix == ".md":
            assert anchor in headings(path.read_text(encoding="utf-8")), (
                f"{document.name}: no heading #{anchor} in {target}"
            )


def test_readme_has_at_most_900_words():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


def test_every_document_is_on_the_site():
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    listed = set(re.findall(r"[\w/-]+\.md", str(navigation)))
    assert listed == {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}


@pytest.mark.parametrize("name", YAML)
def test_project_file_is_yaml(name):
    assert isinstance(yaml.safe_load((ROOT / name).read_text(encoding="utf-8")), dict)


def test_container_configuration_is_valid(monkeypatch):
    monkeypatch.setenv("RECIPRO_SOURCE", "rtsp://camera/door")
    text = (ROOT / "deploy" / "stream.yaml").read_text(encoding="utf-8")
    config = load_config(read_yaml(text, "stream.yaml"), "stream.yaml")
    assert [source.uri for source in config.sources] == ["${RECIPRO_SOURCE}"]


def test_extra_of_each_kind_is_declared_pinned_and_named_by_doctor(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    extras = {kind.extra for kind in (*SINKS.kinds, *SOURCES.kinds) if kind.extra}
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert extras <= declared.keys()
    packages = {re.match(r"[\w-]+", entry)[0] for extra in extras for entry in declared[extra]}
    for module in (overlays.diagnostics, stream.diagnostics):
        installed = module.version
        monkeypatch.setattr(
            module, "version", lambda name, own=installed: missing(name) if name in packages else own(name)
        )
    hints = " ".join(each.hint for each in (*overlays.diagnostics.diagnostics(None), *stream.diagnostics.diagnostics()))
    constraints = (ROOT / "justfile").read_text(encoding="utf-8")
    for extra in extras:
        assert f"uv sync --inexact --extra {extra}" in hints
        assert f"--extra {extra}" in constraints


def test_workflow_installs_the_listed_system_packages():
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert "tests/system-packages.txt" in text
    assert "tests/system-packages.txt" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
