"""A disk that is full, as a person meets it: what is said, what is kept, who goes on, which exit code."""

import resource
import subprocess
import sys
from pathlib import Path

import av
import pytest

from tests.support.logs import log_lines

ROOT = Path(__file__).resolve().parents[2]
FRAMES, LIMIT_BYTES = 200, 250_000


@pytest.fixture
def run_where_files_stay_small(tmp_path):
    """Run `stream` over the simulated line where no file grows beyond a limit, as on a full disk."""
    (tmp_path / "free.jsonl").symlink_to("/dev/null")

    def start(*sinks):
        arguments = [sys.executable, str(ROOT / "run.py"), "stream", "--backend", "eager", "--cache", "off"]
        arguments += ["--source", f"line:?fps=30&size=320x240&seed=3&paced=0&frames={FRAMES}"]
        for sink in sinks:
            arguments += ["--sink", sink]
        return subprocess.run(
            arguments, cwd=tmp_path, capture_output=True, text=True, check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, LIMIT_BYTES)),
        )  # fmt: skip

    return start


def test_recording_on_a_full_disk_is_playable_and_other_sinks_continue(run_where_files_stay_small, tmp_path):
    ended = run_where_files_stay_small("out.mp4", "free.jsonl")
    assert ended.returncode == 4, ended.stderr
    assert "out.mp4: the disk is full" in ended.stderr
    assert "frames were not written" in ended.stderr
    assert "File too large" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert f"free.jsonl: {FRAMES} delivered" in ended.stdout
    with av.open(str(tmp_path / "out.mp4")) as held:
        assert 0 < sum(1 for _ in held.decode(video=0)) < FRAMES


def test_log_on_a_full_disk_has_whole_lines_and_counts_the_lost_ones(run_where_files_stay_small, tmp_path):
    ended = run_where_files_stay_small("out.jsonl", "free.jsonl")
    assert ended.returncode == 4, ended.stderr
    assert ended.stderr.count("the disk is full") == 1
    indices = [line["index"] for line in log_lines(tmp_path / "out.jsonl")]
    assert indices == list(range(len(indices)))
    assert f"out.jsonl: {FRAMES - len(indices)} lines were not written" in ended.stderr
    assert f"free.jsonl: {FRAMES} delivered" in ended.stdout
