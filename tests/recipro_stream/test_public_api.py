"""The declared API: small, documented, typed, and cheap to import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import recipro_stream
from tests.support.limits import PROGRAM_SECONDS

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "recipro_stream" / "__init__.py"


def test_public_api_has_at_most_fifteen_names():
    assert 0 < len(recipro_stream.__all__) <= 15
    assert recipro_stream.__all__ == sorted(recipro_stream.__all__)


@pytest.mark.parametrize("name", recipro_stream.__all__)
def test_public_name_is_importable_and_documented(name):
    value = getattr(recipro_stream, name)
    assert name == "__version__" or (value.__doc__ or "").strip()


def test_public_api_gives_type_checkers_the_names_it_gives_at_run_time():
    tree = ast.parse(MODULE.read_text(encoding="utf-8"))
    typed = {
        alias.asname or alias.name
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed | {"__version__"} == set(recipro_stream.__all__)
    assert (MODULE.parent / "py.typed").exists()


def test_public_api_refuses_an_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'recipro_camm'"):
        _ = recipro_stream.recipro_camm


def test_viewer_is_imported_without_torch():
    code = "import sys, recipro_stream; recipro_stream.Viewer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=PROGRAM_SECONDS).returncode == 0
