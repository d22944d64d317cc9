"""The MCAP file: read back by the reader of Python and by that of JavaScript, whole after any fault."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

pytest.importorskip("mcap_protobuf")
pytest.importorskip("foxglove_schemas_protobuf")

from foxglove_schemas_protobuf.PointsAnnotation_pb2 import PointsAnnotation
from mcap.exceptions import McapError
from mcap.reader import NonSeekingReader, make_reader
from mcap_protobuf.decoder import DecoderFactory

from overlays.sinks.foxglove import mcap_file
from overlays.sinks.foxglove.mcap_file import McapSink
from overlays.sinks.foxglove.messages import explanation_schema
from overlays.sinks.foxglove.outline import outlines
from overlays.sinks.settings import McapSettings
from overlays.wire.header import decode_header
from pipeline.errors import DataLossError, SinkError
from pipeline.frames import Overlay, Region, SignalLoss
from pipeline.guards.state import GuardState
from tests.overlays.conftest import explain
from tests.support.boxes import street
from tests.support.limits import PROGRAM_SECONDS

ROOT = Path(__file__).resolve().parents[2]
CLOCKS = {"wall_clock": lambda: 1_800_000_000.0, "clock": lambda: 100.0}


def messages(path, reader=make_reader):
    """Yield (topic, log time, sequence, decoded message) of a file in its order."""
    with path.open("rb") as file:
        opened = reader(file, decoder_factories=[DecoderFactory()])
        for schema, channel, message in opened.iter_messages(log_time_order=False):
            assert message.log_time == message.publish_time
            data = json.loads(message.data) if channel.message_encoding == "json" else None
            if data is None:
                data = opened._decoder_factories[0].decoder_for(channel.message_encoding, schema)(message.data)
            yield channel.topic, message.log_time, message.sequence, data


def test_file_has_image_heat_annotations_and_record_of_each_frame(tmp_path):
    path = tmp_path / "out.mcap"
    rng = np.random.default_rng(1)
    heats = [rng.random((3, 4), np.float32) for _ in range(5)]
    images = [np.full((48, 64, 3), 40 * index, np.uint8) for index in range(5)]
    explained = [
        explain(image, heat=heat, index=index, taken_at=90.0 + index / 10, camera="a/b")
        for index, (image, heat) in enumerate(zip(images, heats, strict=True))
    ]
    with McapSink(path, **CLOCKS) as sink:
        assert not sink.needs_image("a/b")
        for each in explained:
            overlay = Overlay(each.frame.image, each)
            sink.prepare(overlay)
            sink.put(overlay)
            sink.put(replace(overlay, signal_loss=SignalLoss(2.0)))
    read = list(messages(path))
    assert [topic for topic, *_ in read[:4]] == ["/a/b/image", "/a/b/heat", "/a/b/annotations", "/a/b/explanation"]
    for index, (image, heat) in enumerate(zip(images, heats, strict=True)):
        of_frame = read[4 * index : 4 * index + 4]
        assert {time for _, time, *_ in of_frame} == {round((1_800_000_000 - 10 + index / 10) * 10**9)}
        assert {sequence for _, _, sequence, _ in of_frame} == {index}
        picture, raw, drawn, record = (data for *_, data in of_frame)
        assert (picture.format, picture.frame_id) == ("jpeg", "a/b")
        assert picture.timestamp.ToNanoseconds() == of_frame[0][1]
        decoded = cv2.imdecode(np.frombuffer(picture.data, np.uint8), cv2.IMREAD_COLOR_RGB)
        assert np.abs(decoded.astype(int) - image).max() <= 3
        assert (raw.encoding, raw.width, raw.height, raw.step) == ("32FC1", 4, 3, 16)
        assert raw.data == heat.tobytes(), "the heat is exact to the bit"
        assert [text.text for text in drawn.texts] == ["bottle 0.88"]
        assert decode_header(json.dumps(record).encode()).index == index


def test_boxes_have_their_outline_track_and_exact_map(tmp_path):
    path, explanation = tmp_path / "out.mcap", street(9)
    with McapSink(path) as sink:
        sink.put(Overlay(explanation.frame.image, explanation))
    read = [(topic, data) for topic, _, _, data in messages(path)]
    heats = {data.frame_id: data.data for topic, data in read if topic == "/north/heat"}
    mapped = [finding for finding in explanation.findings if finding.box_map is not None]
    assert heats == {f"north/track/{finding.track}": finding.heat.tobytes() for finding in mapped}
    [drawn] = [data for topic, data in read if topic == "/north/annotations"]
    boxes = [points for points in drawn.points if any(pair.key == "track" for pair in points.metadata)]
    assert [(p.points[0].x, p.points[0].y, p.points[2].x, p.points[2].y) for p in boxes] == [
        pytest.approx(tuple(finding.box)) for finding in explanation.findings
    ]
    assert {p.type for p in drawn.points} == {PointsAnnotation.LINE_LOOP}
    assert len(drawn.points) > len(boxes), "hot cells are outlined"


def test_guards_show_their_region_and_reason(tmp_path):
    explanation = replace(
        explain(),
        guards=(GuardState("door", True, 1.0, "heat_inside(door) 0.2 < 0.5", 1),),
        regions=(Region("door", ((0.0, 0.0), (8.0, 0.0), (8.0, 9.0))),),
    )
    with McapSink(tmp_path / "out.mcap") as sink:
        sink.put(Overlay(explanation.frame.image, explanation))
    [drawn] = [data for topic, *_, data in messages(tmp_path / "out.mcap") if topic.endswith("annotations")]
    assert [text.text for text in drawn.texts] == ["bottle 0.88", "door: heat_inside(door) 0.2 < 0.5"]
    assert [(point.x, point.y) for point in drawn.points[-1].points] == [(0, 0), (8, 0), (8, 9)]


def test_detector_without_boxes_clears_the_annotations(tmp_path):
    explanation = street(0)
    with McapSink(tmp_path / "out.mcap") as sink:
        sink.put(Overlay(explanation.frame.image, explanation))
    read = {topic: data for topic, _, _, data in messages(tmp_path / "out.mcap")}
    assert set(read) == {"/north/image", "/north/annotations", "/north/explanation"}
    assert not read["/north/annotations"].points


def test_stamp_of_the_camera_is_the_log_time(tmp_path):
    explanation = explain()
    frame = replace(explanation.frame, stamp_ns=1_234_567_890_123_456_789)
    with McapSink(tmp_path / "out.mcap") as sink:
        sink.put(Overlay(frame.image, replace(explanation, frame=frame)))
    assert {time for _, time, *_ in messages(tmp_path / "out.mcap")} == {1_234_567_890_123_456_789}


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=7)))
def test_outlines_enclose_the_cells_and_no_others(cells):
    polygons = outlines(cells)
    inside = np.zeros_like(cells)
    for polygon in polygons:
        assert len(polygon) >= 4
        for (x, y), (next_x, next_y) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
            assert (x == next_x) != (y == next_y)
            if x == next_x:  # each crossing to the left of a cell changes its side
                inside[min(y, next_y) : max(y, next_y), x:] ^= True
    assert np.array_equal(inside, cells)


def test_schema_of_records_has_no_references():
    schema = explanation_schema()
    assert "$ref" not in json.dumps(schema)
    assert schema["type"] == "object"
    assert schema["properties"]["findings"]["items"]["properties"]["label"]["type"] == "string"


READ_BY_NODE = """
const {McapStreamReader} = require('@mcap/core');
const fs = require('fs');
const reader = new McapStreamReader();
reader.append(fs.readFileSync(process.argv[2]));
const topics = {}, counts = {}, schemas = {};
for (let record; (record = reader.nextRecord()); ) {
  if (record.type === 'Schema') schemas[record.id] = record.name;
  if (record.type === 'Channel') topics[record.id] = record.topic + ' ' + schemas[record.schemaId];
  if (record.type === 'Message') {
    const topic = topics[record.channelId];
    (counts[topic] ??= []).push(String(record.logTime));
  }
}
console.log(JSON.stringify({counts, done: reader.done()}));
"""


def test_reader_of_javascript_reads_every_message(tmp_path):
    modules = os.environ.get("MCAP_NODE_MODULES", str(ROOT / "node_modules"))
    if shutil.which("node") is None or not (Path(modules) / "@mcap" / "core").is_dir():
        pytest.skip("needs node, and the folder of `npm install @mcap/core` in MCAP_NODE_MODULES")
    with McapSink(tmp_path / "out.mcap", **CLOCKS) as sink:
        for index in range(3):
            explanation = explain(index=index, taken_at=90.0 + index)
            sink.put(Overlay(explanation.frame.image, explanation))
    (tmp_path / "read.js").write_text(READ_BY_NODE)
    done = subprocess.run(
        ["node", "read.js", "out.mcap"],
        cwd=tmp_path, env={**os.environ, "NODE_PATH": modules}, capture_output=True, text=True, check=True,
        timeout=PROGRAM_SECONDS,
    )  # fmt: skip
    times = [str(1_799_999_990_000_000_000 + index * 10**9) for index in range(3)]
    read = json.loads(done.stdout)
    assert read["done"]
    assert read["counts"] == {
        "/line/image foxglove.CompressedImage": times,
        "/line/heat foxglove.RawImage": times,
        "/line/annotations foxglove.ImageAnnotations": times,
        "/line/explanation recipro_stream.Explanation": times,
    }


KILLED = """
import os, signal, sys
from overlays.sinks.foxglove.mcap_file import McapSink
from pipeline.frames import Overlay
from tests.support.boxes import box, explained_boxes

now = [0.0]
with McapSink(sys.argv[1], clock=lambda: now[0]) as sink:
    for index in range(10):
        now[0] = index * 0.5
        explanation = explained_boxes(box(0, 0), index=index, captured_at=now[0])
        sink.put(Overlay(explanation.frame.image, explanation))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_run_leaves_all_complete_chunks(tmp_path):
    path = tmp_path / "out.mcap"
    command = [sys.executable, "-c", KILLED, str(path)]
    done = subprocess.run(command, cwd=ROOT, check=False, timeout=PROGRAM_SECONDS)
    assert done.returncode == -signal.SIGKILL
    frames = [sequence for topic, _, sequence, _ in prefix(path) if topic == "/north/image"]
    assert frames == list(range(9)), "chunks of three frames, a second each"
    before = path.read_bytes()
    with McapSink(path, **CLOCKS) as sink:
        sink.put(Overlay(explain().frame.image, explain()))
    assert path.read_bytes() == before, "a restart keeps the file of the killed run"
    assert len(list(messages(tmp_path / "out.20270115T080000Z.mcap"))) == 4


def prefix(path):
    """Return the messages of a file that may be cut."""
    read = []
    with suppress(McapError, struct.error):  # at the end of a cut file
        read.extend(messages(path, NonSeekingReader))
    return read


def test_cut_file_is_readable_up_to_the_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(mcap_file, "CHUNK_SECONDS", 0.0)
    whole, cut = tmp_path / "whole.mcap", tmp_path / "cut.mcap"
    with McapSink(whole) as sink:
        put_frames(sink, 12)
    content = whole.read_bytes()
    counts = []
    for size in range(0, len(content), len(content) // 9):
        cut.write_bytes(content[:size])
        frames = [sequence for topic, _, sequence, _ in prefix(cut) if topic == "/line/image"]
        assert frames == list(range(len(frames)))
        counts.append(len(frames))
    assert counts == sorted(counts)
    assert counts[-1] >= 9


def put_frames(sink, count, size=(96, 128)):
    rng = np.random.default_rng(0)
    for index in range(count):
        explanation = explain(rng.integers(0, 255, (*size, 3), np.uint8), index=index)
        sink.put(Overlay(explanation.frame.image, explanation))


def test_rotated_files_are_complete_and_stay_within_the_budget(tmp_path, monkeypatch):
    monkeypatch.setattr(mcap_file, "CHUNK_SECONDS", 0.0)
    now = [1_800_000_000.0]
    other = tmp_path / "outer.mcap"
    other.write_bytes(b"x" * (2 << 20))
    settings = McapSettings(uri=str(tmp_path / "out.mcap"), rotate_mib=0.2, disk_budget_mib=1)
    with McapSink(settings, wall_clock=lambda: now[0]) as sink:
        for _ in range(20):
            put_frames(sink, 10)
            now[0] += 1.0
    files = sorted(tmp_path.glob("out.*mcap"))
    assert sum(file.stat().st_size for file in files) <= 1 << 20
    assert len(files) >= 4
    times = sorted({time for file in files for _, time, *_ in messages(file)})
    assert times[0] > 1_800_000_001 * 10**9, "the oldest file goes first; its name may be used again"
    assert times[-1] >= 1_800_000_019 * 10**9 - 10**9
    assert other.exists(), "files of other names are not counted"
    for file in files:
        assert sum(1 for _ in messages(file)) % 4 == 0


def test_full_disk_ends_the_file_at_a_chunk_and_recording_resumes(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(mcap_file, "CHUNK_SECONDS", 0.0)
    now, full = [0.0], [False]
    write = mcap_file.AllOrNothingFile.write

    def refusing(self, chunk):
        if full[0]:
            write(self, chunk[: len(chunk) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, chunk)

    monkeypatch.setattr(mcap_file.AllOrNothingFile, "write", refusing)
    path = tmp_path / "out.mcap"
    with pytest.raises(DataLossError, match=r"3 frames were not written.*disk was full"):  # noqa: PT012, SIM117
        with McapSink(path, clock=lambda: now[0], wall_clock=lambda: 1_800_000_000.0) as sink:
            put_frames(sink, 4)
            full[0] = True
            put_frames(sink, 2)
            assert "the disk is full" in sink.problem
            now[0] = 1.5
            put_frames(sink, 1)
            assert len(caplog.records) == 1, "a further attempt that fails is not logged"
            full[0], now[0] = False, 10.0
            put_frames(sink, 5)
            assert sink.problem == ""
    assert [sequence for topic, _, sequence, _ in prefix(path) if topic == "/line/image"] == [0, 1, 2, 3]
    resumed = tmp_path / "out.20270115T080000Z.mcap"
    assert [sequence for topic, _, sequence, _ in messages(resumed) if topic == "/line/image"] == list(range(5))
    assert sorted(tmp_path.iterdir()) == sorted([path, resumed]), "a file without a chunk is removed"


def test_mode_replace_replaces_the_file(tmp_path):
    path = tmp_path / "out.mcap"
    for count in (3, 1):
        with McapSink(McapSettings(uri=str(path), mode="replace")) as sink:
            put_frames(sink, count)
    assert len(list(messages(path))) == 4
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folder_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(SinkError, match="mkdir -p"), McapSink(tmp_path / "no" / "out.mcap"):
        pass


def test_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    from overlays.sinks.registry import build_sink

    monkeypatch.delitem(sys.modules, "overlays.sinks.foxglove.mcap_file")
    monkeypatch.setitem(sys.modules, "mcap.writer", None)
    with pytest.raises(SinkError, match=r"needs mcap.*: uv sync --inexact --extra mcap"):
        build_sink("out.mcap")
