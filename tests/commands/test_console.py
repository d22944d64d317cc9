"""Console output: failures of the terminal end nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_print_line_continues_when_standard_output_fails():
    program = (
        "from commands.console import print_line; print_line('one'); print_line('two'); open(0, 'w').write('done')"
    )
    with Path("/dev/full").open("wb") as full:
        read, write = os.pipe()
        with os.fdopen(read) as result, os.fdopen(write) as door:
            ended = subprocess.run(
                [sys.executable, "-c", program], cwd=ROOT, stdin=door, stdout=full, stderr=subprocess.PIPE, check=False
            )
            assert (ended.returncode, result.read(4)) == (0, "done")
    assert ended.stderr.count(b"standard output cannot be written (No space left on device)") == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere files have names that are text")
@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii"])
def test_command_continues_with_a_name_the_terminal_cannot_show(tmp_path, encoding):
    arguments = [sys.executable, ROOT / "run.py", "keys", "new", os.fsdecode(b"\xff\xe6\xbc\xa2")]
    ended = subprocess.run(
        arguments, cwd=tmp_path, env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert rb"\udcff" in ended.stdout
