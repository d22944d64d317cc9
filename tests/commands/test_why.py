"""`run.py why`: the score of a class at a place, what supports it and what suppresses it."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from commands.why import answer_lines, answer_picture, parse_area, parse_box, read_frame, why
from engine.detectors.definition import dense_responses
from engine.detectors.detections import missed_anchor
from engine.detectors.why import explain_place
from overlays.render.boxes import draw_boxes
from pipeline.errors import ConfigError, SourceError
from pipeline.frames import Box, Explanation, Frame
from tests.support.tiny_detector import LABELS, SIZE, calm_detector, coarse_image

PLACE = Box(60, 40, 120, 100)


@pytest.fixture(scope="module")
def detector():
    return calm_detector(score=0.999)


@pytest.fixture(scope="module")
def image():
    return coarse_image()


@pytest.fixture(scope="module")
def answer(detector, image):
    return explain_place(detector, image, PLACE, "dog", cell_px=32)


def test_explain_place_explains_the_anchor_with_the_highest_score_and_overlap(detector, image, answer):
    candidates = detector.candidates(detector.input.prepare([image]))
    place = detector.input.place(*image.shape[:2]).to_input(torch.tensor(tuple(map(float, PLACE))))
    missed = missed_anchor(candidates, place, LABELS.index("dog"))
    assert answer.score == pytest.approx(missed.score)
    assert answer.overlap == pytest.approx(missed.iou)
    assert answer.maps[0].box.iou(PLACE) == pytest.approx(missed.iou, abs=1e-3)


def test_explain_place_states_the_score_without_a_region_as_a_masked_run_gives_it(detector, image, answer):
    images = detector.input.prepare([image])
    candidates = detector.candidates(images)
    place = detector.input.place(*image.shape[:2]).to_input(torch.tensor(tuple(map(float, PLACE))))
    anchor = detector.layout.locate(candidates.grids, missed_anchor(candidates, place, LABELS.index("dog")).anchor)
    split = detector.split(anchor.level, "complete", SIZE)
    reads = detector.layout.reads(anchor)
    responses = dense_responses(split, split.features(images), reads, 32, "drop")
    scores = detector.layout.log_score(responses, LABELS.index("dog"), anchor).exp()
    assert float(scores.max() - scores.min()) > 1e-3
    if answer.supporting:
        assert answer.supporting[0].score_without == pytest.approx(float(scores.min()), abs=1e-4)
    if answer.suppressing:
        assert answer.suppressing[0].score_without == pytest.approx(float(scores.max()), abs=1e-4)
    assert answer.supporting or answer.suppressing


def test_answer_lines_name_score_threshold_and_places(answer):
    text = "\n".join(answer_lines(answer, "dog"))
    assert f"dog: score {answer.score:.3f}" in text
    assert "is too low for a box: below 0.999" in text
    assert "is enough for a box: from 0.5" in answer_lines(replace(answer, score=0.6, threshold=0.5), "dog")[0]
    assert text.count("without it the score is") == len(answer.supporting) + len(answer.suppressing)


def test_answer_lines_tell_places_of_a_tiny_image_apart(detector, image):
    tiny = explain_place(detector, cv2.resize(image, (8, 6)), Box(1, 1, 6, 5), "dog", cell_px=32)
    lines = answer_lines(tiny, "dog")[1:]
    places = [line.split(" place ")[1].split(":")[0] for line in lines]
    assert len(set(places)) == len(places) > 0
    assert all(float(side) > 0 for place in places for side in place.split(",")[2:])


@pytest.mark.parametrize(
    ("box", "label", "message"),
    [
        (Box(500, 500, 600, 600), "dog", "outside the image of 240x180"),
        (PLACE, "dgo", "Did you mean 'dog'"),
    ],
)
def test_explain_place_refuses_what_is_not_there(detector, image, box, label, message):
    with pytest.raises(ConfigError, match=message):
        explain_place(detector, image, box, label)


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,0,5", "a,b,c,d", "1,2,nan,4", "1,2,inf,4", "1,2,3,4,5"])
def test_parse_box_refuses_what_is_no_box(text):
    with pytest.raises(ConfigError, match="LEFT,TOP,WIDTH,HEIGHT"):
        parse_box(text)


def test_parse_box_reads_left_top_width_height():
    assert parse_box("10, 20,30,40.5") == Box(10, 20, 40, 60.5)


def test_read_frame_reads_an_image_and_names_a_missing_one(tmp_path, image):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), image[..., ::-1])
    np.testing.assert_array_equal(read_frame(str(path), None), image)
    with pytest.raises(SourceError, match="missing"):
        read_frame(str(tmp_path / "missing.png"), None)


def test_answer_picture_shows_both_maps_of_an_object_with_a_low_score(image, answer):
    missed = replace(answer, maps=tuple(replace(finding, score=1e-4) for finding in answer.maps))
    width = image.shape[1]
    picture = answer_picture(image, missed, PLACE)
    assert picture.shape == (image.shape[0], 2 * width, 3)
    for half, finding in zip((picture[:, :width], picture[:, width:]), missed.maps, strict=True):
        frame = Frame(image, "why", 0, 0.0)
        bare = image.copy()
        draw_boxes(bare, Explanation(frame, (replace(finding, box_map=None),), "", ""))
        painted = np.abs(half.astype(int) - bare).max(axis=2) > 25
        assert painted.mean() > 0.02, finding.box_map.mode


def test_parse_area_reads_pixels_and_fractions_and_refuses_the_rest():
    assert parse_area("10,20,30,40").placed(100, 100).cut == (10, 20, 40, 60)
    assert parse_area("0.1,0.2,0.5,0.5").placed(200, 100).cut == (20, 20, 120, 70)
    with pytest.raises(ConfigError, match=r"roi '10,20': should be \[x, y, width, height\]"):
        parse_area("10,20")
    assert parse_area(None, ["[[0, 0], [0.5, 0], [0, 0.5]]"]).placed(200, 100).masks == (((0, 0), (100, 0), (0, 50)),)
    for text in ("0,0,5,5", "[[0, 0], [1, 1]]", '"[[0, 0]]"', "[[0, 0], [5, 0], [0, NaN]]"):
        with pytest.raises(ConfigError, match=r"mask .*: "):
            parse_area(None, [text])


def test_explain_place_does_not_see_what_a_mask_covers(detector, image):
    height, width = image.shape[:2]
    area = parse_area(None, ["[[0, 0], [40, 0], [40, 40], [0, 40]]"]).placed(width, height)
    other = image.copy()
    other[:40, :40] = 255 - other[:40, :40]
    here, there = (
        explain_place(detector, each, Box(60, 50, 130, 120), "dog", cell_px=32, area=area) for each in (image, other)
    )
    assert here.score == there.score
    plain, changed = (
        explain_place(detector, each, Box(60, 50, 130, 120), "dog", cell_px=32).score for each in (image, other)
    )
    assert plain != changed


def test_explain_place_with_a_region_is_about_the_cut_image(detector, image):
    area = parse_area("30,20,150,120").placed(image.shape[1], image.shape[0])
    found = explain_place(detector, image, Box(60, 50, 130, 120), "dog", cell_px=32, area=area)
    cut = np.ascontiguousarray(image[20:140, 30:180])
    expected = explain_place(detector, cut, Box(30, 30, 100, 100), "dog", cell_px=32)
    assert found.score == pytest.approx(expected.score, abs=1e-6)
    for finding, alone in zip(found.maps, expected.maps, strict=True):
        np.testing.assert_allclose(finding.heat, alone.heat, atol=1e-5)
        moved = [edge + (30, 20)[axis % 2] for axis, edge in enumerate(alone.box_map.region)]
        assert finding.box_map.region == pytest.approx(moved, abs=1e-3)


def test_why_names_its_own_option_for_a_wrong_cell(tmp_path):
    with pytest.raises(ConfigError, match=r"^--cell: 7: should be a multiple of 8"):
        why(str(tmp_path / "a.png"), "1,2,3,4", "dog", model="line_detector", cell_px=7)


@pytest.mark.parametrize("name", ["a.png", "a.txt", "a"])
def test_why_refuses_an_output_that_is_not_named_as_a_jpeg(tmp_path, name):
    with pytest.raises(ConfigError, match=r"is a JPEG; give a name that ends in \.jpg"):
        why(str(tmp_path / "a.png"), "1,2,3,4", "dog", model="line_detector", output=tmp_path / name)
