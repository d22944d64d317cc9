"""A full disk: the messages, the files that remain, the sinks that continue and the exit code."""

import re
import resource
import sys

import av
import pytest

from tests.support.logs import log_lines

FRAMES, LIMIT_BYTES = 200, 250_000


@pytest.fixture
def run_where_files_stay_small(command, caplog, monkeypatch, tmp_path):
    """Run `stream` over the simulated line where no file grows beyond a limit, as on a full disk.

    Returns its exit code, its output, and its log with its errors.
    """
    (tmp_path / "free.jsonl").symlink_to("/dev/null")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # CPython 3.11 keeps a bytecode file that was cut off
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def start(*sinks: str) -> tuple[int, str, str]:
        arguments = ["stream", "--backend", "eager", "--cache", "off"]
        arguments += ["--source", f"line:?fps=30&size=320x240&seed=3&paced=0&frames={FRAMES}"]
        for sink in sinks:
            arguments += ["--sink", sink]
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, hard))
        try:
            code, output, errors = command(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        return code, output, caplog.text + errors

    return start


@pytest.mark.slow
def test_recording_on_a_full_disk_is_playable_and_other_sinks_continue(run_where_files_stay_small, tmp_path):
    pytest.importorskip("mcap")
    code, output, errors = run_where_files_stay_small("out.mp4", "out.mcap", "free.jsonl")
    assert code == 4, errors
    for name in ("out.mp4", "out.mcap"):
        assert f"{name}: the disk is full" in errors
        assert re.search(rf"{name}: \d+ frames were not written", errors), "each sink reports its own losses"
        assert re.search(rf"{name}: \d+ frames not written, 0 dropped", output), "the summary claims no delivery"
    assert "was moved or deleted" not in errors, "a file without a complete chunk is removed by the sink itself"
    assert "File too large" in errors
    assert "Traceback" not in errors
    assert f"free.jsonl: {FRAMES} delivered" in output
    with av.open(str(tmp_path / "out.mp4")) as held:
        assert 0 < sum(1 for _ in held.decode(video=0)) < FRAMES


@pytest.mark.slow
def test_log_on_a_full_disk_has_whole_lines_and_counts_the_lost_ones(run_where_files_stay_small, tmp_path):
    code, output, errors = run_where_files_stay_small("out.jsonl", "free.jsonl")
    assert code == 4, errors
    assert errors.count("the disk is full") == 1
    indices = [line["index"] for line in log_lines(tmp_path / "out.jsonl")]
    assert indices == list(range(len(indices)))
    assert f"out.jsonl: {FRAMES - len(indices)} lines were not written" in errors
    assert f"free.jsonl: {FRAMES} delivered" in output
