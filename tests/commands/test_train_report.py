"""What was trained is used once, as a stream uses it, before it has its name."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from commands.train_report import unchecked_file, write_checked
from engine.finetuning.setup import FinetuneConfig, build_model
from engine.models.checkpoint import Checkpoint, load_checkpoint
from pipeline.errors import ModelError
from stream.images import read_image

LABELS = ("ok", "scratch", "dent")


def trained(model, size, **more):
    pupil = build_model(FinetuneConfig(model, "random", size, **more), LABELS)
    state = {key: value.detach().clone() for key, value in pupil.net.state_dict().items()}
    shown = pupil.preprocessing
    file = Checkpoint(
        state,
        pupil.name,
        LABELS,
        size,
        shown.mean,
        shown.std,
        pupil.layer,
        {"note": "a test"},
        shown.fit,
        pupil.truncate_at,
    )
    return pupil, file


@pytest.fixture
def picture(tmp_path):
    place = tmp_path / "picture.png"
    cv2.imwrite(str(place), np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8))
    return str(place)


@pytest.mark.parametrize(
    ("model", "size", "more"),
    [
        ("line_net", (48, 64), {}),
        ("line_net", (48, 64), {"truncate_at": "features.3", "fit": "letterbox"}),
        ("squeezenet1_1", (64, 64), {"fit": "crop"}),
        ("mobilenet_v3_small", (64, 64), {}),
        ("mnasnet1_0", (64, 64), {}),  # its state has a version beside the weights
    ],
)
def test_written_model_answers_as_the_trained_network(tmp_path, picture, model, size, more):
    pupil, file = trained(model, size, **more)
    output = tmp_path / "part.safetensors"
    explainer = write_checked(output, file, pupil, picture, read_image)
    assert explainer.labels == LABELS
    assert load_checkpoint(output).labels == LABELS
    assert not unchecked_file(output).exists()


def other_weights(file):
    return replace(file, state={key: value + 0.5 * torch.ones_like(value) if value.is_floating_point() else value
                                for key, value in file.state.items()})  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "rule"),
    [
        (other_weights, "where the trained network gives"),
        (lambda file: replace(file, labels=("ok", "dent", "scratch")), "has other classes"),
        (lambda file: replace(file, std=(1e-3, 1e-3, 1e-3)), "where the trained network gives"),
        (lambda file: replace(file, layer="nowhere"), "cannot be loaded and built"),
        (lambda file: replace(file, state={}), "cannot be loaded and built"),
        (lambda file: replace(file, state={k: v * float("nan") for k, v in file.state.items()}), "cannot be loaded"),
        (lambda file: replace(file, model="resnet18"), "cannot be loaded and built"),
    ],
)
def test_model_that_is_not_what_was_trained_gets_no_name_and_keeps_its_weights(tmp_path, picture, damage, rule):
    pupil, file = trained("line_net", (48, 64))
    output = tmp_path / "part.safetensors"
    output.write_bytes(b"an older model")
    with pytest.raises(ModelError, match="not written") as refused:
        write_checked(output, damage(file), pupil, picture, read_image)
    assert rule in str(refused.value)
    assert "part.unchecked.safetensors" in str(refused.value)
    assert output.read_bytes() == b"an older model"
    assert unchecked_file(output).exists()
