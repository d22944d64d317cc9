"""Options of the engine that a detector, or only a detector, has."""

import pytest

from commands.wiring.detectors import build_detector_explainer, check_has_no_boxes
from pipeline.config import BoxesConfig, EngineConfig
from pipeline.errors import ConfigError


@pytest.mark.parametrize(
    ("option", "value"),
    [("mean", (0.5, 0.5, 0.5)), ("std", (1, 1, 1)), ("fit", "crop"), ("kernel", "gaussian"), ("target", ["top5"])],
)
def test_detector_refuses_options_of_classifiers(option, value):
    with pytest.raises(ConfigError, match=rf"^engine\.{option}: "):
        build_detector_explainer(EngineConfig(model="line_detector", **{option: value}))


def test_classifier_accepts_boxes_with_default_values_only():
    written = EngineConfig(model="line_net", boxes=BoxesConfig().model_dump())
    check_has_no_boxes(written)
    with pytest.raises(ConfigError, match=r"^engine\.boxes\.mode: belongs to detectors"):
        check_has_no_boxes(written.model_copy(update={"boxes": BoxesConfig(mode="drop")}))
