"""Measures of maps of boxes follow their formulas; the baselines agree with a slow reference."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from engine.evaluation import metrics
from engine.evaluation.detectors.evaluator import D_RISE, BoxEvaluationOptions, BoxEvaluator, _rank_correlation
from engine.evaluation.detectors.maps import (
    BLIND,
    METHODS,
    ExplainedBox,
    Explaining,
    PlacedMap,
    chosen_methods,
    shuffled_channels,
)
from engine.evaluation.detectors.matching import BoxClasses, cut_at_edges, match_boxes
from engine.evaluation.detectors.perturbation import (
    ScoreReader,
    border_colour,
    curve_areas,
    curve_ends,
    d_rise,
    perturbed_image,
    random_masks,
    shares_of,
)
from engine.evaluation.detectors.summary import clustered_mean, summarise_boxes, table_rows
from pipeline.errors import ConfigError
from pipeline.frames import Box, Frame, GroundTruth
from tests.support.tiny_detector import LABELS, SIZE, calm_detector, coarse_image

KNOWN = BoxClasses(LABELS, {"lorry": [1], "van": [0, 1]})


@pytest.fixture(scope="module")
def detector():
    return calm_detector()


@pytest.fixture(scope="module")
def frame():
    return Frame(coarse_image(), "test", 0, 0.0)


@pytest.fixture(scope="module")
def explaining(detector):
    return Explaining(detector)


@pytest.fixture(scope="module")
def boxes(detector, explaining, frame):
    """The two best boxes of the image."""
    with torch.inference_mode():
        found = explaining.run(detector.input.prepare([frame.image]))
        detections = found.complete_boxes.detections
        assert len(detections) > 1
        return [
            ExplainedBox(
                found, explaining.complete.target(found.complete_boxes, k), tuple(detections.boxes[k].tolist()), 32
            )
            for k in range(2)
        ]


@pytest.fixture(scope="module")
def scene(detector, frame, boxes):
    """The score reader, the image to change, and the first box to find again."""
    reader = ScoreReader(detector)
    placement = detector.input.place(frame.height, frame.width)
    image = perturbed_image(detector.input.prepare([frame.image]), detector.input, placement)
    found = boxes[0].image.complete_boxes
    return reader, image, reader.scored(found.source.candidates, int(found.detections.anchors[0]), boxes[0].target)


def score_at(box, split, features):
    """Return the score of a box from the features at a cut."""
    layout, target = box.image.detector.layout, box.target
    with torch.inference_mode():
        maps = split.tail(*features)
        vectors = [maps[split.maps.index(r.map)][:, :, r.row, r.column] for r in layout.reads(target.anchor)]
        return float(layout.log_score(vectors, target.class_index, target.anchor).exp())


def test_objects_are_cut_at_the_edges_of_their_image_as_detections_are():
    objects = (Box(-30, 10, 20, 30), Box(70, 30, 90, 50), Box(90, 50, 95, 60), Box(1, 2, 3, 4))
    cut = cut_at_edges([GroundTruth(LABELS[0], objects)], (40, 80))[0].boxes
    assert cut == (Box(0, 10, 20, 30), Box(70, 30, 80, 40), Box(80, 40, 80, 40), Box(1, 2, 3, 4))
    found = match_boxes([cut[0]], [0], cut_at_edges([GroundTruth(LABELS[0], objects[:1])], (40, 80)), KNOWN)
    assert found.matches[0].iou == 1.0


@pytest.mark.slow
def test_odam_is_the_derivative_of_the_score_when_a_cell_is_scaled(boxes):
    box = boxes[0]
    found = METHODS["odam"](box)
    split = box.image.detector.split(box.target.anchor.level, "own level")
    feature = box.image.features(split)[0]
    assert float(found.values.max()) > 0.0
    step = 0.02
    for index in (int(found.values.argmax()), 0):
        row, column = divmod(index, found.values.shape[1])
        scores = []
        for sign in (1.0, -1.0):
            scaled = feature.clone()
            scaled[:, :, row, column] *= 1.0 + sign * step
            scores.append(score_at(box, split, [scaled]))
        slope = max((scores[0] - scores[1]) / (2.0 * step), 0.0)
        assert float(found.values[row, column]) == pytest.approx(slope, abs=0.02 * float(found.values.max()))


def test_odam_at_the_cut_is_the_sum_of_its_enlarged_maps(boxes):
    box = boxes[0]
    whole = METHODS["odam-cut"](box)
    assert whole.values.shape == SIZE
    assert float(whole.values.max()) > 0.0
    assert float(whole.values.min()) >= 0.0


def test_eigen_cam_is_the_projection_on_the_first_singular_vector_and_ignores_the_box(boxes):
    box = boxes[0]
    split = box.image.detector.split(box.target.anchor.level, "own level")
    feature = box.image.features(split)[0][0].numpy()
    flat = feature.reshape(len(feature), -1).T.astype(np.float64)
    _, _, vectors = np.linalg.svd(flat, full_matrices=False)
    projected = (flat @ vectors[0]).reshape(feature.shape[1:])
    projected *= np.sign(projected.sum())
    found = METHODS["eigen-cam"](box).values.numpy()
    assert np.ptp(found) > 0.0
    np.testing.assert_allclose(found, np.maximum(projected, 0.0), atol=1e-4 * np.abs(projected).max())


def test_gaussians_have_their_peak_at_the_anchor_and_in_the_box(boxes):
    for box in boxes:
        x, y = METHODS["gaussian-anchor"](box).peak()
        assert (x, y) == pytest.approx(box.anchor_centre, abs=1.0)
        left, top, right, bottom = box.corners
        x, y = METHODS["gaussian-box"](box).peak()
        assert left - 1 <= x <= right + 1
        assert top - 1 <= y <= bottom + 1


def test_random_map_is_the_same_for_the_same_box(boxes):
    first, second = (METHODS["random"](boxes[0]).values for _ in range(2))
    assert torch.equal(first, second)
    assert float(first.max()) > float(first.min())


def test_placed_map_has_its_peak_in_the_middle_of_its_cell():
    values = torch.zeros(3, 4)
    values[1, 2] = 1.0
    placed = PlacedMap(values, 32)
    assert placed.peak() == (80.0, 48.0)
    wide = placed.on_input((90, 128))
    assert wide.shape == (90, 128)
    assert abs(divmod(int(wide.argmax()), 128)[1] - 80) <= 1


def test_chosen_methods_always_include_those_that_know_nothing():
    assert chosen_methods("drop, keep") == ("keep", "drop", *BLIND)
    assert chosen_methods(None) == tuple(METHODS)
    with pytest.raises(ConfigError, match="Did you mean 'odam'"):
        chosen_methods("odamm")


def test_shuffled_channels_keep_the_values_of_each_channel(detector):
    other = shuffled_channels(detector.module)
    moved = 0
    for before, after in zip(detector.module.parameters(), other.parameters(), strict=True):
        if before.ndim > 1:
            torch.testing.assert_close(before.flatten(1).sort(1).values, after.flatten(1).sort(1).values)
            moved += int((before != after).sum())
        else:
            assert torch.equal(before, after)
    assert moved > 1000


def test_score_reader_finds_the_unchanged_box(scene, boxes):
    reader, image, box = scene
    with torch.inference_mode():
        (scores,) = reader.read(image.image, [box])
    assert float(scores.anchor) == pytest.approx(float(boxes[0].image.complete_boxes.detections.scores[0]), abs=1e-5)
    assert 0.0 < float(scores.similarity) <= 1.0


def test_similarity_is_the_maximum_over_boxes_of_overlap_cosine_and_objectness(scene, detector):
    reader, image, box = scene
    with torch.inference_mode():
        images = torch.cat([image.image, image.blurred])
        (scores,) = reader.read(images, [box])
        maps = detector.network().module(images)
        candidates = detector.layout.decode(maps, SIZE)
    for n in range(2):
        parts = [maps[v.objectness_map][n, 0].flatten().sigmoid() for v in detector.layout.levels]
        best = 0.0
        for a, objectness in enumerate(torch.cat(parts)):
            overlap = float(box_iou(candidates.boxes[n, a][None], box.corners[None]))
            other = candidates.log_scores[n, a].exp()
            cosine = float(torch.nn.functional.cosine_similarity(other, box.class_scores, dim=0))
            best = max(best, overlap * cosine * float(objectness))
        assert float(scores.similarity[n]) == pytest.approx(best, abs=1e-5)


def test_curves_begin_and_end_with_the_whole_changed_image(scene):
    reader, image, box = scene
    with torch.inference_mode():
        heat = torch.rand(SIZE, generator=torch.Generator().manual_seed(1))
        areas = curve_areas(reader, image, box, heat, steps=1, ends=curve_ends(reader, image, box))
        (scores,) = reader.read(torch.cat([image.image, image.grey, image.blurred]), [box])
    plain, grey, blurred = scores.anchor.tolist()
    assert areas.deletion == pytest.approx((plain + grey) / 2.0, abs=1e-5)
    assert areas.insertion == pytest.approx((plain + blurred) / 2.0, abs=1e-5)
    assert areas.similarity_deletion == pytest.approx(float(scores.similarity[0] + scores.similarity[1]) / 2, abs=1e-5)


def test_curves_are_the_scores_of_images_that_change_hottest_first(scene):
    reader, image, box = scene
    heat = torch.rand(SIZE, generator=torch.Generator().manual_seed(1))
    order = torch.from_numpy(image.order(heat))
    with torch.inference_mode():
        areas = curve_areas(reader, image, box, heat, steps=3, ends=curve_ends(reader, image, box))
        expected = []
        for start, end in ((image.image, image.grey), (image.blurred, image.image)):
            scores = []
            for share in shares_of(3):
                changed = start.clone()
                hottest = order[: round(share * len(order))]
                changed.flatten(2)[:, :, hottest] = end.flatten(2)[:, :, hottest]
                scores.append(float(reader.read(changed, [box])[0].anchor))
            expected.append(np.trapezoid(scores, shares_of(3)))
    assert areas.deletion == pytest.approx(expected[0], abs=1e-5)
    assert areas.insertion == pytest.approx(expected[1], abs=1e-5)
    assert abs(areas.insertion - areas.deletion) > 1e-3


def test_rank_correlation_of_smoothed_maps_is_that_of_their_regions():
    values = torch.arange(6.0).view(2, 3)
    same, reverse = PlacedMap(values, 8, heat=values), PlacedMap(values, 8, heat=-values)
    assert _rank_correlation(same, PlacedMap(values, 8)) == pytest.approx(1.0)
    assert _rank_correlation(same, reverse) == pytest.approx(-1.0)


def test_perturbed_image_leaves_the_border_out(detector):
    input_format = detector.input.__class__(SIZE, mean=(128.0,) * 3, std=(64.0,) * 3, fit="centre")
    image = input_format.prepare([coarse_image()[:60]])
    placement = input_format.place(60, 240)
    changed = perturbed_image(image, input_format, placement)
    heat = torch.arange(float(SIZE[0] * SIZE[1])).view(SIZE)
    order = changed.order(heat)
    rows, columns = np.divmod(order, SIZE[1])
    (left, top), (height, width) = placement.offset, placement.size
    assert top > 0
    assert sorted(set(rows)) == list(range(top, top + height))
    assert sorted(set(columns)) == list(range(left, left + width))
    assert list(order) == sorted(order, reverse=True)
    assert torch.equal(changed.grey, border_colour(input_format).expand_as(image))
    outside = torch.ones(SIZE, dtype=torch.bool)
    outside[top : top + height, left : left + width] = False
    assert torch.equal(changed.blurred[..., outside], image[..., outside])


def test_shares_grow_from_none_to_all_with_fine_first_steps():
    shares = shares_of(4)
    assert shares == [0.0, 1 / 16, 1 / 4, 9 / 16, 1.0]
    assert metrics.area_at(shares, [1.0] * 5) == pytest.approx(1.0)
    assert metrics.area_at(shares, shares) == pytest.approx(0.5)
    even = [k / 4 for k in range(5)]
    scores = [0.9, 0.7, 0.1, 0.3, 0.0]
    assert metrics.area_at(even, scores) == pytest.approx(metrics.area_under(scores))


def test_d_rise_is_the_mean_of_masks_weighted_by_the_similarity(scene):
    reader, image, box = scene
    with torch.inference_mode():
        (found,) = d_rise(reader, image, [box], 6, seed=4)
        expected = torch.zeros(SIZE)
        weights = []
        for mask in random_masks(SIZE, 6, 4):
            (scores,) = reader.read(image.image * mask + image.grey * (1 - mask), [box])
            expected += float(scores.similarity) * mask / 6
            weights.append(float(scores.similarity))
    assert max(weights) > min(weights)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_match_boxes_gives_each_object_to_the_best_detection_of_its_class():
    truths = (
        GroundTruth("car", (Box(0, 0, 10, 10),)), GroundTruth("Car", (Box(100, 0, 110, 10),)),
        GroundTruth("lorry", (Box(50, 0, 60, 10),)), GroundTruth("ship", (Box(50, 50, 60, 60),)),
    )  # fmt: skip
    boxes = [Box(0, 0, 10, 9), Box(0, 0, 10, 10), Box(50, 0, 60, 10), Box(50, 0, 60, 8), Box(50, 50, 60, 60)]
    found = match_boxes(boxes, [0, 0, 0, 1, 1], truths, KNOWN)
    assert [(match.detection, match.truth.left) for match in found.matches] == [(0, 0), (3, 50)]
    assert [match.iou for match in found.matches] == pytest.approx([0.9, 0.8])
    assert (found.missed, found.unknown, found.extra) == (1, 1, 3)
    anything = match_boxes(boxes, [0, 0, 0, 1, 1], truths, BoxClasses(LABELS, {}, any_box=True))
    assert [match.detection for match in anything.matches] == [0, 2, 4]


def test_match_boxes_needs_an_overlap_of_one_half():
    truth = (GroundTruth("car", (Box(0, 0, 10, 10),)),)
    assert match_boxes([Box(0, 0, 10, 5)], [0], truth, KNOWN).matches
    assert not match_boxes([Box(0, 0, 10, 4.9)], [0], truth, KNOWN).matches


def test_clustered_mean_without_clusters_is_the_usual_standard_error():
    values = [0.1, 0.5, 0.2, 0.9]
    mean, error = clustered_mean(values, range(4))
    assert mean == pytest.approx(0.425)
    assert error == pytest.approx(np.std(values, ddof=1) / 2.0)


def test_clustered_mean_gains_nothing_from_repeated_values():
    once, error = clustered_mean([0.1, 0.5, 0.2], "abc")
    again, same = clustered_mean([0.1, 0.5, 0.2] * 7, "abc" * 7)
    assert (again, same) == (pytest.approx(once), pytest.approx(error))
    assert clustered_mean([0.1, 0.5], "aa")[1] is None


@pytest.fixture(scope="module")
def record(detector, frame, boxes):
    """The record of an image whose objects are its two best detections, and a missed one."""
    found = boxes[0].image.complete_boxes.detections
    placement = detector.input.place(frame.height, frame.width)
    truths = [
        GroundTruth(LABELS[int(found.classes[k])], (Box(*placement.to_image(found.boxes[k]).clamp(min=0).tolist()),))
        for k in range(2)
    ]
    options = BoxEvaluationOptions(steps=2, cell_px=32, drise_masks=2)
    record = BoxEvaluator(detector, options).evaluate(frame, [*truths, GroundTruth("ship", (Box(0, 0, 5, 5),))])
    return {"image": "a.png", **json.loads(json.dumps(record))}


@pytest.mark.slow
def test_box_evaluator_judges_every_method_on_every_matched_box(record, detector):
    assert record["objects"] == 3
    assert record["unknown"] == 1
    assert record["matched"] == len(record["judged"]) >= 1
    assert record["matched"] + record["missed"] == 2
    for entry in record["judged"]:
        assert entry["iou"] > 0.5
        assert set(entry["methods"]) == {*METHODS, D_RISE}
        for name, measured in entry["methods"].items():
            assert all(0.0 <= measured[key] <= 1.0 for key in ("energy", "evidence", "deletion", "insertion"))
            assert ("randomised" in measured) == (name in METHODS and name not in BLIND)
        drop = entry["methods"]["drop"]
        assert drop["energy"] == drop["evidence"]
        rows, columns = np.shape(entry["maps"]["keep"])
        assert (rows, columns) == (3, 4)


def test_box_evaluator_judges_no_more_boxes_than_allowed(detector, frame, record):
    options = BoxEvaluationOptions(methods=BLIND, steps=0, boxes_per_image=1, randomize=False, any_box=True)
    truths = [GroundTruth("thing", tuple(Box(*entry["box"]) for entry in record["judged"]))]
    limited = BoxEvaluator(detector, options).evaluate(frame, truths)
    assert limited["matched"] >= len(limited["judged"]) == 1
    assert "deletion" not in limited["judged"][0]["methods"]["random"]
    assert not limited["judged"][0]["maps"]


def test_box_evaluator_finds_an_object_that_overhangs_its_image(detector, frame, boxes):
    placement = detector.input.place(frame.height, frame.width)
    found = placement.to_image(boxes[0].image.complete_boxes.detections.boxes).tolist()
    left, top, right, bottom = next(box for box in found if box[0] < 0 < box[2] or box[1] < 0 < box[3])
    far = 4 * max(frame.width, frame.height)
    wide = Box(left - far if left < 0 else left, top - far if top < 0 else top, right, bottom)
    options = BoxEvaluationOptions(methods=BLIND, steps=0, boxes_per_image=1, randomize=False, any_box=True)
    assert BoxEvaluator(detector, options).evaluate(frame, [GroundTruth("thing", (wide,))])["missed"] == 0


def test_summary_has_means_and_paired_differences(record):
    other = {**record, "image": "b.png"}
    summary = summarise_boxes([record, other])
    count = len(record["judged"])
    assert (summary["images"], summary["boxes"], summary["unknown"]) == (2, 2 * count, 2)
    keep = summary["methods"]["keep"]
    expected = np.mean([e["methods"]["keep"]["insertion"] - e["methods"]["keep"]["deletion"] for e in record["judged"]])
    assert keep["difference"] == {"mean": pytest.approx(expected), "se": pytest.approx(0.0, abs=1e-9), "n": 2 * count}
    gaussian = summary["methods"]["gaussian-anchor"]
    paired = keep["difference"]["mean"] - gaussian["difference"]["mean"]
    assert keep["less_gaussian-anchor"]["mean"] == pytest.approx(paired)
    assert gaussian["less_gaussian-anchor"] is None
    assert gaussian["randomised"] is None
    rows = table_rows([record])
    assert len(rows) == count * (len(METHODS) + 1)
    assert {row["method"] for row in rows} == {*METHODS, D_RISE}
