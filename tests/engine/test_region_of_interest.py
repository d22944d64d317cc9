"""Regions of interest and masks: the network gets exactly this part, and its results lie where they belong."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from commands.wiring.run import make_network
from engine.explainers.detector import DetectorExplainer
from engine.explainers.gpu import GpuExplainer
from engine.explainers.network import NetworkExplainer
from engine.gpu.image_ops import FramePreprocessor
from engine.models.preprocess import BORDER, Preprocessing
from overlays.render.gpu_tables import heat_lut
from pipeline.config import BoxesConfig, Config, EngineConfig
from pipeline.errors import ConfigError
from pipeline.frames import Box, Frame
from pipeline.input_area import InputAreaOptions
from pipeline.polygons import pixels_inside
from pipeline.ports import MaskingOptions
from pipeline.queries import PlaceQueries, PlaceQuery
from pipeline.workers.source import SourceWorker
from stream.sources import build_source
from tests.support.tiny_detector import calm_detector, coarse_image

FITS = ["stretch", "letterbox", "crop"]
AREAS = {
    "rectangle": InputAreaOptions((31, 17, 67, 43)),
    "fractions": InputAreaOptions((0.21, 0.1, 0.5, 0.83)),
    "polygon": InputAreaOptions(((12, 5), (101.5, 20), (64, 73.2))),
    "masks": InputAreaOptions(masks=(((0.1, 0.1), (0.5, 0.2), (0.3, 0.9)), ((60, 40), (200, 40), (200, 90), (60, 90)))),
    "masked rectangle": InputAreaOptions((31, 17, 67, 43), (((40, 20), (60, 20), (60, 80)),)),
}


def noise(height, width, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def framed(image, options, index=0):
    """Return a frame with its area, as its source's worker gives it."""
    return Frame(image, "a", index, 100.0, area=options.placed(image.shape[1], image.shape[0]))


def seen(frame, colour):
    """Return the expected network input of a frame as a separate frame, and the position of its corner."""
    left, top, right, bottom = frame.area.cut
    image = frame.image[top:bottom, left:right].copy()
    outside = ~pixels_inside(frame.area.roi, frame.area.cut) if frame.area.roi else np.zeros(image.shape[:2], bool)
    for mask in frame.area.masks:
        outside |= pixels_inside(mask, frame.area.cut)
    image[outside] = colour
    return replace(frame, pixels=image, area=None), (left, top)


def moved(box, corner):
    x, y = corner
    return pytest.approx((box.left + x, box.top + y, box.right + x, box.bottom + y), abs=1e-3)


@pytest.fixture(scope="module")
def network(lively_squeezenet):
    return lively_squeezenet


def explainer(network, fit="stretch"):
    return NetworkExplainer(network, settings(fit=fit))


def settings(**options):
    size = options.pop("input_size", "64x64")
    return EngineConfig(model="squeezenet1_1", input_size=size, cache="off", backend="eager", device="cpu", **options)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("name", AREAS)
def test_explanation_of_a_region_is_that_of_the_cut_image(network, fit, name):
    explaining = explainer(network, fit)
    frame = framed(noise(91, 131), AREAS[name])
    cut, corner = seen(frame, explaining._preprocessing.mean_colour)
    (found,), (expected,) = explaining.explain([frame]), explaining.explain([cut])
    assert found.frame is frame
    assert found.region == moved(expected.region, corner)
    assert np.ptp(found.first.heat) > 0.1
    for finding, alone in zip(found.findings, expected.findings, strict=True):
        assert (finding.label, finding.score) == (alone.label, alone.score)
        np.testing.assert_array_equal(finding.heat, alone.heat)
    check = MaskingOptions(0.1)
    masked = explaining.score_when_masked(found, found.first, check)
    assert masked == explaining.score_when_masked(expected, expected.first, check) != found.first.score


def test_masked_pixels_get_the_networks_mean_colour():
    preprocessing = Preprocessing((64, 64), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    frame = framed(noise(64, 64), InputAreaOptions(masks=(((0, 0), (64, 0), (64, 32), (0, 32)),)))
    pixels = preprocessing.pixels([frame])
    assert pixels[0, :, :32].flatten(1).unique(dim=1).flatten().tolist() == [124, 116, 104]
    np.testing.assert_array_equal(pixels[0, :, 32:].permute(1, 2, 0).numpy(), frame.image[32:])
    assert float(preprocessing.normalised(pixels)[0, :, :32].abs().max()) < 0.5 / 255.0 / 0.224
    assert frame.image[:32].std() > 50, "the delivered image is not painted"


@pytest.mark.parametrize("fit", FITS)
def test_peak_in_a_region_lies_in_the_object(fit):
    """A frame of the simulated line, put into a larger one with odd sides, is explained where it lies."""
    config = Config(engine=EngineConfig(backend="eager", cache="off", device="cpu", fit=fit))
    explaining = NetworkExplainer(make_network(config), config.engine)
    left, top = 733, 211
    with build_source("line:?frames=180&paced=0&seed=3&size=641x479") as source:
        frames = [frame for frame in source.frames(threading.Event()) if frame.truth and frame.truth.boxes][::9]
    hits = []
    for frame in frames:
        image = noise(1081, 1921, frame.index)
        image[top : top + 479, left : left + 641] = frame.image
        (found,) = explaining.explain([framed(image, InputAreaOptions((left, top, 641, 479)))])
        if found.top_scoring.label == frame.truth.label:
            x, y = found.top_scoring.peak(found.region)
            hits.append(any(box.holds(x - left, y - top) for box in frame.truth.boxes))
    assert len(hits) >= 5
    assert all(hits)


MIN_SCORE = 0.6


@pytest.fixture(scope="module")
def detector():
    return calm_detector(MIN_SCORE)


def boxes_of(detector):
    options = BoxesConfig(min_score=MIN_SCORE, cell_px=32, budget=None, max_maps=3)
    return DetectorExplainer(detector, EngineConfig(backend="eager", boxes=options))


@pytest.fixture(scope="module")
def running(detector):
    return boxes_of(detector)


@pytest.fixture(scope="module", params=["stretch", "corner", "centre"])
def fitting(request, detector):
    """A detector of each fit, with a border of three colours."""
    return boxes_of(replace(detector, input=replace(detector.input, fit=request.param, border=(90.0, 114.0, 7.0))))


@pytest.mark.slow
@pytest.mark.parametrize("name", AREAS)
def test_boxes_in_a_region_are_those_of_the_cut_image(fitting, name):
    frame = replace(framed(coarse_image()[:173, :239], AREAS[name]), camera=f"whole {name}")
    cut, corner = seen(frame, (90, 114, 7))
    (found,), (expected,) = fitting.explain([frame]), fitting.explain([replace(cut, camera=f"cut {name}")])
    assert len(found.findings) == len(expected.findings) > 2
    assert found.region == Box(0, 0, 239, 173)
    left, top, right, bottom = frame.area.cut
    for finding, alone in zip(found.findings, expected.findings, strict=True):
        assert (finding.label, finding.score) == (alone.label, alone.score)
        assert finding.box == moved(alone.box, corner)
        assert left <= finding.box.left <= finding.box.right <= right
        assert top <= finding.box.top <= finding.box.bottom <= bottom
        np.testing.assert_array_equal(finding.heat, alone.heat)
        assert (finding.box_map is None) == (alone.box_map is None)
        if finding.box_map is not None:
            assert finding.box_map.region == moved(alone.box_map.region, corner)
    assert sum(finding.box_map is not None for finding in found.findings) == 3


def test_masked_pixels_of_a_detector_get_the_colour_of_its_border(detector):
    placed = replace(detector.input, size=(96, 128), order="bgr", border=(1.0, 2.0, float(BORDER)), mean=(0.0,) * 3)
    placed = replace(placed, std=(1.0,) * 3)
    frame = framed(noise(96, 128), InputAreaOptions(masks=(((0, 0), (128, 0), (128, 48), (0, 48)),)))
    prepared = placed.prepare_frames([frame])[0]
    assert prepared[:, :48].flatten(1).unique(dim=1).flatten().tolist() == [1.0, 2.0, float(BORDER)]


def test_answer_about_a_place_in_a_region_is_that_of_the_cut_image(running):
    frame = framed(coarse_image(), InputAreaOptions((37, 21, 171, 133)))
    cut, corner = seen(frame, (0, 0, 0))
    place = Box(60.0, 50.0, 130.0, 120.0)
    shifted = Box(*(edge - corner[axis % 2] for axis, edge in enumerate(place)))
    answers = [ask(running, each, box) for each, box in ((frame, place), (cut, shifted))]
    found, expected = (answer.result(timeout=0) for answer in answers)
    assert (found.score, found.overlap) == pytest.approx((expected.score, expected.overlap), abs=1e-6)
    for finding, alone in zip(found.maps, expected.maps, strict=True):
        assert finding.box == moved(alone.box, corner)
        assert finding.box_map.region == moved(alone.box_map.region, corner)
        np.testing.assert_allclose(finding.heat, alone.heat, atol=1e-6)
    assert found.supporting
    for influence, alone in zip(found.supporting, expected.supporting, strict=True):
        assert influence.box == moved(alone.box, corner)


def test_answer_about_a_place_outside_the_region_names_it(running):
    frame = framed(coarse_image(), InputAreaOptions((37, 21, 100, 90)))
    message = "lies outside the region of interest 37,21,100,90 in the image of 240x180 pixels; choose a place inside"
    with pytest.raises(ConfigError, match=message):
        ask(running, frame, Box(150.0, 20.0, 180.0, 60.0)).result(timeout=0)


def ask(running, frame, box):
    queries = PlaceQueries()
    running.accept(queries)
    with queries.viewing():
        running.explain([frame])
        future = queries.ask(PlaceQuery("a", frame.index, box, "dog"))
        for _ in range(3):
            running.idle()
    return future


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("name", AREAS)
def test_gpu_input_of_a_region_equals_the_hosts_within_one_level(fit, name):
    preprocessing = Preprocessing((64, 48), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), fit)
    frame = framed(noise(91, 131), AREAS[name])
    fitter = FramePreprocessor(preprocessing, (91, 131), frame.area)
    levels = fitter.levels(torch.from_numpy(frame.image.copy())[None])
    assert float((levels - preprocessing.pixels([frame]).float()).abs().max()) <= 1.0
    assert fitter.placement.region == preprocessing.region(frame)


@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
def test_gpu_explainer_equals_the_host_with_regions(network, fit):
    images = [noise(60, 91, seed) for seed in range(5)]
    frames = [
        Frame(images[0], "plain", 0, 100.0),
        framed(images[1], AREAS["fractions"], 1),
        framed(images[2], AREAS["masks"], 2),
        framed(images[3], AREAS["fractions"], 3),
        Frame(images[4], "plain", 4, 100.0),
    ]
    card = GpuExplainer(network, settings(fit=fit, batch=2), table=heat_lut("inferno", 0.6))
    host = explainer(network, fit).explain(frames)
    for expected, explanation in zip(host, card.explain(frames), strict=True):
        assert explanation.frame is expected.frame
        assert explanation.region == expected.region
        assert explanation.first.score == pytest.approx(expected.first.score, abs=5e-3)
        if explanation.first.class_index == expected.first.class_index:
            np.testing.assert_allclose(explanation.first.heat, expected.first.heat, atol=0.1)


@pytest.mark.parametrize("video", ["odd/rotated_90.mov", "odd/rotated_180.mov"])
def test_region_of_rotated_video_lies_in_the_rotated_image(shared_data, video):
    options = InputAreaOptions((0.25, 0.125, 0.5, 0.25))
    with build_source(str(shared_data / "videos" / video)) as source:
        source.input_area = options
        with SourceWorker(source, overflow="wait") as worker:
            frame = next(iter(worker))
    height, width = frame.image.shape[:2]
    expected = (round(width / 4), round(height / 8), round(width * 3 / 4), round(height * 3 / 8))
    assert frame.area.cut == expected
    left, top, right, bottom = expected
    pixels = Preprocessing((bottom - top, right - left), (0.0,) * 3, (1.0,) * 3).pixels([frame])[0]
    np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), frame.image[top:bottom, left:right])
