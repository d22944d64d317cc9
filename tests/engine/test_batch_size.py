"""Batch sizes for several cameras: the one with the smallest mean age of displayed frames is chosen."""

import logging
from types import SimpleNamespace

import pytest
import torch

from commands.wiring.run import choose_batch_size
from engine.explainers import base
from engine.explainers.base import BaseExplainer, EngineInfo
from engine.methods.plan import PlanInfo
from engine.models.preprocess import Preprocessing
from pipeline.config import Config, EngineConfig
from pipeline.settings import SourceSettings


class Costing(BaseExplainer):
    """Takes a fixed time for each pass and for each image, on its own clock."""

    def __init__(self, of_a_pass, of_an_image, device="cpu"):
        plan = PlanInfo("pooled", "", one_module=True)
        facts = EngineInfo("net", "4", (2, 2), (8, 8), plan, "eager", "fp32", device, 0.0)
        super().__init__(("a",), "m", Preprocessing((8, 8), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "stretch"), facts)
        self.of_a_pass, self.of_an_image = of_a_pass, of_an_image
        self.now, self.asked = 0.0, []

    def _images(self, pixels):
        assert (pixels.dtype, pixels.shape[1:]) == (torch.uint8, (3, 8, 8))
        return pixels

    def _outputs(self, images):
        self.asked.append(len(images))
        self.now += 0.01 * (self.of_a_pass + self.of_an_image * len(images))


@pytest.fixture
def costing(monkeypatch):
    def make(*costs):
        explainer = Costing(*costs)
        monkeypatch.setattr(base, "time", SimpleNamespace(perf_counter=lambda: explainer.now))
        return explainer

    return make


@pytest.mark.parametrize(("of_a_pass", "of_an_image", "cameras", "chosen"), [
    (0.0, 10.0, 12, 1), (10.0, 10.0, 12, 4), (100.0, 0.0, 4, 4),
    (5.0, 10.0, 12, 1), (5.0, 10.0, 60, 4),  # with more cameras waiting, a shorter total time counts more
])  # fmt: skip
def test_worthwhile_batch_minimizes_the_age_of_displayed_frames(
    costing, caplog, of_a_pass, of_an_image, cameras, chosen
):
    caplog.set_level(logging.INFO)
    assert costing(of_a_pass, of_an_image).worthwhile_batch(cameras) == chosen
    assert f": batch size {chosen}" in caplog.text


def configured(cameras, **engine):
    return Config(sources=[SourceSettings(uri="line:")] * cameras, engine=EngineConfig(**engine))


def test_choose_batch_size_measures_nothing_for_one_camera(costing):
    explainer = costing(100.0, 0.0)
    assert choose_batch_size(configured(1), explainer) == 1
    assert explainer.asked == []


def test_choose_batch_size_is_at_most_four_on_a_cpu_unless_configured(costing):
    explainer = costing(100.0, 0.0)
    assert choose_batch_size(configured(12), explainer) == 4
    assert set(explainer.asked) == {1, 4}
    assert choose_batch_size(configured(3), explainer) == 3
    assert choose_batch_size(configured(12, batch=7), explainer) == 7


@pytest.mark.parametrize(("cameras", "together"), [(1, 8), (5, 8), (12, 12)])
def test_choose_batch_size_on_a_gpu_is_the_camera_count_and_at_least_eight(cameras, together):
    assert choose_batch_size(configured(cameras), Costing(0.0, 1.0, "cuda:0")) == together
