"""The bench's closed form is Recipro-CAM's, and a source is never in two folds."""

import numpy as np
import pytest
import torch
from torch import nn

from engine.methods.recipro import recipro_cam
from engine.split.network import split_network
from tests.bench.defect_maps import folds_of, heat_of, hits, linear


@pytest.mark.parametrize("kernel", ["point", "gaussian"])
def test_closed_form_gives_the_same_map_as_the_definition(kernel):
    torch.manual_seed(0)
    layer = nn.Linear(8, 3).requires_grad_(requires_grad=False)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), layer).eval()
    image = torch.randn(1, 3, 32, 32)
    split = split_network(net, "1", (32, 32))
    _, heat = recipro_cam(split, image, 1, kernel)
    with torch.inference_mode():
        closed_form = heat_of(split.head(image)[0], layer, kernel, 1)
    closed_form = (closed_form - closed_form.min()) / (closed_form.max() - closed_form.min())
    assert np.allclose(closed_form, heat[0].numpy(), atol=1e-4)


def test_folds_keep_groups_whole_and_distribute_the_classes():
    rng = np.random.default_rng(1)
    sources = [f"s{k // 3}" for k in range(240)]
    classes = rng.integers(0, 3, 80).repeat(3)
    fold = folds_of(sources, classes)
    assert all(len(set(fold[k : k + 3])) == 1 for k in range(0, 240, 3))
    counts = np.array([np.bincount(classes[fold == k], minlength=3) for k in range(4)])
    assert counts.min() > 0
    assert np.ptp(counts.sum(1)) <= 9


def test_hit_is_within_fifteen_pixels_of_the_image():
    heat = np.zeros((4, 4))
    heat[1, 1] = 1.0
    mask = np.zeros((80, 80), bool)
    mask[29, 30 + 15] = True
    assert hits(heat, mask)
    mask[:] = False
    mask[29, 30 + 16] = True
    assert not hits(heat, mask)


def test_linear_layer_separates_separable_features():
    features = torch.randn(60, 4)
    classes = (features[:, 0] > 0).long().numpy()
    layer = linear(features, classes)
    assert (layer(features).argmax(1).numpy() == classes).mean() > 0.95
