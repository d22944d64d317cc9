"""Boxes of a detector on the wire: own grids, regions and tracks, and what older readers make of them."""

import base64
import json
import math
from dataclasses import fields, replace

import numpy as np
import pytest

from overlays.wire.header import MAX_HEADER_BYTES, decode_header
from overlays.wire.message import as_overlay, encode, explanation_record, record_bytes
from pipeline.errors import WireError
from pipeline.frames import NO_HEAT, Box, BoxMap, Overlay
from pipeline.trial import Trial
from tests.support.boxes import HEIGHT, WIDTH, box, explained_boxes, hot_cell, street

HALF_LEVEL = 0.5 / 255 + 1e-6
DROP = box(
    300, 200, track=7, heat=hot_cell(1, 2, 0.25, (5, 3)), mode="drop", region=Box(-9.5, 0.1, 700, 360), scale=0.31,
    against=hot_cell(0, 0, grid=(5, 3)), lowest_score=0.49, index=41, age_seconds=0.43,
)  # fmt: skip
KEEP = box(100, 100, track=6, heat=hot_cell(3, 3), scale=9.7)
BARE = box(10, 20, track=0)


def packed(explanation, image=None):
    image = explanation.frame.image if image is None else image
    return encode(Overlay(image, explanation), sent_at_unix=1.7e9, now_monotonic=0.0)[1]


def received(explanation, image=None):
    image = explanation.frame.image if image is None else image
    header = decode_header(packed(explanation, image))
    return as_overlay(header, image, now_unix=1.7e9, now_monotonic=0.0).explanation


def record(*findings):
    return explanation_record(explained_boxes(*findings), sent_at_unix=0.0, now_monotonic=0.0)


def assert_same_findings(got, sent):
    assert len(got) == len(sent)
    for mine, theirs in zip(got, sent, strict=True):
        plain = {"heat": NO_HEAT, "box_map": None}
        assert [getattr(replace(mine, **plain), f.name) for f in fields(mine)] == [
            getattr(replace(theirs, **plain), f.name) for f in fields(theirs)
        ]
        assert mine.heat.shape == theirs.heat.shape
        assert np.abs(mine.heat - theirs.heat).max() <= HALF_LEVEL
        assert not mine.heat.flags.writeable
        assert (mine.box_map is None) == (theirs.box_map is None)
        if mine.box_map is not None:
            for each in fields(BoxMap):
                if each.name != "against":
                    assert getattr(mine.box_map, each.name) == getattr(theirs.box_map, each.name), each.name
            assert (mine.box_map.against is None) == (theirs.box_map.against is None)
            if mine.box_map.against is not None:
                assert np.abs(mine.box_map.against - theirs.box_map.against).max() <= HALF_LEVEL
                assert not mine.box_map.against.flags.writeable


@pytest.mark.parametrize("findings", [(), (BARE,), (KEEP,), (DROP, BARE, KEEP), (BARE, BARE)])
def test_message_restores_boxes_tracks_and_maps(findings):
    explanation = explained_boxes(*findings)
    got = received(explanation)
    assert_same_findings(got.findings, findings)
    assert [got.region_of(each) for each in got.findings] == [explanation.region_of(each) for each in findings]


def test_older_readers_get_a_shared_grid_of_one_cold_cell():
    # Their rule, in version 1 before maps of boxes: each finding has heat of exactly rows x columns bytes.
    header = json.loads(packed(explained_boxes(DROP, BARE, KEEP)))
    assert (header["version"], header["grid"]) == (1, [1, 1])
    assert header["heat_region"] == [0.0, 0.0, WIDTH, HEIGHT]
    assert [base64.b64decode(each["heat_u8"]) for each in header["findings"]] == [b"\0"] * 3
    assert json.loads(packed(explained_boxes()))["grid"] == [0, 0]


def test_findings_without_a_map_keep_the_grid_they_share():
    plain = replace(BARE, heat=hot_cell(0, 1, grid=(2, 2)), track=None)
    header = json.loads(packed(explained_boxes(DROP, plain)))
    assert header["grid"] == [2, 2]
    assert_same_findings(received(explained_boxes(DROP, plain)).findings, (DROP, plain))


def test_absent_facts_of_a_box_have_no_key():
    keep, bare = record(KEEP, replace(BARE, track=None))["findings"]
    assert set(bare) == {"label", "class_index", "score", "heat_u8", "box"}
    assert set(keep) == {*bare, "track", "map"}
    assert set(keep["map"]) == {"mode", "cut", "region", "scale", "grid", "heat_u8", "index", "age_seconds"}
    assert set(record(DROP)["findings"][0]["map"]) == {*keep["map"], "against_u8", "lowest_score"}


def test_smaller_image_scales_boxes_and_the_regions_of_their_maps():
    sent = explained_boxes(DROP)
    got = received(sent, np.zeros((HEIGHT // 2, WIDTH // 4, 3), np.uint8)).first
    assert got.box == Box(75, 100, 90, 120)
    assert got.box_map.region == Box(-9.5 / 4, 0.05, 175, 180)


def test_message_carries_the_network_on_trial_without_its_heat():
    sent = replace(explained_boxes(DROP), trial=Trial("new", (DROP, BARE), "adds 1 car"))
    half = received(sent, np.zeros((HEIGHT // 2, WIDTH // 2, 3), np.uint8)).trial
    assert (half.name, half.difference) == ("new", "adds 1 car")
    [drop, bare] = half.findings
    assert (drop.label, drop.score, drop.track, drop.heat.tolist()) == (DROP.label, DROP.score, 7, [[0.0]])
    assert [edge * 2 for edge in bare.box] == list(BARE.box)
    assert "heat_u8" not in str(json.loads(packed(sent))["trial"])
    assert "trial" not in record(DROP)
    assert "trial" not in json.loads(packed(replace(sent, trial=Trial("new", (), is_compared=False))))


MAP_ERRORS = {
    "mode": ["both", None, 5, ""],
    "cut": [None, "x" * 5000],
    "region": [[0, 0, 1], [1, 1, 0, 0], [0, 0, 1e300, 1], None],
    "scale": ["1", None, True],
    "grid": [[0, 0], [0, 5], [5], [4097, 1], [3, 4], [-5, -3], None],
    "heat_u8": ["", "AAAA", "!" * 20, 5, None],
    "against_u8": ["", "AAAA", 5],
    "lowest_score": ["0"],
    "index": [-1, 1.5, None, 1 << 70],
    "age_seconds": [None, "0"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in MAP_ERRORS.items() for value in values])
def test_invalid_key_of_a_map_is_refused_by_name(key, value):
    sent = record(BARE, DROP)
    sent["findings"][1]["map"][key] = value
    with pytest.raises(WireError, match=r"findings\[1\]\.map\.(grid|heat_u8|" + key + ")") as refused:
        decode_header(record_bytes(sent))
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("value", [-1, 1.5, "1", 1 << 70, True, [1]])
def test_invalid_track_is_refused_by_name(value):
    sent = record(BARE)
    sent["findings"][0]["track"] = value
    with pytest.raises(WireError, match=r"findings\[0\]\.track"):
        decode_header(record_bytes(sent))


@pytest.mark.parametrize("key", ["mode", "cut", "region", "scale", "grid", "heat_u8", "index", "age_seconds"])
def test_map_without_a_required_key_is_refused(key):
    sent = record(DROP)
    del sent["findings"][0]["map"][key]
    with pytest.raises(WireError, match=rf"findings\[0\]\.map\.{key}: missing"):
        decode_header(record_bytes(sent))


def test_map_of_nan_or_of_two_grids_is_not_sent():
    for name in ("scale", "lowest_score", "age_seconds"):
        odd = replace(DROP, box_map=replace(DROP.box_map, **{name: math.nan}))
        with pytest.raises(WireError, match="NaN or infinite"):
            packed(explained_boxes(odd))
    with pytest.raises(WireError, match=r"against: has the grid \(1, 1\)"):
        packed(explained_boxes(replace(DROP, box_map=replace(DROP.box_map, against=NO_HEAT))))


@pytest.mark.parametrize(("grid", "limit_bytes"), [((12, 20), 300_000), ((23, 40), 700_000)])
def test_header_of_three_hundred_boxes_is_far_below_its_limit(grid, limit_bytes):
    explanation = street(300, grid=grid)
    line = packed(explanation)
    assert len(line) < limit_bytes < MAX_HEADER_BYTES / 40
    assert_same_findings(received(explanation).findings, explanation.findings)
