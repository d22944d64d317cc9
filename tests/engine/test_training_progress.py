"""A training that was killed and continued has the same result as one that was not killed."""

import logging
from dataclasses import replace

import pytest
import torch

from engine.finetuning.detection.finetune import finetune_detector
from engine.finetuning.detection.setup import build_detector
from engine.finetuning.progress import TrainingProgress, fingerprint
from engine.finetuning.setup import FinetuneConfig
from engine.finetuning.splits import TRAIN, stratified_group_split
from engine.models.loader import build_untrained
from engine.models.registry import MODELS
from pipeline.frames import GroundTruth
from tests.support.training import FRACTIONS, callbacks, run_finetune, square_box, square_image, square_samples

WHOLE = FinetuneConfig(
    "line_net", "random", (32, 32), augment=("hflip", "crop", "colour"), epochs=4, batch=12,
    learning_rate=4e-3, threads=1,
)  # fmt: skip
DETECTOR = FinetuneConfig(
    "yolox_nano", "random", (64, 64), augment=("hflip", "colour", "scale", "mosaic"), epochs=3, batch=8, threads=1,
    learning_rate=1e-2,
)  # fmt: skip


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture(scope="module")
def parts():
    return stratified_group_split(square_samples(6), FRACTIONS, 0)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "w.pth"
    torch.manual_seed(0)
    torch.save(build_untrained(MODELS["squeezenet1_1"], 5).state_dict(), path)
    return path


def truths(path, _size):
    return (GroundTruth(path[0], (square_box(path),)),)


def run(kind, parts, pretrained, progress=None, on_epoch=lambda _: None):
    """Train, and return weights and epochs."""
    if kind == "detector":
        model = build_detector(DETECTOR, ("r", "g", "b"))
        result = finetune_detector(model, parts, square_image, truths, callbacks(on_epoch), progress=progress)
    elif kind == "two stages":
        config = replace(WHOLE, model="squeezenet1_1", weights=str(pretrained), input_size=(64, 64), epochs=2)
        result = run_finetune(parts, config, callbacks(on_epoch), progress=progress)
    else:
        config = replace(WHOLE, linear_probe=kind == "linear probe")
        result = run_finetune(parts, config, callbacks(on_epoch), progress=progress)
    return result.checkpoint.state, result.epochs


@pytest.fixture(scope="module")
def uninterrupted(parts, pretrained):
    """Return the result of a training by its kind; each is trained once."""
    results = {}

    def result(kind):
        if kind not in results:
            results[kind] = run(kind, parts, pretrained)
        return results[kind]

    return result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "kills"),
    [("whole", [1, 3]), ("linear probe", [2]), ("two stages", [2, 16]), ("two stages", [61]), ("detector", [2])],
)
def test_training_killed_after_epochs_goes_on_to_the_same_result(
    kind, kills, parts, pretrained, uninterrupted, tmp_path
):
    done = []

    def on_epoch(stats):
        done.append(stats)
        if kills and len(done) == kills[0]:
            kills.pop(0)
            raise Killed

    path = tmp_path / "part.progress.pt"
    planned = len(kills)
    for _ in range(planned):
        torch.manual_seed(99)  # another process has another random state
        with pytest.raises(Killed):
            run(kind, parts, pretrained, TrainingProgress(path, "same"), on_epoch)
    progress = TrainingProgress(path, "same")
    assert progress.epochs == len(done)
    state, epochs = run(kind, parts, pretrained, progress, on_epoch)
    expected_state, expected_epochs = uninterrupted(kind)
    assert [replace(epoch, seconds=0) for epoch in epochs] == [replace(epoch, seconds=0) for epoch in expected_epochs]
    for name, value in expected_state.items():
        assert torch.equal(value, state[name]), name
    progress.remove()
    assert not path.exists()


def test_progress_of_another_training_or_a_damaged_file_is_not_used(tmp_path, caplog):
    path = tmp_path / "part.progress.pt"
    progress = TrainingProgress(path, "one")
    progress.next_stage()
    progress.save({"history": [{}]})
    assert TrainingProgress(path, "one").epochs == 1
    assert TrainingProgress(path, "one", restart=True).epochs == 0
    assert not caplog.records
    assert TrainingProgress(path, "two").epochs == 0
    assert "other settings, weights or images" in caplog.text
    content = path.read_bytes()
    for damaged in (b"", b"text", content[: len(content) // 2]):
        path.write_bytes(damaged)
        caplog.clear()
        assert TrainingProgress(path, "one").epochs == 0
        assert "starts again" in caplog.text


def test_progress_that_cannot_be_written_is_logged_once(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    (tmp_path / "file").touch()
    progress = TrainingProgress(tmp_path / "file" / "part.progress.pt", "one")
    progress.next_stage()
    progress.save({"history": [{}]})
    progress.save({"history": [{}, {}]})
    assert caplog.text.count("cannot be saved") == 1


def test_progress_is_saved_in_a_folder_that_does_not_exist_yet(tmp_path):
    path = tmp_path / "runs" / "new" / "part.progress.pt"
    progress = TrainingProgress(path, "one")
    progress.next_stage()
    progress.save({"history": [{}]})
    assert TrainingProgress(path, "one").epochs == 1


def test_fingerprint_depends_on_settings_images_and_weights(parts):
    weights = {"w": torch.ones(3), "steps": torch.tensor(1)}
    fewer = {**parts, TRAIN: parts[TRAIN][:-1]}
    prints = [
        fingerprint({"seed": 0}, parts, weights),
        fingerprint({"seed": 1}, parts, weights),
        fingerprint({"seed": 0}, fewer, weights),
        fingerprint({"seed": 0}, parts, {**weights, "w": torch.zeros(3)}),
    ]
    assert len(set(prints)) == 4
    assert prints[0] == fingerprint({"seed": 0}, parts, dict(weights))
