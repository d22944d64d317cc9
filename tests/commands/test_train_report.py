"""Verification of a written model."""

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
    model_to_train = build_model(FinetuneConfig(model, "random", size, **more), LABELS)
    state = {key: value.detach().clone() for key, value in model_to_train.net.state_dict().items()}
    preprocessing = model_to_train.preprocessing
    file = Checkpoint(
        state,
        model_to_train.name,
        LABELS,
        size,
        preprocessing.mean,
        preprocessing.std,
        model_to_train.layer,
        {"note": "a test"},
        preprocessing.fit,
        model_to_train.truncate_at,
    )
    return model_to_train, file


@pytest.fixture
def image_path(tmp_path):
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8))
    return str(path)


@pytest.mark.slow
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
def test_write_checked_writes_a_model_with_the_scores_of_the_network(tmp_path, image_path, model, size, more):
    model_to_train, file = trained(model, size, **more)
    output = tmp_path / "part.safetensors"
    explainer = write_checked(output, file, model_to_train, image_path, read_image)
    assert explainer.labels == LABELS
    assert load_checkpoint(output).labels == LABELS
    assert not unchecked_file(output).exists()


def other_weights(file):
    return replace(file, state={key: value + 0.5 * torch.ones_like(value) if value.is_floating_point() else value
                                for key, value in file.state.items()})  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "rule"),
    [
        (other_weights, "but that of the trained network is"),
        (lambda file: replace(file, labels=("ok", "dent", "scratch")), "but was trained on ok, scratch, dent"),
        (lambda file: replace(file, std=(1e-3, 1e-3, 1e-3)), "but that of the trained network is"),
        (lambda file: replace(file, layer="nowhere"), "cannot be loaded and built"),
        (lambda file: replace(file, state={}), "cannot be loaded and built"),
        (lambda file: replace(file, state={k: v * float("nan") for k, v in file.state.items()}), "cannot be loaded"),
        (lambda file: replace(file, model="resnet18"), "cannot be loaded and built"),
    ],
)
def test_write_checked_keeps_the_older_file_if_the_model_differs(tmp_path, image_path, damage, rule):
    model_to_train, file = trained("line_net", (48, 64))
    output = tmp_path / "part.safetensors"
    output.write_bytes(b"an older model")
    with pytest.raises(ModelError, match="not written") as error:
        write_checked(output, damage(file), model_to_train, image_path, read_image)
    assert rule in str(error.value)
    assert "part.unchecked.safetensors" in str(error.value)
    assert output.read_bytes() == b"an older model"
    assert unchecked_file(output).exists()
