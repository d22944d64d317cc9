"""The wire: messages are decoded as they were encoded, and damaged messages are refused with the reason."""

from __future__ import annotations

import base64
import json
import math
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from overlays.render import jpeg
from overlays.render.jpeg import decode_image, encode_image, jpeg_size
from overlays.wire.header import MAX_HEADER_BYTES, decode_header, wire_schema
from overlays.wire.message import (
    as_overlay,
    decode_message,
    encode,
    explanation_record,
    record_bytes,
)
from pipeline.errors import WireError, WireVersionError
from pipeline.frames import Box, ClassScore, Explanation, Finding, Frame, GroundTruth, Overlay

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = ROOT / "docs" / "wire.schema.json"
CONTRACT = {
    *("version", "camera", "index", "width", "height", "encoding", "pts_seconds", "taken_at_unix", "sent_at_unix"),
    *("age_seconds", "model", "method", "layer", "grid", "findings", "timings", "heat_region", "truth"),
}

numbers = st.floats(-1e6, 1e6)
words = st.text(max_size=12)
boxes = st.builds(lambda x, y, w, h: Box(x, y, x + w, y + h), numbers, numbers, st.floats(0, 1e6), st.floats(0, 1e6))


@st.composite
def overlays(draw) -> Overlay:
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    grid = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    truths = st.none() | st.builds(GroundTruth, words, st.lists(boxes, max_size=2).map(tuple))
    frame = Frame(
        np.full((height, width, 3), draw(st.integers(0, 255)), np.uint8),
        draw(words),
        draw(st.integers(0, 1 << 40)),
        draw(st.floats(0, 1e6)),
        draw(st.none() | numbers),
        draw(truths),
    )
    findings = [
        Finding(
            draw(words),
            draw(st.floats(0, 1)),
            np.array(
                draw(st.lists(st.floats(0, 1), min_size=math.prod(grid), max_size=math.prod(grid))), np.float32
            ).reshape(grid),
            draw(st.integers(-1, 1000)),
            draw(st.none() | boxes),
        )
        for _ in range(draw(st.integers(0, 3)))
    ]
    timings = draw(st.dictionaries(words, st.floats(0, 10), max_size=3))
    following = draw(st.lists(st.builds(ClassScore, words, st.floats(0, 1)), max_size=2))
    explained = Explanation(frame, tuple(findings), draw(words), draw(words), timings, draw(words), draw(boxes))
    explained = replace(explained, next_classes=tuple(following))
    return Overlay(frame.image, explained)


@settings(max_examples=80, deadline=None)
@given(overlays())
def test_message_round_trips(overlay):
    sent = overlay.explanation
    parts = encode(overlay, sent_at_unix=1.7e9, now_monotonic=sent.frame.captured_at + 0.25)
    header, payload = decode_message(parts)
    got = as_overlay(header, decode_image(payload), now_unix=1.7e9 + 1, now_monotonic=50.0).explanation
    assert parts[0].decode() == got.frame.camera == sent.frame.camera
    assert header.age_seconds == pytest.approx(0.25, abs=1e-5)
    assert got.frame.captured_at == pytest.approx(50.0 - 1.25, abs=1e-5)
    for field in ("index", "pts_seconds", "truth", "width", "height"):
        assert getattr(got.frame, field) == getattr(sent.frame, field)
    for field in ("method", "layer", "model", "heat_region", "timings"):
        assert getattr(got, field) == getattr(sent, field)
    assert [(label, pytest.approx(score, abs=1e-5)) for label, score in sent.next_classes] == list(got.next_classes)
    assert len(got.findings) == len(sent.findings)
    for mine, theirs in zip(got.findings, sent.findings, strict=True):
        assert (mine.label, mine.score, mine.class_index, mine.box) == (
            theirs.label,
            theirs.score,
            theirs.class_index,
            theirs.box,
        )
        assert np.abs(mine.heat - theirs.heat).max() <= 0.5 / 255 + 1e-6
        assert not mine.heat.flags.writeable


def test_header_has_exactly_the_documented_keys(overlaid):
    header = json.loads(encode(overlaid(), sent_at_unix=0.0, now_monotonic=0.0)[1])
    assert set(header) == CONTRACT
    assert set(header["findings"][0]) == {"label", "class_index", "score", "heat_u8", "box"}


def test_schema_in_the_docs_is_that_of_the_model():
    schema = wire_schema()
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == schema, (
        f"the model has changed; run: uv run run.py schema --wire > {SCHEMA.relative_to(ROOT)}"
    )
    optional = {"source", "frame_width", "frame_height", "silence", "guards", "regions", "deletion", "roi", "masks"}
    optional |= {"passages", "places", "passage", "trial", "epoch", "next_classes"}
    assert set(schema["properties"]) == CONTRACT | optional
    assert set(schema["required"]) == CONTRACT - {"truth", "heat_region"}
    assert set(schema["$defs"]["WireFinding"]["required"]) == {"label", "class_index", "score", "heat_u8", "box"}


def test_schema_command_prints_the_schema_of_the_header(command):
    code, printed, _ = command("schema", "--wire")
    assert code == 0
    assert json.loads(printed) == wire_schema()


def test_document_names_every_key_of_the_schema():
    document = (ROOT / "docs" / "wire.md").read_text(encoding="utf-8")
    schema = wire_schema()
    tables = [schema, *(schema["$defs"][name] for name in ("WireFinding", "WireBoxMap", "WireGuard", "WirePassage"))]
    for key in (key for table in tables for key in table["properties"]):
        assert re.search(rf"^\| [^|]*`{key}`", document, re.MULTILINE), key
    for name in (
        "WireStats",
        "WireTruth",
        "WireRegion",
        "WireSignalLoss",
        "WireDeletion",
        "WirePlace",
        "WirePlaceCount",
    ):
        assert all(f'"{key}"' in document for key in schema["$defs"][name]["properties"]), name


def test_heat_is_one_byte_per_cell_row_by_row(overlaid):
    heat = np.array([[0, 0.5, 1], [0.001, 0.002, 0.9999]], np.float32)
    header = json.loads(encode(overlaid(heat=heat), sent_at_unix=0.0, now_monotonic=0.0)[1])
    assert header["grid"] == [2, 3]
    assert list(base64.b64decode(header["findings"][0]["heat_u8"])) == [0, 128, 255, 0, 1, 255]


def test_image_channels_keep_their_order():
    image = decode_image(encode_image(np.full((16, 16, 3), (230, 20, 10), np.uint8), 95))
    assert np.abs(image[8, 8].astype(int) - (230, 20, 10)).max() <= 4


def test_smaller_image_scales_its_boxes(overlaid):
    whole = overlaid(
        np.zeros((80, 120, 3), np.uint8), region=Box(-20, 0, 140, 80), truth=GroundTruth("x", (Box(0, 0, 12, 8),))
    )
    small = Overlay(np.zeros((40, 60, 3), np.uint8), whole.explanation)
    header, payload = decode_message(encode(small, sent_at_unix=0.0, now_monotonic=0.0))
    assert (header.width, header.height, header.frame_width, header.frame_height) == (60, 40, 120, 80)
    assert header.heat_region == Box(-20, 0, 140, 80)
    arrived = as_overlay(header, decode_image(payload), now_unix=0.0, now_monotonic=0.0).explanation
    assert arrived.region == Box(-10, 0, 70, 40)
    assert arrived.frame.truth.boxes == (Box(0, 0, 6, 4),)


def test_name_that_is_not_utf8_is_sent_with_a_question_mark(overlaid):
    header, _ = decode_message(encode(overlaid(camera="caf\udce9"), sent_at_unix=0.0, now_monotonic=0.0))
    assert header.camera == "caf?"


@pytest.mark.parametrize("wrong", [{"score": math.nan}, {"pts_seconds": math.inf}])
def test_numbers_outside_json_are_refused(wrong, overlaid):
    with pytest.raises(WireError, match="NaN or infinite"):
        encode(overlaid(**wrong), sent_at_unix=0.0, now_monotonic=0.0)


def test_findings_of_different_grids_are_refused(explained):
    other = Finding("cat", 0.1, np.zeros((9, 9), np.float32))
    with pytest.raises(WireError, match="grids"):
        explanation_record(explained(others=(other,)), sent_at_unix=0.0, now_monotonic=0.0)


def record_of(explanation, **changes):
    record = explanation_record(explanation, sent_at_unix=5.0, now_monotonic=explanation.frame.captured_at)
    return record | {"encoding": "jpeg"} | changes


def test_unknown_keys_are_ignored_and_optional_ones_may_be_missing(explained):
    record = record_of(explained(), sender="somebody else's")
    for key in ("heat_region", "truth", "encoding"):
        del record[key]
    header = decode_header(record_bytes(record))
    assert (header.heat_region, header.truth, header.encoding) == (None, None, "")
    overlay = as_overlay(header, np.zeros((48, 64, 3), np.uint8), now_unix=0.0, now_monotonic=0.0)
    assert overlay.explanation.region == Box(0, 0, 64, 48)


def test_newer_version_is_refused_as_such_whatever_its_content(explained):
    with pytest.raises(WireVersionError, match=r"version: 2 is newer .* update"):
        decode_header(b'{"version": 2, "camera": 5}')
    with pytest.raises(WireVersionError):
        decode_message([b"line", record_bytes(record_of(explained(), version=7)), b""])


WRONG = {
    "version": ["1", 1.0, True, 0, -1, None],
    "camera": [5, None, "x" * 5000],
    "index": [-1, 1.5, "0", None, 1 << 70],
    "width": [0, -5, 1 << 21, None, True],
    "encoding": ["png", "", 5],
    "pts_seconds": ["0", [], True],
    "taken_at_unix": [None, "now", 10**400],
    "grid": [[3], [3, 4, 5], [-1, 4], [4097, 1], [3.0, 4], "3x4", None],
    "heat_region": [[0, 0, 1], [1, 1, 0, 0], ["0", 0, 1, 1], 5],
    "findings": [None, {}, [5], [{}], [[]]],
    "timings": [5, {"a": "b"}, [1]],
    "truth": [5, {}, {"label": 5, "boxes": []}, {"label": "x", "boxes": [[1]]}, {"label": "x", "boxes": 5}],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_key_of_a_wrong_type_is_refused_by_name(key, value, explained):
    explanation = explained()
    payload = encode_image(explanation.frame.image)
    packed = json.dumps(record_of(explanation, **{key: value})).encode()
    with pytest.raises(WireError, match=key if key != "findings" else None):
        decode_message([b"line", packed, payload])


@pytest.mark.parametrize("heat", ["", "AAAA", "A" * 17, "!" * 16, "A" * 14 + "==", 5, None])
def test_heat_of_wrong_length_or_alphabet_is_refused(heat, explained):
    record = record_of(explained())
    record["findings"][0]["heat_u8"] = heat
    with pytest.raises(WireError, match=r"findings\[0\]\.heat_u8: .*base64, one per cell"):
        decode_header(record_bytes(record))


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"null",
        b"[]",
        b"5",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"version": NaN}',
        b'{"version": 1e999}',
        b"\x80\x04N.",
    ],
)
def test_header_that_is_no_object_is_refused(packed):
    with pytest.raises(WireError):
        decode_header(packed)


def test_sizes_are_checked_before_decoding(monkeypatch, explained):
    with pytest.raises(WireError, match="more than"):
        decode_header(b" " * (MAX_HEADER_BYTES + 1))
    explanation = explained()
    packed, image = record_bytes(record_of(explanation)), encode_image(explanation.frame.image)
    with pytest.raises(WireError, match="parts"):
        decode_message([b"line", packed])
    with pytest.raises(WireError, match="topic"):
        decode_message([b"other", packed, image])
    with pytest.raises(WireError, match="the header gives"):
        decode_message([b"line", packed, encode_image(np.zeros((8, 8, 3), np.uint8))])
    monkeypatch.setattr(jpeg, "MAX_IMAGE_BYTES", 10)
    with pytest.raises(WireError, match="more than 10"):
        decode_message([b"line", packed, image])


def test_small_payload_that_declares_a_huge_image_is_not_decoded():
    image = bytearray(encode_image(np.zeros((8, 8, 3), np.uint8)))
    offset = image.index(b"\xff\xc0")
    image[offset + 5 : offset + 9] = b"\xff\xff\xff\xff"
    with pytest.raises(WireError, match="65535x65535"):
        jpeg_size(bytes(image))


@pytest.mark.parametrize("payload", [b"", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"\x89PNG....", b"\xff\xd8" + b"\xff" * 50])
def test_payload_that_is_no_jpeg_is_refused(payload):
    with pytest.raises(WireError):
        jpeg_size(payload)
    with pytest.raises(WireError):
        decode_image(payload)


def test_damaged_message_gives_a_wire_error_or_a_valid_frame(overlaid):
    parts = encode(overlaid(truth=GroundTruth("dent", (Box(1, 2, 3, 4),))), sent_at_unix=0.0, now_monotonic=0.0)
    dice = random.Random(5)
    refused = 0
    for _ in range(1500):
        damaged = [bytearray(part) for part in parts]
        for _ in range(dice.randint(1, 4)):
            part = dice.choice(damaged)
            if part:
                offset = dice.randrange(len(part))
                if dice.random() < 0.3:
                    del part[offset:]
                else:
                    part[offset] = dice.randrange(256)
        try:
            header, payload = decode_message([bytes(part) for part in damaged])
            as_overlay(header, decode_image(payload), now_unix=0.0, now_monotonic=0.0)
        except WireError:
            refused += 1
    assert refused > 500


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=5))
@example([b"", b"{}", b""])
def test_random_bytes_are_a_wire_error(parts):
    with pytest.raises(WireError):
        decode_message(parts)


def test_source_file_name_is_sent_and_absent_without_a_file(overlaid):
    sent = encode(overlaid(source_name="ok/1.jpg"), sent_at_unix=0.0, now_monotonic=0.0)
    header, _ = decode_message(sent)
    assert header.source == "ok/1.jpg"
    got = as_overlay(header, decode_image(sent[2]), now_unix=0.0, now_monotonic=0.0)
    assert got.explanation.frame.source_name == "ok/1.jpg"
    with pytest.raises(WireError, match="source"):
        decode_header(json.dumps(json.loads(sent[1]) | {"source": 5}).encode())


@pytest.mark.parametrize("odd", ["9" * 5000, "9" * 4000, "[" * 50_000 + "]" * 50_000, "1e400", "-1e400", "NaN"])
@pytest.mark.parametrize("key", ["index", "pts_seconds", "width", "grid", "timings", "anything"])
def test_excessive_numbers_and_nesting_are_refused_or_ignored(overlaid, key, odd):
    packed = json.dumps(json.loads(encode(overlaid(), sent_at_unix=0.0, now_monotonic=0.0)[1]) | {key: "ODD"})
    packed = packed.replace('"ODD"', odd).encode()
    if key == "anything" and odd in {"9" * 4000, "1e400", "-1e400"}:
        assert decode_header(packed).camera == "line", "a key that is not known is ignored"
        return
    with pytest.raises(WireError) as refused:
        decode_header(packed)
    assert len(str(refused.value)) < 300
