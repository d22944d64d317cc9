"""Counting of parts and crossings: each object once, whatever its tracks do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.frames import Box, HeatmapStats
from pipeline.guards.box_stats import BOX
from pipeline.passages.config import LineConfig, ZoneConfig
from pipeline.passages.counter import PassageCounter, Places
from pipeline.passages.passage import MAX_IMAGE_PIXELS
from pipeline.passages.record import PassageRecord
from pipeline.passages.vote import Vote
from pipeline.trial import Trial
from tests.support.counting import LINE, ZONE, box_at, passing, run
from tests.support.detections import HEIGHT, WIDTH, detection, detection_frame, detections, heat_at


def test_part_is_counted_when_it_has_left_the_zone():
    [(frame, part)] = run(Places((ZONE,)), passing())
    # The centre is beyond the border (x = 112) by a tenth of the box in frame 23 (x = 115).
    assert (frame, part.kind, part.place, part.label, part.is_ok) == (23, "part", "station", "ok", True)
    assert part.frames == len([k for k in range(40) if 48 <= 5 * k <= 112])
    assert part.first_seen_seconds == pytest.approx(10 / 25)
    assert part.dwell_seconds == pytest.approx(12 / 25)


def test_object_that_misses_the_zone_is_not_counted():
    place = ZoneConfig(name="top", polygon=[(0.0, 0.0), (1.0, 0.0), (1.0, 0.2), (0.0, 0.2)])
    assert run(Places((place,)), passing()) == []


def test_object_of_one_frame_is_not_a_part():
    assert run(Places((ZONE,)), {10: [detection(box_at(80.0))]}) == []
    assert len(run(Places((ZONE.model_copy(update={"min_frames": 1}),)), {10: [detection(box_at(80.0))]})) == 1


def test_box_that_trembles_on_the_border_is_counted_once():
    trembling = {k: [detection(box_at(48.0 + (1.5 if k % 2 else -1.5)))] for k in range(20)}
    through = {k + 20: found for k, found in passing(30, start=50.0).items()}
    assert len(run(Places((ZONE,)), trembling | through)) == 1


def test_part_that_is_lost_in_the_zone_is_counted_after_the_gap():
    halted = {k: [detection(box_at(min(5.0 * k, 80.0)))] for k in range(40)}
    [(frame, part)] = run(Places((ZONE,)), halted, frames=80)
    assert frame == 65
    assert part.last_seen_seconds == pytest.approx(39 / 25)


def test_part_that_disappears_at_the_edge_of_the_zone_is_counted_before_the_gap():
    boxes = {k: found for k, found in passing().items() if k <= 21}
    [(frame, _)] = run(Places((ZONE,)), boxes)
    assert frame == 23


def test_part_is_counted_at_the_first_frame_after_a_signal_loss():
    counter = PassageCounter("road", Places((ZONE,)), {"ok"})
    for k in range(15):
        counter.add(detections(detection_frame(k), passing()[k]))
    [part] = counter.add(detections(detection_frame(15 + 25 * 20), ())).passages
    assert part.frames == 5


def test_parts_in_the_zone_are_not_counted_when_the_clock_goes_back():
    counter = PassageCounter("road", Places((ZONE,)), {"ok"})
    for k in range(15):
        counter.add(detections(detection_frame(k), passing()[k]))
    assert counter.add(detections(detection_frame(0), ())).passages == ()
    assert counter.unfinished == 1


def test_object_that_returns_after_the_gap_is_counted_again():
    there = passing(24)
    stays = {k: [detection(box_at(118.0))] for k in range(24, 60)}
    back = {60 + k: [detection(box_at(118.0 - 5.0 * k))] for k in range(20)}
    assert len(run(Places((ZONE,)), there | stays | back, frames=100)) == 2


def test_class_and_verdict_are_voted_over_the_frames_in_the_zone():
    boxes = passing(label="dent", score=0.6)
    for k in list(boxes)[:11]:  # before the zone, and its first frame
        boxes[k] = [replace(boxes[k][0], label="ok", score=0.99)]
    [(_, part)] = run(Places((ZONE,)), boxes)
    assert (part.label, part.is_ok) == ("dent", False)
    assert part.shares == {"ok": pytest.approx(1 / 13), "dent": pytest.approx(12 / 13)}
    assert part.finding.label == "dent"


@pytest.mark.parametrize(("found", "label"), [("dent", "dent"), ("ok", "ok"), ("", "")])
def test_network_on_trial_votes_over_the_same_frames(found, label):
    counter, passages = PassageCounter("road", Places((ZONE,)), {"ok"}), []
    for k, boxes in passing().items():
        others = [detection(box_at(5.0 * k + 2.0), label=found, track=7)] if found and k > 13 else []
        explained = replace(detections(detection_frame(k), boxes), trial=Trial("new", tuple(others)))
        passages += counter.add(explained).passages
    [part] = passages
    assert (part.label, part.trial_label, part.disagrees) == ("ok", label, label != "ok")
    assert counter.tallies["part station"].disagreements == (label != "ok")
    assert [p.trial_label for _, p in run(Places((ZONE,)), passing())] == [None]


@pytest.mark.parametrize(
    ("vote", "every", "label"), [("mean", 5, "dent"), ("3 of 5", 1, "dent"), ("3 of 5", 5, "dent"), ("3 of 5", 8, None)]
)
def test_frames_that_a_slow_network_on_trial_leaves_out_do_not_vote(vote, every, label):
    """The object is in the zone for 17 frames."""
    counter, passages = PassageCounter("road", Places((ZONE.model_copy(update={"vote": vote}),)), {"ok"}), []
    for k, boxes in passing().items():
        others = [detection(box_at(5.0 * k + 2.0), label="dent", track=7)]
        trial = Trial("new", () if k % every else tuple(others), is_compared=k % every == 0)
        passages += counter.add(replace(detections(detection_frame(k), boxes), trial=trial)).passages
    [part] = passages
    assert part.trial_label == label
    assert part.disagrees == (label is not None)


def test_copy_that_leaves_frames_out_decides_as_the_first_network():
    counter, passages = PassageCounter("road", Places((ZONE,)), {"ok"}), []
    for k, boxes in passing().items():
        both = [replace(each, label="dent") for each in boxes] if k % 5 == 0 else boxes
        trial = Trial("copy", () if k % 5 else tuple(both), is_compared=k % 5 == 0)
        passages += counter.add(replace(detections(detection_frame(k), both), trial=trial)).passages
    [part] = passages
    assert (part.label, part.trial_label, part.disagrees) == ("ok", "ok", False)


def test_frames_at_the_edge_of_the_image_vote_only_alone():
    zone = ZoneConfig(name="all", polygon=[(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)])
    boxes = passing(label="dent", score=0.6)
    for k in boxes:
        if boxes[k][0].box.left <= 1 or boxes[k][0].box.right >= WIDTH - 1:
            boxes[k] = [replace(boxes[k][0], label="ok", score=0.99)]
    assert [part.label for _, part in run(Places((zone,)), boxes, frames=90)] == ["dent"]
    only_edge = {k: [detection(Box(0.0, 50.0, 20.0, 70.0), label="ok")] for k in range(5)}
    assert [part.label for _, part in run(Places((zone,)), only_edge, frames=90)] == ["ok"]


def test_zone_without_good_classes_gives_no_verdict():
    [(_, part)] = run(Places((ZONE.model_copy(update={"ok": []}),)), passing(label="car"))
    assert part.is_ok is None


def test_classes_restrict_what_is_counted():
    places = Places((ZONE.model_copy(update={"classes": ["bus"]}),), (LINE.model_copy(update={"classes": ["bus"]}),))
    assert run(places, passing(label="car")) == []
    assert len(run(places, passing(label="bus"))) == 2


def test_classes_of_a_camera_are_those_that_a_place_counts_and_those_that_are_ok():
    named, line = ZONE.model_copy(update={"classes": ["dent"]}), LINE.model_copy(update={"classes": ["car"]})
    assert Places((named,), (line,)).classes({"ok"}) == {"ok", "dent", "car"}
    assert Places((named.model_copy(update={"ok": ["good"]}),)).classes({"ok"}) == {"good", "dent"}
    assert Places((named,), (LINE,)).classes({"ok"}) is None


def test_crossing_has_a_direction():
    [(frame, crossing)] = run(Places(lines=(LINE,)), passing(label="car"))
    # The line goes upwards at x = 80: from left to right is forward. It is clearly passed at x >= 82.4.
    assert (frame, crossing.kind, crossing.direction, crossing.label) == (17, "crossing", "forward", "car")
    back = {k: [detection(box_at(WIDTH - 5.0 * k), label="car")] for k in range(33)}
    assert [crossing.direction for _, crossing in run(Places(lines=(LINE,)), back)] == ["backward"]
    only = Places(lines=(LINE.model_copy(update={"direction": "backward"}),))
    assert run(only, passing()) == []
    assert len(run(only, back)) == 1


def test_object_that_trembles_on_a_line_is_not_counted_again():
    boxes = {k: [detection(box_at(80.0 + (2.0 if k % 2 else -2.0)))] for k in range(30)}
    assert run(Places(lines=(LINE,)), boxes) == []


def test_object_that_passes_beside_the_end_of_a_line_is_not_counted():
    short = LineConfig(name="gate", points=[(0.5, 0.3), (0.5, 0.0)])
    assert run(Places(lines=(short,)), passing()) == []


def test_crossing_of_a_fast_object_between_two_frames_is_counted():
    boxes = {0: [detection(box_at(30.0))], 1: [detection(box_at(130.0))]}
    assert len(run(Places(lines=(LINE,)), boxes)) == 1


def test_counts_of_places_are_those_of_their_passages():
    counter = PassageCounter("road", Places((ZONE,), (LINE,)), {"ok"})
    boxes = passing(28) | {k + 30: found for k, found in passing(30, track=2, label="dent").items()}
    run(None, boxes, frames=90, counter=counter)
    zone, line = counter.add(detections(detection_frame(91), ())).places
    assert {(each.label, each.is_ok): each.count for each in zone.counts} == {("ok", True): 1, ("dent", False): 1}
    assert (zone.total, zone.rejected, zone.inside) == (2, 1, 0)
    assert {(each.label, each.direction): each.count for each in line.counts} == {
        ("ok", "forward"): 1,
        ("dent", "forward"): 1,
    }
    assert line.points == ((80.0, 120.0), (80.0, 0.0))


def test_sequence_numbers_have_no_gaps():
    boxes = passing(28) | {k + 30: found for k, found in passing(30, track=2).items()}
    passages = [passage for _, passage in run(Places((ZONE,), (LINE,)), boxes, frames=90)]
    assert [passage.sequence for passage in passages] == [1, 2, 3, 4]
    assert [(passage.place, passage.number) for passage in passages] == [
        ("gate", 1), ("station", 1), ("gate", 2), ("station", 2),
    ]  # fmt: skip


def test_latency_is_the_time_from_the_last_frame_in_the_zone():
    [(_, part)] = run(Places((ZONE,)), passing(), clock=lambda: 1.0)
    assert part.latency_seconds == pytest.approx(1.0 - 22 / 25)


def test_evidence_outside_is_the_mean_over_the_maps_and_not_over_the_frames():
    record = PassageRecord(Vote())
    for index, (map_index, inside) in enumerate([(0, 0.9), (0, 0.9), (0, 0.9), (3, 0.5)]):
        found = detection(box_at(80.0), heat=heat_at(box_at(80.0)), index=map_index)
        found = replace(found, heatmap_stats=HeatmapStats(None, None, None, None, {BOX: inside}))
        record.add(found, box_at(80.0), detection_frame(index), is_clipped=False)
    assert record.result()["evidence_outside_box"] == pytest.approx((0.1 + 0.5) / 2)


def test_image_of_a_part_is_its_place_in_the_most_certain_frame_and_keeps_no_frame():
    record = PassageRecord(Vote())
    for index, score in enumerate([0.5, 0.9, 0.7]):
        frame = replace(detection_frame(index), pixels=np.full((HEIGHT, WIDTH, 3), index, np.uint8))
        record.add(detection(box_at(80.0), score=score), box_at(80.0), frame, is_clipped=False)
    result = record.result()
    assert result["index"] == 1
    assert (result["image"] == 1).all()
    assert result["image"].shape[:2] == (result["image_box"].height, result["image_box"].width)
    assert result["image"].base is None


def test_image_of_a_large_object_is_reduced():
    frame = replace(detection_frame(0), pixels=np.zeros((1000, 2000, 3), np.uint8))
    record = PassageRecord(Vote())
    record.add(detection(Box(0.0, 0.0, 2000.0, 1000.0)), Box(0.0, 0.0, 2000.0, 1000.0), frame, is_clipped=True)
    assert max(record.result()["image"].shape) <= MAX_IMAGE_PIXELS
