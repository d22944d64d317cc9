"""Parts and crossings on images, in logs, in tables and on the wire."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import zmq

from overlays.render.passages import passage_explanation, passage_image
from overlays.render.places import draw_places, place_lines
from overlays.render.renderer import HeatRenderer
from overlays.sinks.jsonl import JsonlSink
from overlays.sinks.zeromq import ZeroMqSink
from overlays.wire.header import decode_header
from overlays.wire.message import as_overlay, decode_message, encode, encode_passage
from overlays.wire.viewer import Viewer
from pipeline.frames import Box, Overlay, SignalLoss
from pipeline.passages.passage import Place, PlaceCount
from tests.support.detections import detection, detection_frame, detections, heat_at
from tests.support.limits import LIMIT_SECONDS
from tests.support.logs import log_lines
from tests.support.passages import part, with_passages
from tests.support.viewers import ANY, first, joined

ZONE = Place(
    "zone", "station", ((40.0, 10.0), (120.0, 10.0), (120.0, 110.0), (40.0, 110.0)),
    (PlaceCount("ok", "", True, 12), PlaceCount("dent", "", False, 2)), 1,
)  # fmt: skip
LINE = Place(
    "line", "gate", ((80.0, 100.0), (80.0, 20.0)),
    (PlaceCount("car", "forward", None, 3), PlaceCount("bus", "forward", None, 5),
     PlaceCount("car", "backward", None, 4)),
)  # fmt: skip


def overlay(index=0, *passages, places=(), recent=()):
    explanation = with_passages(detections(detection_frame(index)), *passages, places=places)
    if recent:
        explanation = replace(explanation, recent_passages=recent)
    return Overlay(explanation.frame.image, explanation)


def test_place_lines_have_counts_by_class_and_direction():
    assert place_lines(ZONE) == ["station: 14 · 2 rejected"]
    assert place_lines(LINE) == ["gate", "→ 5 bus · 3 car", "← 4 car"]
    assert place_lines(replace(ZONE, counts=(PlaceCount("car", "", None, 3),))) == ["station: 3"]
    assert place_lines(replace(LINE, counts=())) == ["gate: 0"]


def test_renderer_draws_zones_and_lines_where_they_are():
    image = HeatRenderer(legend=False).render(overlay(places=(ZONE, LINE)).explanation).image
    coloured = (image[..., 0] > 120) & (image[..., 2] < 60)  # lines are antialiased
    assert coloured[60, 40]
    assert coloured[60, 120]
    assert coloured[25, 80]
    # The line goes upwards, so forward is to the right: the arrow's tip is there.
    assert coloured[60, 82:100].any()
    assert not coloured[60, 65:78].any()


@pytest.mark.parametrize("size", [(8, 8), (20, 300), (1080, 1920)])
def test_places_are_drawn_on_images_of_any_size(size):
    image = np.zeros((*size, 3), np.uint8)
    draw_places(image, overlay(places=(ZONE, LINE, replace(LINE, points=((-1e9, 5.0), (1e9, 5.0))))).explanation)
    assert image.any()


def test_texts_of_places_do_not_cover_each_other():
    image = np.zeros((120, 320, 3), np.uint8)
    draw_places(image, overlay(places=(replace(ZONE, name="a"),)).explanation)
    alone = int((image != 0).any(axis=2).sum())
    twice = np.zeros((120, 320, 3), np.uint8)
    draw_places(twice, overlay(places=(replace(ZONE, name="a"), replace(ZONE, name="a"))).explanation)
    assert int((twice != 0).any(axis=2).sum()) > alone


def test_log_has_each_part_once_also_of_a_frame_that_was_lost(tmp_path):
    with JsonlSink(tmp_path / "out.jsonl") as sink:
        sink.put(overlay(0))
        sink.put(overlay(1, part(1)))
        sink.put(overlay(3, recent=(part(1), part(2))))  # part 2 was finished at frame 2, which is lost
        sink.put(replace(overlay(3, part(2)), signal_loss=SignalLoss(2.0)))
        sink.put(overlay(4, recent=(part(1), part(2))))
    lines = log_lines(tmp_path / "out.jsonl")
    assert [[each["sequence"] for each in line.get("passages", ())] for line in lines] == [[], [1], [2], []]
    [record] = lines[1]["passages"]
    assert (record["kind"], record["place"], record["label"], record["is_ok"]) == ("part", "station", "ok", True)
    assert record["shares"] == {"ok": 0.75, "dent": 0.25}
    assert "places" not in lines[1]


def test_table_has_the_parts_of_the_log(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    from overlays.records.arrow_schema import SCHEMA, from_row, to_row
    from overlays.sinks.parquet import ParquetSink

    with ParquetSink(tmp_path / "out.parquet") as sink:
        sink.put(overlay(0))
        sink.put(overlay(1, part(1), part(2, is_ok=None, evidence_outside_box=None)))
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert rows[0]["passages"] is None
    assert [each["is_ok"] for each in rows[1]["passages"]] == [True, None]
    parts = part(1), part(2, trial_label="dent")
    record = json.loads(encode(overlay(1, *parts), sent_at_unix=9.0, now_monotonic=9.0)[1])
    assert ["trial_label" in each for each in record["passages"]] == [False, True]
    [row] = pa.Table.from_pylist([to_row(record)], SCHEMA).to_pylist()
    assert from_row(row)["passages"] == record["passages"]


def test_header_carries_passages_and_places():
    [_, packed, _] = encode(overlay(1, part(7), places=(ZONE, LINE)), sent_at_unix=100.0, now_monotonic=2.0)
    header = decode_header(packed)
    assert (header.passages[0].sequence, header.passages[0].last_seen_at_unix) == (7, 99.5)
    received = as_overlay(header, np.zeros((120, 160, 3), np.uint8), now_unix=0.0, now_monotonic=0.0).explanation
    assert received.places == (ZONE, LINE)


def test_part_message_is_a_frame_of_version_1_with_box_and_heat_in_its_image():
    box = Box(20.0, 30.0, 60.0, 70.0)
    finding = detection(box, heat=heat_at(box), label="ok")
    passage = part(3, finding=finding, image=np.full((60, 60, 3), 90, np.uint8), image_box=Box(10.0, 20.0, 70.0, 80.0))
    message = encode_passage(passage, overlay().explanation, (50.0, 2.0))
    header, _ = decode_message(message)
    assert (message[0], header.camera, header.index) == (b"parts/road", "parts/road", 3)
    assert header.findings[0].box == Box(10.0, 10.0, 50.0, 50.0)
    assert header.findings[0].map.region == Box(-10.0, -20.0, 150.0, 100.0)
    assert (header.passage.sequence, header.passage.box) == (3, box)
    image = passage_image(passage)
    assert (image[30, 30] != 90).any(), "heat is drawn in the box"
    assert (image[2, 2] == 90).all()


def test_image_of_a_reduced_part_has_its_box_in_place():
    passage = part(image=np.zeros((12, 16, 3), np.uint8), image_box=Box(10.0, 20.0, 42.0, 44.0))
    assert passage_explanation(passage, overlay().explanation).findings[0].box == Box(5.0, 5.0, 25.0, 25.0)


def _received(socket):
    assert socket.poll(1000 * LIMIT_SECONDS), "nothing came"
    return socket.recv_multipart()


def test_reader_of_parts_receives_each_once_whatever_frames_are_lost(wait_until):
    with ZeroMqSink(ANY) as sink, zmq.Context() as context, context.socket(zmq.SUB) as reader:
        reader.setsockopt(zmq.LINGER, 0)
        reader.subscribe(b"parts/")
        reader.connect(sink.endpoint)
        joined(sink, wait_until, b"parts/")
        sink.put(overlay(1, part(1)))
        sink.put(overlay(4, recent=(part(1), part(2), part(3))))
        sink.put(overlay(5, recent=(part(1), part(2), part(3))))
        sink.put(overlay(6, part(4)))
        topics, headers, _ = zip(*(_received(reader) for _ in range(4)), strict=True)
    assert set(topics) == {b"parts/road"}
    assert [json.loads(header)["passage"]["sequence"] for header in headers] == [1, 2, 3, 4]


def test_reader_of_all_topics_gets_no_parts_on_its_own(wait_until):
    with ZeroMqSink(ANY) as sink, Viewer(sink.endpoint) as viewer:
        joined(sink, wait_until)
        sink.put(overlay(1, part(1)))
        explained = replace(overlay(2, part(2)), pixels=np.full((120, 160, 3), 9, np.uint8))
        sink.put(explained)
        received = first(viewer)
    assert (received.camera, received.header.index) == ("road", 2)
