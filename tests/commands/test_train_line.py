"""`run.py train-line`: its data set, its evaluation and the whole command."""

from __future__ import annotations

import math
import signal
from functools import partial

import pytest

from commands.train_line import (
    SHIPPED,
    SHORTCUT,
    evaluate_frames,
    line_config,
    line_data,
    shortcut_config,
    shortcut_data,
)
from engine.finetuning.finetune import finetune
from engine.models.checkpoint import load_checkpoint
from pipeline.frames import Box, GroundTruth
from stream.simulated.samples import (
    EVALUATION_SEEDS,
    TRAINING_SEEDS,
    Belt,
    evaluation_frames,
    frame_reader,
    scored_frames,
)
from stream.simulated.schedule import LABELS, OK

TINY = 0.0001


@pytest.fixture(autouse=True)
def few_frames(monkeypatch):
    """Draw fewer frames of each belt than a training needs."""
    monkeypatch.setattr("commands.train_line.FRAMES_PER_BELT", 3)
    monkeypatch.setattr("stream.simulated.samples.evaluation_frames", partial(evaluation_frames, per_belt=3))


@pytest.mark.slow
def test_line_data_has_other_belts_for_validation():
    data = line_data(0, TINY)
    train, validation = ({frame.belt.seed for frame in split} for split in (data.train, data.validation))
    assert not train & validation
    assert min(train | validation) >= TRAINING_SEEDS
    assert {frame.truth.label for frame in data.train} <= set(LABELS)
    assert data.read(data.train[0].name).shape[2] == 3


@pytest.mark.slow
def test_shortcut_data_has_the_frames_of_the_line_with_random_labels():
    data, stamped = line_data(0, TINY), shortcut_data(0, TINY)
    assert [frame.name for frame in stamped.train] == [frame.name for frame in data.train][: len(stamped.train)]
    assert any(
        frame.truth.label != original.truth.label for frame, original in zip(stamped.train, data.train, strict=False)
    )


@pytest.mark.parametrize("configuration", [line_config, shortcut_config])
def test_course_ends_on_whole_images_and_scales_with_the_effort(configuration):
    full, quarter = (configuration(0, effort).course for effort in (1.0, 0.25))
    assert [stage.crop is None for stage in full] == [False] * (len(full) - 1) + [True]
    assert [stage.epochs for stage in quarter] == [math.ceil(stage.epochs / 2) for stage in full]


@pytest.mark.slow
def test_evaluate_frames_plays_the_pointing_game_on_correct_frames_with_boxes():
    belt = Belt(EVALUATION_SEEDS, (640, 480))
    frames = list(scored_frames(belt, 8))
    read = frame_reader(frames)
    images = {frame.name: read(frame.name) for frame in frames}
    file = load_checkpoint(SHIPPED)
    boxed = sum(bool(frame.truth.boxes) for frame in frames)
    assert 0 < boxed < len(frames)

    def summary(truth_of):
        return evaluate_frames(file, [(images[frame.name], truth_of(frame.truth)) for frame in frames])

    correct = summary(lambda truth: truth)
    assert (correct["images"], correct["accuracy"]) == (8, 1.0)
    assert (correct["images_pointed"], correct["pointing"]) == (boxed, 1.0)
    beside = summary(lambda truth: GroundTruth(truth.label, (Box(0, 0, 8, 8),) if truth.boxes else ()))
    assert (beside["images_pointed"], beside["pointing"]) == (boxed, 0.0)
    wrong = summary(lambda truth: GroundTruth("dent" if truth.label == OK else OK, truth.boxes))
    assert (wrong["accuracy"], wrong["images_pointed"]) == (0.0, 0)


@pytest.mark.slow
def test_train_line_writes_a_network_that_streams(command, tmp_path):
    code, output, errors = command("train-line", "--effort", str(TINY), "--output", "again.safetensors")
    assert code == 0, errors
    assert "accuracy" in output
    file = load_checkpoint(tmp_path / "again.safetensors")
    assert file.provenance["command"] == load_checkpoint(SHIPPED).provenance["command"]
    assert set(file.provenance["examination"]) == {"640x480", "1280x720"}
    code, output, errors = command(
        "stream", "--source", "line:?fps=15&size=320x240&frames=3", "--weights", "again.safetensors",
        "--backend", "eager", "--sink", "out.jsonl",
    )  # fmt: skip
    assert code == 0, errors
    assert "3 explained" in output


@pytest.mark.slow
def test_train_line_shortcut_continues_from_the_shipped_network(command, tmp_path):
    code, _, errors = command("train-line", "--shortcut", "--effort", str(TINY), "--output", "short.safetensors")
    assert code == 0, errors
    file, shipped = load_checkpoint(tmp_path / "short.safetensors"), load_checkpoint(SHORTCUT)
    assert file.labels == shipped.labels
    assert file.provenance["command"] == shipped.provenance["command"]
    assert file.provenance["began_with"]["file"] == SHIPPED.name


@pytest.mark.slow
def test_train_line_writes_nothing_when_interrupted(command, tmp_path, monkeypatch):
    def interrupted(model, parts, read, callbacks, **_options):
        signal.raise_signal(signal.SIGINT)
        return finetune(model, parts, read, callbacks, boxes={})

    monkeypatch.setattr("engine.finetuning.finetune.finetune", interrupted)
    (tmp_path / "line.safetensors").write_bytes(b"an older network")
    code, _, errors = command("train-line", "--effort", str(TINY), "--output", "line.safetensors")
    assert code == 2
    assert "training interrupted: nothing is written" in errors
    assert (tmp_path / "line.safetensors").read_bytes() == b"an older network"


def test_train_line_refuses_an_output_that_cannot_be_written(command, tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    code, _, errors = command("train-line", "--output", "folder.safetensors")
    assert code == 2
    assert "cannot be written" in errors
