from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from overlays.sinks.log import LogSink
from overlays.wire import decode_header
from pipeline.errors import SinkError

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
def test_a_full_disk_is_said_so(overlaid):
    with pytest.raises(SinkError, match="No space left"), LogSink(Path("/dev/full")) as sink:
        sink.put(overlaid())
