"""The benchmark of whole runs states every case beside the plain detector, and refuses runs without their maps."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from tests.bench import detector_frames
from tests.support.tiny_detector import calm_detector, coarse_image


@pytest.fixture(scope="module")
def figures():
    return detector_frames.measure(calm_detector(), [coarse_image()], 2, backend="eager", masks=2)


@pytest.mark.slow
def test_detector_frames_states_every_case_beside_the_plain_detector(figures):
    cases = figures["cases"]
    assert set(cases) == {"plain", "in_budget", "all_boxes", *detector_frames.PEERS}
    assert figures["boxes_per_frame"] > 0
    assert all(case["frames_per_second"] > 0 and case["ratio_median"] > 0 for case in cases.values())


def test_detector_frames_makes_the_maps_of_all_boxes_where_there_is_no_budget(figures):
    cases = figures["cases"]
    assert cases["plain"]["maps_per_frame"] == 0
    for name in ("all_boxes", *detector_frames.PEERS):
        assert cases[name]["maps_per_frame"] == figures["boxes_per_frame"]
    assert 0 < cases["in_budget"]["maps_per_frame"] <= figures["boxes_per_frame"]


def test_detector_frames_refuses_a_run_without_its_maps():
    plain, found = detector_frames.Checked(), detector_frames.Checked()
    plain.boxes = found.boxes = 3
    found.maps = 2
    detector_frames.check("in_budget", found, plain)
    with pytest.raises(RuntimeError, match="odam: 2 maps of 3 boxes"):
        detector_frames.check("odam", found, plain)


def test_detector_frames_reads_consecutive_frames_of_a_clip(tmp_path, monkeypatch):
    monkeypatch.setattr(detector_frames, "FIRST_FRAME", 2)
    path = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25, (64, 48))
    for level in range(0, 250, 50):
        writer.write(np.full((48, 64, 3), level, np.uint8))
    writer.release()
    images = detector_frames.images_of(path, 2)
    assert [round(float(image.mean()), -1) for image in images] == [100, 150]
