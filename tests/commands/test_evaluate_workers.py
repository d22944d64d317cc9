"""`run.py evaluate --workers`: several processes give the records of one, in its order."""

import json
import os
import subprocess
import sys
from collections import deque
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from commands import evaluation_run, ray_settings
from commands.annotations import load_boxes, load_masks
from commands.evaluation_inputs import EvaluatedImage, ImageRecorder, ImageTask
from commands.evaluation_run import EvaluationWorker, in_order
from commands.images import open_images
from commands.ray_settings import REMOVED
from commands.trained_images import TrainedImages
from pipeline.errors import EngineError
from tests.conftest import ROOT

OPTIONS = ("--model", "line_net", "--input-size", "64x64", "--steps", "28", "--threads", "1")


def image_task(number: int, path: str = "a.png") -> ImageTask:
    return ImageTask(number, f"{number}.png", Path(path))


def write_photos(folder: Path, count: int) -> None:
    """Write images of a square; the maps of two places differ."""
    folder.mkdir()
    for number in range(count):
        image = np.full((60, 80, 3), 90, np.uint8)
        image[10:40, 2 * number : 2 * number + 30] = (40, 180, 200)
        cv2.imwrite(str(folder / f"{number:03}.png"), image)


def records(folder: Path) -> list[dict]:
    """Return the records without the time that each took."""
    lines = (folder / "images.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


@given(st.permutations(range(6)), st.sets(st.integers(0, 5)))
def test_in_order_yields_each_image_once_and_by_its_number(numbers, missing):
    images = [EvaluatedImage(image_task(number), {}) for number in numbers if number not in missing]
    assert [image.task.number for image in in_order(images)] == sorted(set(numbers) - missing)


def test_in_order_yields_an_image_as_soon_as_those_before_it_are_there():
    taken: list[int] = []

    def evaluated():
        for number in (1, 0, 2):
            taken.append(number)
            yield EvaluatedImage(image_task(number), {})

    ordered = in_order(evaluated())
    assert next(ordered).task.number == 0
    assert taken == [1, 0]


class Refusing:
    """Fails as PyTorch does without memory."""

    labels = ()

    def evaluate(self, *_):
        raise RuntimeError("not enough memory: 12 GiB\nat some line")


def test_image_on_which_the_network_fails_is_named(tmp_path):
    write_photos(tmp_path / "in", 1)
    _, read, _ = open_images(str(tmp_path / "in"))
    masks = tmp_path / "masks"
    write_photos(masks, 1)
    recorder = ImageRecorder(load_masks(masks, 0), TrainedImages("line_net"), read)
    with pytest.raises(EngineError, match=r"in/000\.png: cannot be evaluated \(not enough memory: 12 GiB\)"):
        recorder.evaluate(Refusing(), image_task(0, str(tmp_path / "in" / "000.png")))


class Counting:
    """Returns what it was given."""

    labels = ()

    def evaluate(self, frame, truths, mask):
        return {"mean": float(frame.image.mean()), "boxes": len(truths or ()), "mask": None if mask is None else 1}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_recorder_in_another_process_has_the_annotations_of_this_one(tmp_path, monkeypatch, kind):
    ray = pytest.importorskip("ray")
    write_photos(tmp_path / "in", 2)
    write_photos(tmp_path / "masks", 2)
    coco = {
        "images": [{"id": 1, "file_name": "001.png"}], "categories": [{"id": 1, "name": "part"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 80, 60]}],
    }  # fmt: skip
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    monkeypatch.chdir(tmp_path)
    annotations = load_boxes(Path("coco.json"), None) if kind == "boxes" else load_masks(Path("masks"), 0)
    recorder = ImageRecorder(annotations, TrainedImages("line_net"), open_images("in")[1])
    other = ray.cloudpickle.loads(ray.cloudpickle.dumps(recorder))
    task = image_task(0, "in/001.png")
    found = EvaluationWorker(Counting, other, str(tmp_path)).evaluate(task)
    assert found == recorder.evaluate(Counting(), task)
    assert (found.record["boxes"], found.record["mask"]) == ((1, None) if kind == "boxes" else (0, 1))


@pytest.fixture
def photos(tmp_path):
    write_photos(tmp_path / "photos", 4)
    (tmp_path / "photos" / "002.png").write_text("no image")


def test_workers_without_ray_are_refused_with_the_extra_to_install(command, tmp_path, photos, monkeypatch):
    monkeypatch.setattr(ray_settings, "find_spec", lambda _: None)
    code, _, errors = command("evaluate", "photos", *OPTIONS, "--output", "out", "--workers", 2)
    assert code == 2
    assert "--workers 2: Ray is not installed; run `uv sync --inexact --extra fleet`, or omit --workers" in errors
    assert not (tmp_path / "out").exists()


def test_workers_are_refused_for_a_video(command, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_settings, "find_spec", lambda _: True)
    writer = cv2.VideoWriter(str(tmp_path / "film.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 48))
    for number in range(3):
        writer.write(np.full((48, 64, 3), 50 * number, np.uint8))
    writer.release()
    code, _, errors = command("evaluate", "film.mp4", *OPTIONS, "--output", "out", "--workers", 2)
    assert code == 2
    assert "--workers 2: film.mp4 is a video, whose frames one process decodes in order; omit --workers" in errors


class BackwardPool:
    """Does the tasks in this process, the last one first; loses some."""

    def __init__(self, worker, lost):
        self._worker, self._lost = worker, lost

    def run(self, _submit, waiting: deque, stop, lose):
        while waiting and not stop.is_set():
            task = waiting.pop()
            yield lose(task, "its worker ended") if task.name in self._lost else self._worker.evaluate(task)


@pytest.fixture
def lost(monkeypatch):
    """Yield the names of images that a stand-in for Ray's pool loses; it pickles its worker as Ray does."""
    ray, names = pytest.importorskip("ray"), set()

    @contextmanager
    def pool(kind, arguments, _workers):
        sent = ray.cloudpickle.loads(ray.cloudpickle.dumps(arguments))
        yield BackwardPool(kind(*sent), names)

    monkeypatch.setattr(evaluation_run, "actor_pool", pool)
    return names


@pytest.mark.slow
@pytest.mark.usefixtures("lost")
def test_workers_give_the_records_of_one_process_to_the_last_bit(command, tmp_path, photos, caplog):
    assert command("evaluate", "photos", *OPTIONS, "--output", "one")[0] == 0
    caplog.clear()
    code, output, errors = command("evaluate", "photos", *OPTIONS, "--output", "two", "--workers", 2)
    assert code == 0, errors
    assert "3 of 4 images" in output
    assert "left out: photos/002.png" in caplog.text
    one = records(tmp_path / "one")
    assert len({json.dumps(record["heat"]) for record in one}) == 3  # the maps are not flat
    assert records(tmp_path / "two") == one


@pytest.mark.slow
def test_lost_image_is_named_and_the_same_command_tries_it_again(command, tmp_path, photos, lost):
    words = ("evaluate", "photos", *OPTIONS, "--workers", 2, "--output", "out")
    lost.add("001.png")
    code, _, errors = command(*words)
    assert code != 0
    assert "1 images, such as photos/001.png, were not evaluated, because their worker ended" in errors
    assert not (tmp_path / "out" / "result.json").exists()
    lost.clear()
    code, output, errors = command(*words)
    assert code == 0, errors
    assert "3 of 4 images" in output
    assert sorted(record["image"] for record in records(tmp_path / "out")) == ["000.png", "001.png", "003.png"]


@pytest.mark.fleet
@pytest.mark.slow
def test_workers_of_ray_give_the_records_of_one_process_to_the_last_bit(tmp_path, photos):
    pytest.importorskip("ray", reason="Ray is an extra: uv sync --extra fleet")
    environment = {name: value for name, value in os.environ.items() if name not in {*REMOVED, "OMP_NUM_THREADS"}}
    for output, workers in (("one", "1"), ("two", "2")):
        finished = subprocess.run(
            [sys.executable, str(ROOT / "run.py"), "evaluate", "photos", *OPTIONS, "--output", output,
             "--workers", workers],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert finished.returncode == 0, finished.stderr[-3000:]
    assert len(records(tmp_path / "two")) == 3
    assert records(tmp_path / "two") == records(tmp_path / "one")
