"""The benchmark of the trained shortcut states the labels, the heat inside the boxes, and when the guard fires."""

from __future__ import annotations

import json

import pytest

from commands.train_line_detector import SHIPPED_DETECTOR
from tests.bench import trained_shortcut


@pytest.mark.slow
def test_honest_detector_does_not_follow_the_mark_and_stays_silent(capsys):
    trained_shortcut.main([str(SHIPPED_DETECTOR), "--frames", "7", "--mark", "stain"])
    line = json.loads(capsys.readouterr().out)
    assert line["boxes"] >= 6
    assert line["with_its_label"] < 0.5
    assert line["fires_after_seconds"] is None
    assert not line["fires_before_the_mark"]


def test_benchmark_refuses_a_run_without_marked_frames():
    with pytest.raises(SystemExit):
        trained_shortcut.main([str(SHIPPED_DETECTOR), "--frames", "4"])
