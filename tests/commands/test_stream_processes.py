"""`run.py stream` and `view` as processes: imports, signals and two programs together."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.limits import PROGRAM_SECONDS
from tests.support.logs import log_lines
from tests.support.videos import frames_of

ROOT = Path(__file__).resolve().parents[2]


def start(folder, *arguments):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


def wait_for_file(path, bytes_=1, seconds=PROGRAM_SECONDS):
    deadline = time.monotonic() + seconds
    while not (path.exists() and path.stat().st_size >= bytes_):
        assert time.monotonic() < deadline, f"{path.name} did not come"
        time.sleep(0.05)


@pytest.mark.slow
def test_commands_without_a_network_do_not_import_torch():
    commands = [["--help"], ["stream", "--help"], ["stream", "--source", "line:", "--print-config"]]
    program = (
        "import sys, run\n"
        f"for words in {commands!r}:\n"
        "    sys.argv = ['run.py', *words]\n"
        "    try: run.main()\n"
        "    except SystemExit: pass\n"
        "    assert 'torch' not in sys.modules and 'cv2' not in sys.modules, words"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage") == 2
    assert "sources" in done.stdout


@pytest.mark.slow
def test_interrupted_recording_is_closed_and_playable(tmp_path):
    # A video repeats the last frame of a live camera that is silent, on a slow machine too: this source is not live.
    source = ("--source", "line:?fps=30&size=320x240&seed=3&paced=0", "--backend", "eager")
    with start(tmp_path, "stream", *source, "--sink", "out.mp4", "--sink", "out.jsonl") as running:
        wait_for_file(tmp_path / "out.jsonl", 20_000)
        running.send_signal(signal.SIGINT)
        output, _ = running.communicate(timeout=PROGRAM_SECONDS)
    assert running.returncode == 0, output
    count = len(log_lines(tmp_path / "out.jsonl"))
    assert len(frames_of(tmp_path / "out.mp4")) == count > 0


@pytest.mark.slow
def test_view_shows_a_stream_of_another_process_that_ends_in_order(command, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    source = ("--source", "line:?fps=15&size=320x240&paced=0", "--backend", "eager")
    with start(tmp_path, "stream", *source, "--sink", address, "--sink", "out.mp4", "--sink", "out.jsonl") as running:
        code, _, errors = command("view", address, "--sink", "seen.mp4", "--sink", "seen.jsonl", "--frames", "20")
        running.send_signal(signal.SIGTERM)
        output, _ = running.communicate(timeout=PROGRAM_SECONDS)
    assert code == 0, errors
    assert running.returncode == 0, output
    assert len(frames_of(tmp_path / "out.mp4")) == len(log_lines(tmp_path / "out.jsonl")) >= 20
    assert len(log_lines(tmp_path / "seen.jsonl")) == 20
    assert len(frames_of(tmp_path / "seen.line.mp4")) >= 20  # and repeated ones, where a frame came late
    lines = log_lines(tmp_path / "seen.jsonl")
    assert {line["model"] for line in lines} == {"line_net"}
    indices = [line["index"] for line in lines]
    assert indices == sorted(set(indices))
