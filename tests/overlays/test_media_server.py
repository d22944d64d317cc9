"""The command of the documentation that pushes a stream to a media server."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.overlays.test_push import rtsp_server
from tests.support.limits import PROGRAM_SECONDS

ROOT = Path(__file__).resolve().parents[2]


def documented_command(server):
    """Return the arguments of the document's command, with the address of this test."""
    text = (ROOT / "docs/integrations/remote.md").read_text(encoding="utf-8")
    [block] = [block for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) if "--sink rtsp" in block]
    command = shlex.split(block.replace("rtsp://127.0.0.1:8554", server))
    assert command[:3] == ["uv", "run", "run.py"]
    return [sys.executable, str(ROOT / "run.py"), *command[3:]]


@pytest.mark.slow
@pytest.mark.rtsp
def test_documented_command_brings_the_drawn_images_to_a_media_server(tmp_path, wait_until):
    images = tmp_path / "images"
    with rtsp_server(images) as (_, port):
        command = [*documented_command(f"rtsp://127.0.0.1:{port}"), "--frames", "2000", "--backend", "eager"]
        with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
            try:
                wait_until(lambda: len(list(images.glob("*.jpg"))) >= 20 or run.poll() is not None)
                assert run.poll() is None, run.stderr.read()
            finally:
                run.terminate()
            output, errors = run.communicate(timeout=PROGRAM_SECONDS)
    assert run.returncode == 0, errors
    assert "images sent" in output
