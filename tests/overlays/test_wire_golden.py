"""Wire version 1 byte by byte, against the headers in ``wire-1.jsonl``, recorded before the format had a model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from overlays.wire.header import decode_header
from overlays.wire.message import as_overlay, encode, explanation_record, record_bytes
from pipeline.frames import (
    Box,
    DeletionCheck,
    Explanation,
    Finding,
    Frame,
    GroundTruth,
    HeatmapStats,
    Overlay,
    Region,
    SignalLoss,
)
from pipeline.guards.state import GuardState

GOLDEN = (Path(__file__).parent / "wire-1.jsonl").read_bytes().splitlines()
IMAGE = np.zeros((48, 64, 3), np.uint8)
HEAT = np.array([[0, 0.5, 1], [0.001, 0.002, 0.9999]], np.float32)
ODD_TEXT = 'a "b" \\ / \t\x7f\u2028 é 猫 \U0001f600'


def explanation(*, image=IMAGE, camera="line", index=7, pts=None, truth=None, source="", findings=None, **more):
    frame = Frame(image, camera, index, 100.0, pts, truth, source)
    if findings is None:
        findings = (Finding("bottle", 0.875, HEAT, 3),)
    texts = {"method": "recipro-cam/point", "layer": "layer4", "model": "resnet50", "timings": {"explain": 0.01}}
    return Explanation(frame, findings, **(texts | more))


def guarded(**more):
    stats = HeatmapStats(0.0123456, 0.4, (60.123, 50.0), None, {"belt": 0.04, "caf\udce9": 1 / 3})
    flat = HeatmapStats(None, None, None, None, {})
    return explanation(
        findings=(Finding("bottle", 1 / 3, HEAT, 3, None, stats), Finding("cat", 1e-7, HEAT, -1, None, flat)),
        guards=(GuardState("on-the-belt", True, 1.25, "heat_inside(belt) >= 0.6, but is 0.04", 2),
                GuardState("still", False, 0, "", 0)),
        regions=(Region("belt", ((10, 40.456), (150.0, 40.0), (150.0, 80.005))),),
        deletion=DeletionCheck("bottle", 0.9, 0.85, 3, np.float64(0.5)), **more,
    )  # fmt: skip


EXPLANATIONS = {
    "plain": explanation(),
    "no findings": explanation(findings=()),
    "numbers": explanation(
        pts=1e16,
        index=(1 << 53) + 1,
        timings={"queue": 5e-05, "preprocess": 0.1 + 0.2, "explain": 123456789.125, "draw": 1e-7},
        findings=(Finding("b", np.float32(0.1), HEAT, np.int64(3), Box(-0.0, 1, 2.5, np.float32(3.3))),),
        heat_region=Box(-20, 0, 1e9, 80),
    ),
    "text": explanation(camera=ODD_TEXT, model="caf\udce9", layer="", source="f\udcff/1.jpg", method="\x00\x1f"),
    "truth": explanation(truth=GroundTruth("dent", (Box(1, 2, 3, 4), Box(0, 0, 64, 48))), pts=0),
    "truth without boxes": explanation(truth=GroundTruth("d\udce9", ())),
    "guards": guarded(),
    "only guards": explanation(guards=(GuardState("g", True, 0.5, "s", 1),)),
}
SMALL = np.zeros((24, 32, 3), np.uint8)
OVERLAYS = {
    **{name: Overlay(IMAGE, each) for name, each in EXPLANATIONS.items()},
    "scaled": Overlay(SMALL, guarded(truth=GroundTruth("x", (Box(0, 0, 12, 8),)))),
    "signal loss": Overlay(IMAGE, explanation(), SignalLoss(3.14159, "stalled", "no packets: caf\udce9")),
    "all": Overlay(SMALL, guarded(source="a/b.mp4", pts=1.5), SignalLoss(0, "", "")),
}


CLOCKS = {"sent_at_unix": 1.7e9 + 0.1234567, "now_monotonic": 100.25}


def headers():
    """Return the headers of all messages, then the log lines of all explanations."""
    encoded = [encode(overlay, **CLOCKS)[1] for overlay in OVERLAYS.values()]
    return encoded + [record_bytes(explanation_record(each, **CLOCKS)) for each in EXPLANATIONS.values()]


@pytest.mark.parametrize(
    ("name", "header", "golden"), list(zip([*OVERLAYS, *EXPLANATIONS], headers(), GOLDEN, strict=True))
)
def test_headers_stay_as_recorded(name, header, golden):
    assert header == golden, name


@pytest.mark.parametrize(("name", "golden"), list(zip(OVERLAYS, GOLDEN, strict=False)))
def test_recorded_headers_are_read_as_they_were_sent(name, golden):
    sent, header = OVERLAYS[name], decode_header(golden)
    if (header.width, header.height) == (header.frame_width, header.frame_height):
        got = as_overlay(header, sent.image, now_unix=header.taken_at_unix + 1, now_monotonic=101.0)
        assert json.loads(encode(got, **CLOCKS)[1]) == json.loads(golden)
    else:
        assert (header.width, header.height, header.frame_width, header.frame_height) == (32, 24, 64, 48)
        assert header.frame_width == sent.explanation.frame.width
