"""The command line where a library is missing or broken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# None in sys.modules makes an import fail, as a missing package does.
WITHOUT = """
import sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None
sys.argv = ["run.py", *sys.argv[2:]]
import run
run.main()
"""
VENDORS = "cv2,torch,torchvision,av,zmq,openvino,starlette,uvicorn,PIL,pi_heif,prometheus_client,pygame,pyarrow,timm"


def test_doctor_reports_the_packages_of_this_machine(command):
    code, printed, errors = command("doctor")
    assert (code, errors) == (0, "")
    assert "cannot be loaded" not in printed
    names = {line[4:26].strip() for line in printed.splitlines() if line.startswith(("ok ", "-- "))}
    assert {"processor", "torch", "decoders", "ZeroMQ"} <= names


@pytest.mark.slow
def test_doctor_lists_missing_libraries_and_ends_without_error():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, VENDORS, "doctor"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    missing = [line for line in done.stdout.splitlines() if line.startswith("-- ")]
    assert [line.split()[1] for line in missing] == ["engine", "stream", "overlays"]
    assert done.stdout.count("run `uv sync`") == 3


@pytest.mark.slow
def test_command_with_missing_library_fails_with_one_line():
    command = [sys.executable, "-c", WITHOUT, "cv2", "stream", "--source", "line:", "--frames", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: a library cannot be loaded (import of cv2 halted")
    assert "run.py doctor" in done.stderr
    assert len(done.stderr.splitlines()) == 1
