from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from overlays.sinks.log import LogSink
from overlays.wire import decode_header
from pipeline.errors import LossError, SinkError

ROOT = Path(__file__).resolve().parents[2]


def test_a_line_is_a_header_of_the_wire_with_the_heat_and_without_a_picture(tmp_path, overlaid):
    path = tmp_path / "out.jsonl"
    with LogSink(path) as sink:
        assert not sink.needs_picture("line")
        for index in range(3):
            sink.put(overlaid(index=index, camera="日本"))
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["index"] for line in lines] == [0, 1, 2]
    header = decode_header(lines[1].encode())
    assert header.camera == "日本"
    assert header.encoding == ""
    assert header.findings[0].label == "bottle"
    assert np.abs(header.findings[0].heat - np.linspace(0, 1, 12).reshape(3, 4)).max() <= 0.5 / 255 + 1e-6


def test_every_line_is_on_disk_when_put_returns(tmp_path, overlaid):
    path = tmp_path / "out.jsonl"
    with LogSink(path) as sink:
        sink.put(overlaid())
        assert path.read_bytes().endswith(b"}\n")


def test_a_killed_run_leaves_whole_lines(tmp_path):
    path = tmp_path / "out.jsonl"
    code = (
        "import sys, os, signal; sys.path.insert(0, 'tests/overlays'); from conftest import explain\n"
        "from overlays.sinks.log import LogSink; from pipeline.frames import Overlay; from pathlib import Path\n"
        "sink = LogSink(Path(sys.argv[1])).__enter__()\n"
        "for i in range(50): e = explain(index=i); sink.put(Overlay(e.frame.image, e))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == list(range(50))


def test_an_old_log_is_kept_until_the_first_line_comes(tmp_path, overlaid):
    path = tmp_path / "out.jsonl"
    path.write_text("old\n")
    with LogSink(path):
        pass
    assert path.read_text() == "old\n"
    with LogSink(path) as sink:
        sink.put(overlaid())
    assert "old" not in path.read_text()
    with LogSink(tmp_path / "never.jsonl"):
        pass
    assert not (tmp_path / "never.jsonl").exists()


def test_a_place_that_cannot_be_written_is_refused_at_the_door(tmp_path):
    with pytest.raises(SinkError, match="is a folder"), LogSink(tmp_path):
        pass
    with pytest.raises(SinkError, match="does not exist; create it: mkdir -p"), LogSink(tmp_path / "no" / "out.jsonl"):
        pass
    with pytest.raises(SinkError, match="cannot be written"), LogSink(Path("/proc/out.jsonl")):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_said_once_counted_and_told_at_the_end(overlaid, caplog):
    sink = LogSink(Path("/dev/full")).__enter__()
    for index in range(3):
        sink.put(overlaid(index=index))
    assert (sink.lost, "No space left" in sink.trouble) == (3, True)
    with pytest.raises(LossError, match="3 lines were not written"):
        sink.__exit__(None, None, None)
    assert len([r for r in caplog.records if "takes no more" in r.getMessage()]) == 1


@contextmanager
def room_for(size):
    """Let no file of this process grow beyond so many bytes, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_when_there_is_room_again_lines_go_on_and_none_is_torn(tmp_path, overlaid, caplog):
    path, now = tmp_path / "out.jsonl", [0.0]
    sink = LogSink(path, clock=lambda: now[0]).__enter__()
    sink.put(overlaid(index=0))
    with room_for(path.stat().st_size + 100):
        for index in (1, 2):
            sink.put(overlaid(index=index))
    sink.put(overlaid(index=3))  # too soon: it is not asked
    now[0] += 1.5
    sink.put(overlaid(index=4))
    with pytest.raises(LossError, match="3 lines"):
        sink.__exit__(None, None, None)
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == [0, 4]
    assert [r.getMessage().split(":")[1][:20] for r in caplog.records] == [
        " the disk takes no m",
        " there is room again",
    ]


def indices(path):
    return [json.loads(line)["index"] for line in path.read_text().splitlines()]


def test_a_log_that_is_rotated_goes_on_whole_whichever_way(tmp_path, overlaid):
    path, moved, now = tmp_path / "out.jsonl", tmp_path / "moved.jsonl", [0.0]
    sink = LogSink(path, clock=lambda: now[0]).__enter__()
    sink.put(overlaid(index=0))
    path.rename(moved)
    sink.put(overlaid(index=1))
    sink.put(overlaid(index=2))
    os.truncate(path, 0)
    sink.put(overlaid(index=3))
    with room_for(path.stat().st_size + 100):
        sink.put(overlaid(index=4))
    assert (indices(moved), indices(path)) == ([0], [3]), "what is torn is cut off where the file ends now"
    moved.replace(path)
    now[0] += 1.5
    sink.put(overlaid(index=5))
    assert indices(path) == [0, 5]
    path.unlink()
    sink.put(overlaid(index=6))
    with pytest.raises(LossError, match="1 lines"):
        sink.__exit__(None, None, None)
    assert indices(path) == [6]


def test_a_reader_that_is_gone_closes_the_log(tmp_path, overlaid):
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with LogSink(pipe) as sink:
        sink.put(overlaid())
        os.close(reader)
        with pytest.raises(SinkError, match="Broken pipe"):
            sink.put(overlaid())
