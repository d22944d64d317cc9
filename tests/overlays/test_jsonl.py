from __future__ import annotations

import errno
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

from overlays.sinks.jsonl import JsonlSink
from overlays.sinks.settings import JsonlSettings
from overlays.wire.header import decode_header
from pipeline.errors import DataLossError, SinkError
from pipeline.settings import SinkContext
from tests.support.limits import PROGRAM_SECONDS
from tests.support.logs import log_lines, run_lines

ROOT = Path(__file__).resolve().parents[2]


def indices(path):
    return [line["index"] for line in log_lines(path)]


def test_log_line_is_a_wire_header_with_heat_and_without_image(tmp_path, overlaid):
    path = tmp_path / "out.jsonl"
    with JsonlSink(path) as sink:
        assert not sink.needs_image("line")
        for index in range(3):
            sink.put(overlaid(index=index, camera="日本"))
    run, *lines = path.read_text(encoding="utf-8").splitlines()
    assert json.loads(run).keys() == {"version", "run"}
    assert [json.loads(line)["index"] for line in lines] == [0, 1, 2]
    header = decode_header(lines[1].encode())
    assert header.camera == "日本"
    assert header.encoding == ""
    assert header.findings[0].label == "bottle"
    assert np.abs(header.findings[0].heat - np.linspace(0, 1, 12).reshape(3, 4)).max() <= 0.5 / 255 + 1e-6


def test_log_line_is_on_disk_when_put_returns(tmp_path, overlaid):
    path = tmp_path / "out.jsonl"
    with JsonlSink(path) as sink:
        sink.put(overlaid())
        assert path.read_bytes().endswith(b"}\n")


def test_killed_run_leaves_whole_lines(tmp_path):
    path = tmp_path / "out.jsonl"
    code = (
        "import sys, os, signal; sys.path.insert(0, 'tests/overlays'); from conftest import explain\n"
        "from overlays.sinks.jsonl import JsonlSink; from pipeline.frames import Overlay; from pathlib import Path\n"
        "sink = JsonlSink(Path(sys.argv[1])).__enter__()\n"
        "for i in range(50): e = explain(index=i); sink.put(Overlay(e.frame.image, e))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=False, timeout=PROGRAM_SECONDS)
    assert ended.returncode == -signal.SIGKILL
    assert indices(path) == list(range(50))


def test_log_is_continued_by_each_run_with_a_run_record(tmp_path, overlaid):
    path = tmp_path / "out.jsonl"
    old = json.dumps({"version": 1, "camera": "old", "index": 7}) + "\n"
    path.write_text(old)
    with JsonlSink(path):
        pass
    assert path.read_text() == old, "a run without an explanation leaves nothing"
    for number, cameras in enumerate([("line",), ("line", "door")]):
        with JsonlSink(path, SinkContext(cameras=cameras), wall_clock=lambda: 1_800_000_000.25) as sink:
            for index in range(2):
                sink.put(overlaid(index=10 * number + index, camera=cameras[-1]))
    assert path.read_text().startswith(old)
    assert indices(path) == [7, 0, 1, 10, 11]
    first, second = run_lines(path)
    assert (first["run"]["cameras"], second["run"]["cameras"]) == (["line"], ["line", "door"])
    assert first["run"]["id"] != second["run"]["id"]
    assert first["run"]["began_at_unix"] == 1_800_000_000.25
    with JsonlSink(tmp_path / "never.jsonl"):
        pass
    assert not (tmp_path / "never.jsonl").exists()


def test_log_is_replaced_on_request_with_a_message(tmp_path, overlaid, caplog):
    path = tmp_path / "out.jsonl"
    path.write_text("{}\n" * 5)
    with JsonlSink(JsonlSettings(uri=str(path), mode="replace")) as sink:
        assert path.read_text() == "{}\n" * 5, "not before the first line comes"
        for index in range(3):
            sink.put(overlaid(index=index))
    assert indices(path) == [0, 1, 2]
    assert "15 bytes of earlier runs are replaced" in caplog.text


@pytest.mark.parametrize("torn", [b'{"version":1,"cam', b"\0" * 300, b"{" * 70_000, b'{"a":"\xc3'])
def test_truncated_line_is_moved_aside_before_appending(tmp_path, overlaid, torn, caplog):
    path = tmp_path / "out.jsonl"
    whole = b'{"version":1,"index":5}\n'
    for _ in range(2):
        path.write_bytes(whole + torn)
        with JsonlSink(path) as sink:
            sink.put(overlaid(index=6))
    assert path.read_bytes().startswith(whole + b'{"version":1,"run"')
    assert indices(path) == [5, 6]
    assert (tmp_path / "out.jsonl.partial").read_bytes() == (torn + b"\n") * 2
    assert "out.jsonl.partial" in caplog.text


def test_last_line_without_line_feed_gets_one(tmp_path, overlaid):
    path = tmp_path / "out.jsonl"
    path.write_bytes(b'{"version":1,"index":5}')
    with JsonlSink(path) as sink:
        sink.put(overlaid(index=6))
    assert indices(path) == [5, 6]
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_truncated_line_is_not_moved_through_a_planted_link(tmp_path, overlaid):
    path, diary = tmp_path / "out.jsonl", tmp_path / "diary"
    diary.write_text("precious")
    (tmp_path / "out.jsonl.partial").symlink_to(diary)
    path.write_bytes(b'{"half')
    sink = JsonlSink(path).__enter__()
    sink.put(overlaid())
    assert sink.lost == 1
    with pytest.raises(DataLossError):
        sink.__exit__(None, None, None)
    assert (diary.read_text(), path.read_bytes()) == ("precious", b'{"half')


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOENT, errno.EACCES, errno.EMFILE, errno.ESTALE])
def test_disk_errors_never_close_the_log_and_each_is_reported(tmp_path, overlaid, code, monkeypatch):
    now, failing = [0.0], [False]
    write = JsonlSink._write

    def writing(self, line):
        if failing[0]:
            raise OSError(code, os.strerror(code))
        write(self, line)

    monkeypatch.setattr(JsonlSink, "_write", writing)
    path = tmp_path / "out.jsonl"
    sink = JsonlSink(path, clock=lambda: now[0]).__enter__()
    for index in range(3):
        failing[0] = index == 1
        sink.put(overlaid(index=index))
        assert bool(sink.problem) is failing[0]
        assert not failing[0] or os.strerror(code) in sink.problem
        assert "the disk is full" not in sink.problem
        now[0] += 1.5
    with pytest.raises(DataLossError, match=f"1 lines were not written: .*{os.strerror(code)}"):
        sink.__exit__(None, None, None)
    assert indices(path) == [0, 2]


def test_log_continues_when_its_folder_returns(tmp_path, overlaid):
    now, folder = [0.0], tmp_path / "disk"
    folder.mkdir()
    sink = JsonlSink(folder / "out.jsonl", clock=lambda: now[0]).__enter__()
    sink.put(overlaid(index=0))
    folder.rename(tmp_path / "away")
    sink.put(overlaid(index=1))
    assert "its folder no longer exists" in sink.problem
    (tmp_path / "away").rename(folder)
    now[0] += 1.5
    sink.put(overlaid(index=2))
    assert not sink.problem
    with pytest.raises(DataLossError):
        sink.__exit__(None, None, None)
    assert indices(folder / "out.jsonl") == [0, 2]


def test_log_of_photos_has_each_file_name_even_if_not_utf8(tmp_path, overlaid):
    path, names = tmp_path / "out.jsonl", ["a/1.jpg", "b/1.jpg", os.fsdecode(b"c\xff.jpg"), os.fsdecode(b"c\xfe.jpg")]
    with JsonlSink(path) as sink:
        for index, name in enumerate(names):
            sink.put(overlaid(index=index, source_name=name))
        sink.put(overlaid(index=9))
    values = [line.get("source") for line in log_lines(path)]
    assert values == ["a/1.jpg", "b/1.jpg", "c\\udcff.jpg", "c\\udcfe.jpg", None]
    lines = path.read_bytes().splitlines()[1:]
    assert [decode_header(line).source for line in lines] == [name or "" for name in values]


def test_path_that_cannot_be_written_is_refused_at_start(tmp_path):
    with pytest.raises(SinkError, match="is a folder"), JsonlSink(tmp_path):
        pass
    with (
        pytest.raises(SinkError, match="does not exist; create it: mkdir -p"),
        JsonlSink(tmp_path / "no" / "out.jsonl"),
    ):
        pass
    (tmp_path / "plain").touch()
    with (
        pytest.raises(SinkError, match=r"plain is a file, not a folder; choose another path"),
        JsonlSink(tmp_path / "plain/below/out.jsonl"),
    ):
        pass
    with pytest.raises(SinkError, match="cannot be written"), JsonlSink(Path("/proc/out.jsonl")):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_logged_once_counted_and_reported_at_the_end(overlaid, caplog):
    sink = JsonlSink(Path("/dev/full")).__enter__()
    for index in range(3):
        sink.put(overlaid(index=index))
    assert (sink.lost, "No space left" in sink.problem) == (3, True)
    with pytest.raises(DataLossError, match="3 lines were not written"):
        sink.__exit__(None, None, None)
    assert len([r for r in caplog.records if "the disk is full" in r.getMessage()]) == 1


@contextmanager
def room_for(size):
    """Let no file of this process grow beyond so many bytes, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_log_continues_without_torn_lines_when_there_is_space_again(tmp_path, overlaid, caplog):
    path, now = tmp_path / "out.jsonl", [0.0]
    sink = JsonlSink(path, clock=lambda: now[0]).__enter__()
    sink.put(overlaid(index=0))
    with room_for(path.stat().st_size + 100):
        for index in (1, 2):
            sink.put(overlaid(index=index))
    sink.put(overlaid(index=3))  # too soon: it is not asked
    now[0] += 1.5
    sink.put(overlaid(index=4))
    with pytest.raises(DataLossError, match="3 lines"):
        sink.__exit__(None, None, None)
    assert indices(path) == [0, 4]
    assert [r.getMessage().split(":")[1][:20] for r in caplog.records] == [
        " the disk is full (F",
        " there is space agai",
    ]


def test_rotated_log_loses_no_line(tmp_path, overlaid):
    path, moved, now = tmp_path / "out.jsonl", tmp_path / "moved.jsonl", [0.0]
    sink = JsonlSink(path, clock=lambda: now[0]).__enter__()
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
    with pytest.raises(DataLossError, match="1 lines"):
        sink.__exit__(None, None, None)
    assert indices(path) == [6]


def test_closed_pipe_closes_the_log(tmp_path, overlaid):
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with JsonlSink(pipe) as sink:
        sink.put(overlaid())
        os.close(reader)
        with pytest.raises(SinkError, match="Broken pipe"):
            sink.put(overlaid())
