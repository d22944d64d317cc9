"""The log as a table: equal to the lines of JSON, complete at the end, and readable after a kill."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pq = pytest.importorskip("pyarrow.parquet")

from overlays.records import reader  # noqa: E402
from overlays.records.arrow_schema import SCHEMA, from_row, to_row  # noqa: E402
from overlays.records.replay import BlankFrameSource, LoggedExplainer  # noqa: E402
from overlays.sinks import parquet  # noqa: E402
from overlays.sinks.jsonl import JsonlSink  # noqa: E402
from overlays.sinks.parquet import ParquetSink, parts_of  # noqa: E402
from overlays.sinks.settings import ParquetSettings  # noqa: E402
from overlays.wire.message import explanation_record  # noqa: E402
from pipeline.errors import DataLossError, SinkError, SourceError, WireVersionError  # noqa: E402
from pipeline.frames import Box, Explanation, Finding, Frame, GroundTruth, SignalLoss  # noqa: E402
from tests.overlays.conftest import explain  # noqa: E402
from tests.support.boxes import box, explained_boxes, street  # noqa: E402
from tests.support.limits import PROGRAM_SECONDS  # noqa: E402
from tests.support.logs import log_lines  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
FINITE = st.floats(-1e9, 1e9, allow_nan=False)
EDGE = st.floats(0, 1e4, allow_nan=False).map(abs)


@st.composite
def explanations(draw):
    rows, columns = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    text = st.text(max_size=8)

    def box():
        left, top = draw(EDGE), draw(EDGE)
        return Box(left, top, left + draw(EDGE), top + draw(EDGE))

    truth = (
        GroundTruth(draw(text), tuple(box() for _ in range(draw(st.integers(0, 2))))) if draw(st.booleans()) else None
    )
    pts = draw(st.none() | FINITE)
    frame = Frame(np.zeros((4, 6, 3), np.uint8), draw(text), draw(st.integers(0, 1 << 40)), 1.0, pts, truth)
    findings = tuple(
        Finding(
            draw(text),
            draw(st.floats(0, 1)),
            np.full((rows, columns), draw(st.floats(0, 1, width=32)), np.float32),
            draw(st.integers(-1, 1000)),
            box() if draw(st.booleans()) else None,
        )
        for _ in range(draw(st.integers(0, 3)))
    )
    timings = draw(st.dictionaries(text, FINITE, max_size=3))
    return Explanation(frame, findings, draw(text), draw(text), timings, draw(text), box())


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(explanations(), st.dictionaries(st.just("guard") | st.just("clip_seconds"), FINITE | st.text(), max_size=2))
def test_row_restores_its_record_with_keys_without_a_column(explanation, more):
    import pyarrow as pa

    record = explanation_record(explanation, sent_at_unix=1e9, now_monotonic=2.0) | more
    [row] = pa.Table.from_pylist([to_row(record)], SCHEMA).to_pylist()
    assert from_row(row) == record


@pytest.mark.parametrize("mode", ["keep", "drop"])
def test_table_restores_boxes_with_their_tracks_and_maps(tmp_path, mode):
    import pyarrow as pa

    explanations = [street(9, mode=mode), street(1), explained_boxes(), explained_boxes(box(0, 0, track=None))]
    records = [explanation_record(each, sent_at_unix=1e9, now_monotonic=2.0) for each in explanations]
    pq.write_table(pa.Table.from_pylist([to_row(record) for record in records], SCHEMA), tmp_path / "t.parquet")
    rows = pq.read_table(tmp_path / "t.parquet").to_pylist()
    assert [from_row(row) for row in rows] == records
    heat = rows[0]["findings"][0]["map"]["heat_u8"]
    assert np.abs(np.frombuffer(heat, np.uint8).reshape(9, 16) / 255 - explanations[0].first.heat).max() < 0.002


def test_table_without_tracks_and_maps_of_an_older_version_is_read():
    record = explanation_record(explain(), sent_at_unix=1e9, now_monotonic=2.0)
    row = to_row(record)
    row["findings"] = [{k: v for k, v in each.items() if k not in {"track", "map"}} for each in row["findings"]]
    assert from_row(row) == record


def test_table_has_the_content_of_the_log(tmp_path, overlaid):
    clocks = {"wall_clock": lambda: 1e9, "clock": lambda: 100.0}
    table, lines = tmp_path / "out.parquet", tmp_path / "out.jsonl"
    with ParquetSink(table, **clocks) as sink, JsonlSink(lines, **clocks) as plain:
        assert not sink.needs_image("line")
        for index in range(50):
            overlay = overlaid(index=index, taken_at=99.0, pts_seconds=index / 30, label=f"part {index % 3}")
            for each in (sink, plain):
                each.put(overlay)
                each.put(replace(overlay, signal_loss=SignalLoss(2.0)))
    held = pq.read_table(table)
    assert held.schema.equals(SCHEMA)
    assert [from_row(row) for row in held.to_pylist()] == log_lines(lines)
    assert held.column("label").to_pylist()[:4] == ["part 0", "part 1", "part 2", "part 0"]
    assert not parts_of(table).exists()
    assert {p.name for p in tmp_path.iterdir()} == {"out.parquet", "out.jsonl"}


def test_parts_are_written_at_intervals_and_joined_in_order(tmp_path, overlaid):
    now = [0.0]
    path = tmp_path / "out.parquet"
    with ParquetSink(path, clock=lambda: now[0]) as sink:
        for index in range(120):
            now[0] = float(index)
            sink.put(overlaid(index=index, taken_at=now[0]))
        assert not path.exists()
        assert len(list(parts_of(path).iterdir())) == 10
        assert pq.read_table(parts_of(path)).num_rows == 110, "the folder is a table while it grows"
        now[0] += 11
        sink.idle()
        assert pq.read_table(parts_of(path)).num_rows == 120, "what waits is written though nothing more comes"
    held = pq.ParquetFile(path)
    assert held.read().column("index").to_pylist() == list(range(120))
    assert held.num_row_groups == 1
    held.close()


def test_parts_that_cannot_be_joined_are_reported_and_readable(tmp_path, overlaid):
    path = tmp_path / "out.parquet"
    sink = ParquetSink(path).__enter__()
    sink.put(overlaid(index=5))
    path.mkdir()
    with pytest.raises(DataLossError, match=r"could not be joined .*accept as a table"):
        sink.__exit__(None, None, None)
    assert pq.read_table(parts_of(path)).column("index").to_pylist() == [5]
    assert list(path.iterdir()) == []


def indices(path):
    return pq.read_table(path).column("index").to_pylist()


def test_table_never_replaces_an_earlier_one_within_a_second(tmp_path, overlaid, caplog):
    path = tmp_path / "out.parquet"
    with ParquetSink(path) as sink:
        sink.put(overlaid(index=1))
    before = path.read_bytes()
    with ParquetSink(path):
        pass
    assert path.read_bytes() == before, "a run without an explanation leaves nothing"
    for index in (2, 3):
        with ParquetSink(path, wall_clock=lambda: 1_800_000_000.5) as sink:
            sink.put(overlaid(index=index))
    assert path.read_bytes() == before
    names = ["out.20270115T080000Z.parquet", "out.20270115T080000Z-2.parquet"]
    assert {p.name for p in tmp_path.iterdir()} == {"out.parquet", *names}
    assert [indices(tmp_path / name) for name in names] == [[2], [3]]
    assert f"exists and is kept; this run's table is {names[1]}" in caplog.text


def test_table_is_replaced_on_request_when_the_new_one_is_complete(tmp_path, overlaid, caplog):
    path = tmp_path / "out.parquet"
    with ParquetSink(path) as sink:
        sink.put(overlaid(index=1))
    before = path.read_bytes()
    with ParquetSink(ParquetSettings(uri=str(path), mode="replace")) as sink:
        sink.put(overlaid(index=2))
        assert path.read_bytes() == before
    assert indices(path) == [2]
    assert "mode=replace" in caplog.text


def test_table_has_the_file_name_of_each_photo_and_older_tables_are_read(tmp_path, overlaid):
    path = tmp_path / "out.parquet"
    with ParquetSink(path) as sink:
        for index, name in enumerate(["a/1.jpg", "b/1.jpg", ""]):
            sink.put(overlaid(index=index, source_name=name))
    table = pq.read_table(path)
    assert table.column("source").to_pylist() == ["a/1.jpg", "b/1.jpg", None]
    pq.write_table(table.drop_columns(["source"]), path)
    with LoggedExplainer(path) as logged:
        assert [header.source for header in logged.headers()] == ["", "", ""]


def test_name_too_long_for_its_parts_is_refused_at_start(tmp_path):
    with pytest.raises(SinkError, match="at most 255 bytes"), ParquetSink(tmp_path / f"{'x' * 243}.parquet"):
        pass


KILLED = (
    "import sys, os, signal; sys.path.insert(0, 'tests/overlays'); from conftest import explain\n"
    "from overlays.sinks.parquet import ParquetSink; from pipeline.frames import Overlay; from pathlib import Path\n"
    "now = [0.0]; sink = ParquetSink(Path(sys.argv[1]), clock=lambda: now[0]).__enter__()\n"
    "for i in range(35):\n"
    "    now[0] = float(i); e = explain(index=i, pts_seconds=i / 30); sink.put(Overlay(e.frame.image, e))\n"
    "os.kill(os.getpid(), signal.SIGKILL)"
)


def test_killed_run_leaves_a_table_and_the_next_run_keeps_it(tmp_path, overlaid, caplog):
    path = tmp_path / "out.parquet"
    ended = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=ROOT, check=False, timeout=PROGRAM_SECONDS)
    assert ended.returncode == -signal.SIGKILL
    assert not path.exists()
    left = list(range(33))
    assert pq.read_table(parts_of(path)).column("index").to_pylist() == left
    with LoggedExplainer(parts_of(path)) as explainer:
        assert explainer.line_count == len(left)
    with ParquetSink(path) as sink:
        sink.put(overlaid(index=77))
    [rows] = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert pq.read_table(rows).column("index").to_pylist() == left
    assert pq.read_table(path).column("index").to_pylist() == [77]
    assert str(rows) in caplog.text
    with LoggedExplainer(rows) as explainer:
        assert explainer.line_count == len(left)


def test_torn_part_is_skipped_and_the_others_are_read(tmp_path, overlaid, caplog):
    for number in range(3):
        with ParquetSink(tmp_path / f"part-{number}.parquet") as sink:
            sink.put(overlaid(index=number))
    whole = (tmp_path / "part-1.parquet").read_bytes()
    (tmp_path / "part-1.parquet").write_bytes(whole[: len(whole) // 2])
    with LoggedExplainer(tmp_path) as explainer:
        assert (explainer.line_count, explainer.damaged) == (2, 1)
    assert "part-1.parquet: cannot be read" in caplog.text
    for number in (0, 2):
        (tmp_path / f"part-{number}.parquet").write_bytes(b"torn")
    with pytest.raises(SourceError, match="cannot be read"), LoggedExplainer(tmp_path):
        pass


def test_full_disk_is_logged_and_a_bounded_number_of_rows_waits(tmp_path, overlaid, monkeypatch):
    monkeypatch.setattr(parquet, "_PART_ROWS", 50)
    path = tmp_path / "out.parquet"
    now = [0.0]
    write = pq.write_table
    full = [False]

    def writing(*options, **more):
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(*options, **more)

    monkeypatch.setattr(parquet.pq, "write_table", writing)
    sink = ParquetSink(path, clock=lambda: now[0])
    sink.__enter__()
    for index in range(200):
        now[0] = float(index)
        full[0] = 20 <= index < 100
        sink.put(overlaid(index=index, taken_at=now[0]))
        if index == 60:
            assert "No space left" in sink.problem
    assert sink.problem == ""
    lost = sink.lost
    with pytest.raises(DataLossError, match=f"{lost} rows were not written"):
        sink.__exit__(None, None, None)
    rows = pq.read_table(path).column("index").to_pylist()
    assert rows == sorted(set(range(200)) - set(range(11, 11 + lost)))
    assert 0 < lost < 80


def test_temporary_disk_failure_does_not_close_the_table(tmp_path, overlaid, monkeypatch):
    def writing(*options, **more):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = tmp_path / "out.parquet"
    now = [0.0]
    with ParquetSink(path, clock=lambda: now[0]) as sink:
        for index in range(12):
            now[0] = float(index)
            sink.put(overlaid(index=index))
        monkeypatch.setattr(parquet.pq, "write_table", writing)
        now[0] = 30.0
        sink.put(overlaid(index=12))
        assert "Input/output error" in sink.problem
        monkeypatch.undo()
    assert indices(path) == list(range(13))


def test_path_that_cannot_be_written_is_refused_at_start(tmp_path):
    with pytest.raises(SinkError, match="is a folder"), ParquetSink(tmp_path):
        pass
    with pytest.raises(SinkError, match="mkdir -p"), ParquetSink(tmp_path / "no" / "out.parquet"):
        pass


@pytest.mark.slow
def test_replay_of_a_table_equals_replay_of_the_log(tmp_path, overlaid, monkeypatch):
    monkeypatch.setattr(parquet, "_PART_ROWS", 7)
    monkeypatch.setattr(parquet, "_GROUP_ROWS", 20)
    paths = [tmp_path / "out.parquet", tmp_path / "out.jsonl"]
    with ParquetSink(paths[0]) as table, JsonlSink(paths[1]) as lines:
        for index in range(0, 200, 3):
            heat = np.full((2, 3), index / 255, np.float32)
            facts = {
                "index": index,
                "pts_seconds": index / 30,
                "heat": heat,
                "truth": GroundTruth("x", (Box(1, 2, 3, 4),)),
            }
            for sink in (table, lines):
                sink.put(overlaid(**facts))
                sink.put(overlaid(**facts, camera="other"))
    assert pq.ParquetFile(paths[0]).num_row_groups > 3
    seen = []
    for path in paths:
        with LoggedExplainer(path, "line") as explainer:
            frames = [Frame(np.zeros((48, 64, 3), np.uint8), "line", k, 0.0, k / 30) for k in range(200)]
            explanations = explainer.explain(frames[::-1] + frames)
            seen.append([[(f.label, f.score, f.heat.tobytes()) for f in each.findings] for each in explanations])
            assert explainer.line_count == BlankFrameSource(explainer).frames_total == 67
    assert seen[0] == seen[1]
    assert sum(map(bool, seen[0])) == 134


def test_file_that_is_no_table_is_refused_with_a_message(tmp_path, overlaid):
    path = tmp_path / "out.parquet"
    for content in (b"", b"PAR1", b"no table at all" * 100):
        path.write_bytes(content)
        with pytest.raises(SourceError, match="cannot be read"), LoggedExplainer(path):
            pass
    import pyarrow as pa

    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(SourceError, match=r"--sink FILE\.jsonl"), LoggedExplainer(path):
        pass
    record = explanation_record(explain(), sent_at_unix=0.0, now_monotonic=0.0) | {"version": 2}
    pq.write_table(pa.Table.from_pylist([to_row(record)], SCHEMA), path)
    with pytest.raises(WireVersionError, match="update"), LoggedExplainer(path):
        pass
    (tmp_path / "sub").mkdir()
    with pytest.raises(SourceError, match="holds no explanation"), LoggedExplainer(tmp_path / "sub"):
        pass


def test_damaged_row_is_skipped_and_the_others_are_shown(tmp_path, overlaid):
    import pyarrow as pa

    path = tmp_path / "out.parquet"
    with ParquetSink(path) as sink:
        for number in range(5):
            sink.put(overlaid(index=number))
    rows = pq.read_table(path).to_pylist()
    rows[0]["more"], rows[1]["more"], rows[2]["findings"], rows[3]["camera"] = "{no JSON", "[1]", None, None
    pq.write_table(
        pa.Table.from_pylist(rows, pa.schema([field.with_nullable(nullable=True) for field in SCHEMA])), path
    )
    with LoggedExplainer(path) as logged:
        frames = BlankFrameSource(logged).frames(threading.Event())
        assert [frame.index for frame in frames] == [4]


def test_small_file_that_declares_many_rows_is_never_held_in_memory(tmp_path, overlaid):
    import pyarrow as pa

    path = tmp_path / "out.parquet"
    with ParquetSink(path) as sink:
        sink.put(overlaid(index=1))
    first = pq.read_table(path)
    count = 200_000
    pq.write_table(first.take(pa.array([0] * count, pa.int32())), path, row_group_size=count, compression="zstd")
    assert path.stat().st_size < 1 << 20
    with reader.open_log(path) as opened:
        before = pa.total_allocated_bytes()
        gists = opened.iter_keys()
        assert [next(gists).offset for _ in range(1000)] == list(range(1000))
        assert opened.read_header(700).index == 1
        assert len(opened._buffer.rows) <= 256
        assert pa.total_allocated_bytes() - before < 64 << 20
        gists.close()
        opened._held = None
