"""The page's pure modules, in Node: layout, wording, the strip of the last minute."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
STATIC = HERE.parents[1] / "overlays" / "web" / "static"
NOT_LOADED = {
    "area.js",
    "class-heat.js",
    "shape-editor.js",
    "setup.js",
    "setup.css",
    "setup-data.js",
    "setup-rules.js",
    "review.js",
    "review.css",
    "review.html",
    "timeline.js",
    "detail.js",
    "login.html",
    "openapi.json",
}
NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="no node: apt install nodejs")
def test_page_modules_keep_their_laws():
    """``page_modules.mjs`` has the laws, one test each."""
    assert NODE is not None
    run = subprocess.run([NODE, "--test", "page_modules.mjs"], cwd=HERE, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


def test_page_weighs_under_150_kilobytes():
    """Without the review, and the editor, which is loaded when it is opened."""
    assert sum(path.stat().st_size for path in STATIC.iterdir() if path.name not in NOT_LOADED) < 150_000
