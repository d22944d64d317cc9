"""Whole networks, last layers and frozen layers in training."""

import numpy as np
import pytest
import torch

from engine.finetuning.dataset import ImageDataset
from engine.finetuning.freezing import freeze_until
from engine.finetuning.head import replace_head
from engine.finetuning.setup import FinetuneConfig, build_model
from engine.finetuning.trainables import FullFinetuner, LinearProbe, capture_input, rate_factor, scaled_features
from engine.finetuning.trainer import TrainingConfig
from engine.models.preprocess import Preprocessing
from pipeline.errors import LayerError, ModelError
from tests.support.training import square_image, square_samples

CPU = torch.device("cpu")
STAGE = TrainingConfig(1, 4, 0.1, 1)


def unchanged(pixels):
    return pixels


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small"])
def test_linear_probe_gives_the_logits_of_the_network(name):
    torch.manual_seed(0)
    net, entry, head_name = replace_head(name, "random", 3)
    paths = [sample.path for sample in square_samples(2)]
    images = ImageDataset(paths, square_image, Preprocessing((64, 64), entry.mean, entry.std))
    probe = LinearProbe(
        net, head_name, images, unchanged, device=CPU, views=1, seed=0, train_indices=np.arange(3),
        on_progress=lambda _done, _total: None,
    )  # fmt: skip
    with torch.inference_mode():
        scores = net(images.normalised(images.fitted(range(6))))
        assert torch.allclose(probe.logits(np.arange(6), augment=False), scores, atol=1e-5)


def test_rate_factor_grows_for_features_of_small_spread():
    features = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    factors = [rate_factor(features * scale) for scale in (3.0, 0.25, 0.02, 1e-9, 0.0)]
    assert factors == pytest.approx([1.0, 1.0, 10.0, 30.0, 1.0], rel=0.1)
    assert rate_factor(features[:1]) == 1.0


def test_capture_input_returns_the_input_of_the_layer():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 2))
    features, scores = capture_input(net, net[1], torch.ones(2, 3, 1, 1))
    assert features.tolist() == [[1, 1, 1]] * 2
    assert torch.equal(scores, net[1](features))


def test_freeze_until_leaves_the_later_layers_trainable():
    net, entry, head_name = replace_head("resnet18", "random", 3)
    count = freeze_until(net, "layer3", (64, 64))
    trainable = {name.partition(".")[0] for name, one in net.named_parameters() if one.requires_grad}
    assert trainable == {"layer4", "fc"}
    assert count == sum(one.numel() for one in [*net.layer4.parameters(), *net.fc.parameters()])
    images = ImageDataset(["r/1"], square_image, Preprocessing((64, 64), entry.mean, entry.std))
    finetuner = FullFinetuner(net, head_name, images, unchanged, STAGE, device=CPU)
    assert [group["lr"] for group in finetuner.param_groups(0.1)] == [0.4, 0.1]
    with pytest.raises(LayerError, match="Did you mean 'layer4'"):
        freeze_until(net, "layer44", (64, 64))
    with pytest.raises(LayerError, match="freezes all layers"):
        freeze_until(net, "fc", (64, 64))


@pytest.mark.slow
def test_freeze_until_takes_layer_names_of_the_whole_network():
    def trainable(layer):
        config = FinetuneConfig("resnet18", "random", (64, 64), truncate_at="layer3", freeze_until=layer)
        net = build_model(config, "rgb").net
        return {name.split(".")[1] for name, one in net.named_parameters() if one.requires_grad}

    assert trainable("layer2") == {"layer3", "weight", "bias"}
    assert trainable("layer3") == {"weight", "bias"}
    with pytest.raises(LayerError, match=r"truncated at 'layer3', before this layer; choose .*layer1, layer2, layer3$"):
        trainable("layer4")
    with pytest.raises(LayerError, match=r"no such layer\. Did you mean 'layer3'.*layer2, layer3$"):
        trainable("layer33")


def line_net():
    torch.manual_seed(0)
    net, _, head_name = replace_head("line_net", "random", 3)
    return net, head_name


@pytest.mark.parametrize("object_area", [None, 500.0])
def test_scaled_features_give_an_object_the_same_score_in_a_crop(object_area):
    net, head_name = line_net()
    weight = net.classifier.weight.detach().clone()
    cells = torch.zeros(1, 120, 8, 16)
    cells[:, :, 2:4, 1:3] = torch.rand(1, 120, 1, 1)

    def scores(grid):
        with torch.inference_mode():
            return net.classifier(net.flatten(net.pool(grid)))

    whole, crop = cells, cells[:, :, :4, :4]
    expected = scores(whole)
    for side, grid in ((None, whole), (32, crop)):
        stage = TrainingConfig(1, 4, 0.1, 1, crop=side, object_area=object_area)
        with scaled_features(net, head_name, stage, (64, 128)):
            assert torch.allclose(scores(grid), expected, atol=1e-6)
            if object_area:
                assert torch.allclose(net.classifier.weight, weight * object_area / (64 * 128), atol=1e-6)
        assert torch.allclose(net.classifier.weight, weight, atol=1e-6)
    assert torch.allclose(scores(whole), expected, atol=1e-6)
    assert not torch.allclose(scores(crop), expected, atol=1e-3)


def test_scaled_features_refuse_what_cannot_be_cropped():
    net, head_name = line_net()
    with (
        pytest.raises(ModelError, match="crop 65: is larger than the input of 64x128"),
        scaled_features(net, head_name, TrainingConfig(1, 4, 0.1, 1, crop=65), (64, 128)),
    ):
        pass
    net, _, head_name = replace_head("squeezenet1_1", "random", 3)
    with (
        pytest.raises(ModelError, match="is a Conv2d, but crop and object_area need a Linear one"),
        scaled_features(net, head_name, TrainingConfig(1, 4, 0.1, 1, crop=32), (64, 64)),
    ):
        pass


def test_full_finetuner_trains_on_crops_of_the_stage():
    net, head_name = line_net()
    shapes = []
    net.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    images = ImageDataset(["r/1"] * 4, square_image, Preprocessing((64, 64), (0.5,) * 3, (0.5,) * 3))
    for crop in (32, None):
        stage = TrainingConfig(1, 4, 0.1, 1, crop=crop)
        finetuner = FullFinetuner(net, head_name, images, unchanged, stage, device=CPU, untrained=True)
        finetuner.logits(np.arange(4), augment=True)
        first, second = (finetuner.logits(np.arange(4), augment=False) for _ in range(2))
        assert torch.equal(first, second)
    assert shapes == [(4, 3, 32, 32)] * 3 + [(4, 3, 64, 64)] * 3
