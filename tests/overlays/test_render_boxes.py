"""Boxes of a detector on the image: outlines, labels and heat, also of thirty boxes."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from overlays.render.boxes import AGAINST, box_lines, evidence, label_texts, paint_box_heat, place_labels, track_colour
from overlays.render.renderer import HeatRenderer, legend_lines
from pipeline.frames import NO_HEAT, Box, Explanation, Finding
from pipeline.guards.state import GuardState
from tests.support.boxes import HEIGHT, WIDTH, box, explained_boxes, frame, hot_cell


def render(*findings):
    return HeatRenderer(legend=False).render(Explanation(frame(), findings, "m", "l")).image


def test_renderer_draws_each_box_in_the_colour_of_its_track():
    findings = [box(100, 100, track=1), box(300, 200, track=2)]
    image = render(*findings)
    for finding in findings:
        assert tuple(image[int(finding.box.top), int(finding.box.left)]) == track_colour(finding)
    assert track_colour(findings[0]) != track_colour(findings[1])


def test_outline_keeps_the_colour_of_its_track_in_the_chroma_resolution_of_video():
    for track in range(1, 13):
        finding = box(101, 101, track=track, heat=np.zeros((9, 16), np.float32))
        planes = cv2.cvtColor(render(finding), cv2.COLOR_RGB2YUV_I420)
        image = cv2.cvtColor(planes, cv2.COLOR_YUV2RGB_I420).astype(float)
        edge = image[115:130, 98:106]  # across the left outline
        distances = np.linalg.norm(edge - track_colour(finding), axis=2).min(axis=1)
        assert distances.max() < 70.0, "in each row a pixel has nearly the track's colour"


def test_track_colours_differ_within_twelve_consecutive_tracks_and_from_evidence_against():
    colours = np.array([track_colour(box(0, 0, track=n)) for n in range(1, 13)] + [AGAINST], float)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=2)
    assert distances[~np.eye(len(colours), dtype=bool)].min() > 20.0


def test_renderer_paints_heat_where_the_map_is_hot_and_nowhere_else():
    finding = box(100, 100, heat=hot_cell(6, 12, base=0.4))
    image = paint_box_heat(frame().image, Explanation(frame(), (finding,), "m", "l"), 0.6)
    changed = (image != 90).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert changed[6 * 40 + 20, 12 * 40 + 20]
    assert rows.min() >= 5 * 40
    assert rows.max() < 8 * 40
    assert columns.min() >= 11 * 40
    assert columns.max() < 14 * 40


def test_renderer_paints_evidence_against_a_box_in_its_own_colour():
    finding = box(100, 100, heat=np.zeros((9, 16), np.float32), mode="drop", against=hot_cell(4, 4))
    image = paint_box_heat(frame().image, Explanation(frame(), (finding,), "m", "l"), 1.0)
    distance = np.linalg.norm(image[4 * 40 + 20, 4 * 40 + 20].astype(float) - AGAINST)
    assert distance < 0.2 * np.linalg.norm(np.array([90.0, 90.0, 90.0]) - AGAINST)


def test_renderer_leaves_the_image_without_maps_unchanged_but_for_boxes():
    image = render(box(100, 100))
    outside = np.ones((HEIGHT, WIDTH), bool)
    outside[60:150, 90:320] = False
    assert (image[outside] == 90).all()


def test_evidence_of_a_flat_map_is_zero():
    for level in (0.0, 0.5, 1.0):
        assert not evidence(np.full((4, 4), level, np.float32)).any()


def test_labels_state_score_and_age_of_the_map():
    assert label_texts(box(0, 0))[0] == "car 80% · no map"
    assert label_texts(box(0, 0, heat=hot_cell(0, 0)))[0] == "car 80%"
    assert label_texts(box(0, 0, score=0.004, heat=hot_cell(0, 0)))[0] == "car <1%"
    assert label_texts(box(0, 0, heat=hot_cell(0, 0), age_seconds=0.43))[0] == "car 80% · 0.4 s"


def test_place_labels_lets_none_cover_another_or_leave_the_image():
    rng = np.random.default_rng(3)
    boxes = [Box(x, y, x + 60, y + 40) for x, y in rng.uniform((-40, -20), (620, 340), (30, 2))]
    placed = [label for label in place_labels(boxes, [("car 80% · 0.4 s", "80%")] * 30, 11, (HEIGHT, WIDTH)) if label]
    covered = np.zeros((HEIGHT + 100, WIDTH + 200), int)
    for label in placed:
        assert min(label.left, label.top) >= 0
        covered[label.top : label.top + label.text.shape[0], label.left : label.left + label.width] += 1
    assert len(placed) >= 20
    assert covered.max() == 1
    assert not covered[HEIGHT:].any()
    assert not covered[:, WIDTH:].any()


def test_place_labels_shortens_or_omits_what_has_no_room():
    boxes = [Box(100, 0, 130, 20), Box(200, 0, 230, 20), Box(200, 0, 230, 20)]
    first, second, third = place_labels(boxes, [("car 80% · 0.4 s", "80%")] * 3, 11, (20, 240))
    assert second.width < first.width
    assert third is None


@pytest.mark.parametrize(
    "edges",
    [(-50, -50, 10, 10), (600, 340, 900, 900), (0, 0, 0, 0), (-5000, -5000, 5000, 5000), (700, 10, 800, 20)],
    ids=["corner", "beyond the edge", "no area", "larger than the frame", "outside"],
)
def test_renderer_accepts_boxes_beyond_the_frame(edges):
    finding = Finding("car", 0.8, NO_HEAT, 2, box=Box(*map(float, edges)), track=1)
    assert render(finding).shape == (HEIGHT, WIDTH, 3)


def test_renderer_accepts_three_hundred_boxes():
    rng = np.random.default_rng(1)
    findings = [box(*rng.uniform(0, 500, 2), track=n, heat=hot_cell(3, 3)) for n in range(300)]
    assert render(*findings).shape == (HEIGHT, WIDTH, 3)


def test_legend_of_a_detector_counts_boxes_and_maps():
    findings = (box(0, 0, heat=hot_cell(0, 0)), box(9, 9), box(9, 9, label="truck"))
    explanation = Explanation(frame(), findings, "m", "l")
    assert [line.text for line in box_lines(explanation)] == ["2 car · 1 truck", "1 of 3 explained"]
    assert legend_lines(explanation, 0.1, None)[0].text == "2 car · 1 truck"


def test_renderer_writes_no_label_below_the_legend_or_the_reasons_of_an_alarm():
    guard = GuardState("reason-in-box", True, 2.5, "car #1: heat_inside(box) >= 0.8, but is 0.12", 1)
    drawn = [box(20, 20, track=1), box(30, HEIGHT - 45, track=2)]
    explained = replace(explained_boxes(*drawn), guards=(guard,))
    image = HeatRenderer(clock=lambda: 0.0).render(explained).image
    for finding in drawn:
        rows = (image == track_colour(finding)).all(axis=2).sum(axis=1) > 20
        assert rows.sum() > 6, "rows of the label's plate, not only of the outline"


def test_place_labels_leaves_the_middle_of_small_boxes_free():
    boxes = [Box(100, 50, 130, 70), Box(100, 74, 130, 94), Box(100, 98, 130, 118)]
    placed = place_labels(boxes, [("car 80%", "80%")] * 3, 12, (200, 300))
    assert placed[0] is not None
    for label in filter(None, placed):
        for small in boxes:
            x, y = (small.left + small.right) / 2, (small.top + small.bottom) / 2
            height = label.text.shape[0]
            assert not (label.left <= x < label.left + label.width and label.top <= y < label.top + height)


def test_renderer_paints_the_heat_of_a_low_score_fainter():
    def warmth(score):
        explained = explained_boxes(box(10, 10, score=score, heat=hot_cell(5, 10)))
        return int(np.abs(paint_box_heat(explained.frame.image, explained, 0.6).astype(int) - 90).max())

    assert 0 < 3 * warmth(0.1) < warmth(0.5) == warmth(0.9)
