"""The benchmark of a network on trial measures what it says."""

import pytest

from pipeline.trial import TrialExplainer
from tests.bench import trial_cost
from tests.pipeline.test_trial import Seen
from tests.support.detections import detection_frame


def test_trial_cost_explains_each_frame_by_one_and_by_two_networks():
    first, second = Seen("ok"), Seen("ok")
    frames = [detection_frame(index) for index in range(12)]
    result = trial_cost.measure(first, TrialExplainer(first, second, "copy"), frames)
    assert (len(first.frames), len(second.frames), result["frames"]) == (24, 12, 12 - trial_cost.WARM_UP)
    assert result["ratio_quartiles"][0] <= result["ratio"] <= result["ratio_quartiles"][1]


def test_trial_cost_refuses_a_trial_that_has_failed():
    first = Seen("ok")
    with pytest.raises(RuntimeError, match="wrong frames"):
        trial_cost.measure(first, TrialExplainer(first, Seen("ok", error_at=3), "copy"), [detection_frame(3)])
