"""Deletion check: which cells are masked, how they are filled, and the resulting score."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.explainers.network import NetworkExplainer
from engine.methods.masking import hottest_cells, masked_images
from engine.models.loader import load_network
from pipeline.config_loader import validate_config
from pipeline.frames import Frame
from pipeline.ports import MaskingOptions
from stream.simulated.scene import Scene, draw_frame

SHIPPED = Path(__file__).resolve().parents[2] / "configs" / "models" / "line.safetensors"


def test_hottest_cells_cover_the_area():
    heat = np.arange(20, dtype=np.float32).reshape(4, 5) / 19
    assert hottest_cells(heat, 0.15).nonzero().tolist() == [[3, 2], [3, 3], [3, 4]]
    assert int(hottest_cells(heat, 0.001).sum()) == 1


def test_hottest_cells_excludes_zero_cells():
    heat = np.zeros((4, 5), np.float32)
    assert not hottest_cells(heat, 0.5).any()
    heat[1, 1] = 1.0
    assert hottest_cells(heat, 0.5).nonzero().tolist() == [[1, 1]]


@pytest.mark.parametrize("fill", ["mean", "blur"])
def test_masked_images_changes_only_the_cells(fill):
    images = torch.randn(1, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    cells = torch.zeros(4, 5, dtype=torch.bool)
    cells[1, 2] = True
    masked = masked_images(images, cells, MaskingOptions(0.05, fill))
    changed = (masked != images).any(dim=1)[0]
    assert changed[6:12, 16:24].all()
    changed[6:12, 16:24] = False
    assert not changed.any()


def test_masked_images_fills_with_the_mean_of_the_rest():
    images = torch.ones(1, 3, 4, 4)
    images[:, :, :2, :2] = 100.0
    cells = torch.tensor([[True, False], [False, False]])
    assert masked_images(images, cells, MaskingOptions(0.25, "mean")).unique().tolist() == [1.0]


@pytest.fixture(scope="module")
def explainer():
    config = validate_config({"engine": {"backend": "eager"}}, "t").engine
    return NetworkExplainer(load_network("line_net", weights=SHIPPED, labels=None), config)


def test_score_when_masked_drops_for_a_correct_explanation(explainer):
    assert explainer.can_mask
    scene = Scene(seed=7)
    drops, elsewhere = [], []
    for index in (24, 312, 480, 640):
        image, truth = draw_frame(scene, index)
        (seen,) = explainer.explain([Frame(image, "line", index, 0.0, index / 30, truth)])
        assert seen.first.label == truth.label
        drops.append(seen.first.score - explainer.score_when_masked(seen, seen.first, MaskingOptions(0.05, "blur")))
        cold = replace(seen.first, heat=np.ascontiguousarray(1.0 - np.ceil(seen.first.heat * 4) / 4))
        elsewhere.append(seen.first.score - explainer.score_when_masked(seen, cold, MaskingOptions(0.05, "blur")))
    assert min(drops) > 0.5
    assert np.median(np.abs(elsewhere)) < 0.05


@pytest.mark.slow
def test_score_when_masked_computes_no_explanation():
    config = validate_config({"engine": {"backend": "eager", "layer": "layer3"}}, "t").engine
    inner = NetworkExplainer(load_network("resnet18", weights="random", labels=None), config)
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    assert not inner.info.plan.one_module
    assert torch.allclose(inner._scores(images), inner._outputs(images)[0], atol=1e-5)
    (seen,) = inner.explain([Frame(np.full((60, 80, 3), 90, np.uint8), "a", 0, 0.0)])
    assert 0.0 <= inner.score_when_masked(seen, seen.first, MaskingOptions()) <= 1.0
