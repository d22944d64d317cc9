"""The maps of boxes are those of the definition, for the real detectors and a random one; a wrong plan is noticed."""

from __future__ import annotations

import math

import pytest
import torch

from engine.detectors.cones.plan import ConePlan
from engine.detectors.loader import load_detector
from tests.bench import detector_exactness
from tests.bench.detector_exactness import LIMIT, NETWORKS, compare_level, images_of
from tests.support.tiny_detector import calm_detector


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(detector_exactness, "NETWORKS", {"tiny": calm_detector})
    monkeypatch.setattr("sys.argv", ["detector_exactness", "--networks", "tiny", "--sizes", "64x96"])


@pytest.mark.slow
def test_detector_exactness_prints_a_row_for_each_level(tiny, capsys):
    detector_exactness.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| tiny")]
    assert [row.split("|")[3].strip() for row in rows] == ["stride 8", "stride 16", "stride 32"]
    assert all(float(row.split("|")[5]) <= LIMIT and float(row.split("|")[6]) > 0 for row in rows)


@pytest.mark.slow
def test_detector_exactness_fails_for_wrong_responses(tiny, monkeypatch):
    responses = ConePlan.responses

    def shifted(*args):
        return [[vectors.roll(1, 0) for vectors in found] for found in responses(*args)]

    monkeypatch.setattr(ConePlan, "responses", shifted)
    with pytest.raises(SystemExit, match="3 levels differ"):
        detector_exactness.main()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "file", "level", "kind"),
    [
        ("nanodet", "nanodet_plus_m_416.onnx", 3, "complete"),
        ("ssd_mobilenet", "ssd_mobilenet_v1_coco.onnx", 1, "complete"),
        ("ssdlite320", "", 0, "own level"),
        ("ssdlite320", "", 4, "complete"),
    ],
)
def test_maps_equal_the_definition_at_corners_and_edges(shared_data, network, file, level, kind):
    if file and not (shared_data / "weights" / "detectors" / file).is_file():
        pytest.skip(f"needs {file} beside the repository")
    detector = NETWORKS[network]()
    size = detector.input.size
    with torch.inference_mode():
        plan, worst, least = compare_level(detector, level, size, images_of(size))
    assert plan.startswith(kind)
    assert least > 1e-2
    assert worst <= LIMIT


@pytest.mark.slow
def test_levels_with_group_norms_are_explained_by_the_definition():
    detector = load_detector("fcos_resnet50_fpn", weights="random")
    with torch.inference_mode():
        plan, worst, _ = compare_level(detector, 0, (64, 64), images_of((64, 64)))
    assert plan == "own level, dense"
    assert math.isnan(worst)  # the plan is the definition itself
