"""Training and examination, on pictures whose answer is plain: one bright or dark square somewhere in grey."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from engine.line_training.evaluate import evaluate_classifier
from engine.line_training.preprocessing import Preprocessing
from engine.line_training.sample_pool import SamplePool
from engine.line_training.trainer import CurriculumStage, train
from pipeline.errors import ModelError
from pipeline.frames import Box, GroundTruth

RECIPE = Preprocessing(
    labels=("ok", "bright", "dark"), input_size=(96, 128), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
)
PLAN = (CurriculumStage(48, 60, 24, 2e-2), CurriculumStage(None, 40, 16, 1e-2))


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Small(nn.Module):
    """Two convolutions to cells of 4 pixels that see 13, a mean, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 5, stride=4, padding=2, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(8, 3)


class Squares:
    """Draws grey pictures of 192x144, every second one with a square of 36 pixels."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def __call__(self, count: int) -> list[tuple[np.ndarray, GroundTruth]]:
        return [self.one() for _ in range(count)]

    def one(self) -> tuple[np.ndarray, GroundTruth]:
        image = self.rng.integers(100, 150, (144, 192, 3)).astype(np.uint8)
        label = ("ok", "bright", "ok", "dark")[int(self.rng.integers(4))]
        if label == "ok":
            return image, GroundTruth("ok")
        left, top = int(self.rng.integers(0, 156)), int(self.rng.integers(0, 108))
        image[top : top + 36, left : left + 36] = 230 if label == "bright" else 20
        return image, GroundTruth(label, (Box(left, top, left + 36, top + 36),))


def trained(seed: int = 0, plan=PLAN, **options) -> tuple[Small, list]:
    torch.manual_seed(0)
    net = Small()
    seen: list = []
    train(net, Squares(seed), recipe=RECIPE, plan=plan, album=120, seed=seed, on_progress=seen.append, **options)
    return net, seen


def test_it_learns_what_is_plain_and_points_at_it():
    net, seen = trained()
    result = evaluate_classifier(net, Squares(1)(200), recipe=RECIPE)
    assert result.accuracy >= 0.95, result
    assert result.pointing >= 0.95, result
    assert result.images == 200
    assert sum(map(sum, result.confusion)) == 200
    assert [p.step for p in seen] == list(range(1, 101))
    assert {p.steps for p in seen} == {100}
    assert [p.stage for p in seen][::99] == ["48 px pieces", "whole pictures"]
    assert not net.training


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    short = (CurriculumStage(48, 3, 8, 1e-2), CurriculumStage(None, 2, 8, 1e-2))
    first, again, other = (trained(seed, plan=short)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_pictures_without_boxes_train_too():
    def boxless(count):
        return [(image, GroundTruth(truth.label)) for image, truth in Squares(3)(count)]

    net = Small()
    report = train(net, boxless, recipe=RECIPE, plan=(CurriculumStage(None, 2, 8, 1e-3),), album=16)
    assert np.isfinite(report.loss)


def test_an_unknown_label_is_named_with_its_neighbour():
    def wrong(count):
        return [(np.zeros((96, 128, 3), np.uint8), GroundTruth("brigth"))] * count

    with pytest.raises(ModelError, match="Did you mean 'bright'"):
        train(Small(), wrong, recipe=RECIPE, plan=PLAN, album=4)


def test_a_net_with_another_ending_is_refused():
    net = Small()
    net.classifier = nn.Sequential(nn.Linear(8, 3))
    with pytest.raises(ModelError, match=r"Sequential: .* one Linear layer"):
        train(net, Squares(0), recipe=RECIPE, plan=PLAN, album=4)


def test_close_ups_hold_the_whole_box_or_come_from_pictures_without_one():
    album = SamplePool(Squares(5), RECIPE, count=80, rng=np.random.default_rng(0))
    pieces, classes = album.close_ups(60, 48)
    assert pieces.shape == (60, 3, 48, 48)
    for piece, kind in zip(pieces, classes, strict=True):
        extreme = ((piece > 190) | (piece < 60)).all(0).sum()
        assert (extreme == 0) if kind == 0 else (extreme >= 484)  # 24x24 input pixels, less the blurred rim


class Marked(nn.Module):
    """A network that calls everything ``bright`` and points at the brightest cell."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.AvgPool2d(8)
        self.classifier = nn.Linear(3, 3)
        with torch.no_grad():
            self.classifier.weight.zero_()
            self.classifier.weight[1] = 4.0
            self.classifier.bias.copy_(torch.tensor([0.0, 0.5, 0.0]))


def test_the_pointing_game_counts_only_right_answers_with_boxes():
    net = Marked()
    image = np.full((96, 128, 3), 127, np.uint8)
    image[32:64, 32:64] = 255
    box, elsewhere = Box(32, 32, 64, 64), Box(80, 0, 96, 16)
    samples = [
        (image, GroundTruth("bright", (box,))),
        (image, GroundTruth("bright", (elsewhere,))),
        (image, GroundTruth("dark", (box,))),
        (image, GroundTruth("ok")),
    ]
    result = evaluate_classifier(net, samples, recipe=RECIPE)
    assert result.accuracy == 0.5
    assert result.pointed_images == 2
    assert result.pointing == 0.5


def test_a_stretched_picture_keeps_its_colours_and_is_normalised_by_the_recipe():
    image = np.zeros((90, 90, 3), np.uint8)
    image[..., 0] = 255
    inputs = RECIPE.normalise(RECIPE.stretch(image)[None])
    assert inputs.shape == (1, 3, 96, 128)
    assert torch.allclose(inputs[0, :, 20, 20], torch.tensor([2.0, -2.0, -2.0]))
