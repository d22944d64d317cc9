"""Uncertain frames as photos to label: the saved frames, their folders, and the files for other programs."""

from __future__ import annotations

import errno
import json
import os

import cv2
import numpy as np
import pytest

from commands.dataset import list_samples
from overlays.sinks import stills
from overlays.sinks.locks import to_claim
from overlays.sinks.registry import SINKS, build_sink
from overlays.sinks.stills import difference_hash, folder_name, mend_tasks
from pipeline.errors import ConfigError, DataLossError, SinkError
from pipeline.frames import Overlay, SignalLoss
from tests.overlays.conftest import explain
from tests.support.boxes import box, explained_boxes


def noise(seed):
    return cv2.resize(np.random.default_rng(seed).integers(0, 255, (9, 12, 3), np.uint8), (64, 48))


def put(sink, index, *, seed=None, at=None, **facts):
    """Put a frame with a unique image, a second after the previous one."""
    seconds = float(index) if at is None else at
    explanation = explain(noise(index if seed is None else seed), index=index, pts_seconds=seconds, **facts)
    sink.put(Overlay(explanation.frame.image, explanation))


def saved(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg"))


def tasks(folder):
    return json.loads((folder / "tasks.json").read_text(encoding="utf-8"))


def test_frames_that_meet_the_condition_lie_in_the_folder_of_their_label(tmp_path):
    with build_sink(f"{tmp_path}/review/?when=score<0.6") as sink:
        for index, (label, score) in enumerate([("ok", 0.9), ("ok", 0.5), ("dent", 0.4), ("dent", 0.95)]):
            put(sink, index, label=label, score=score)
    folder = tmp_path / "review"
    assert saved(folder) == ["dent/line-2.jpg", "ok/line-1.jpg"]
    image = cv2.imread(str(folder / "ok/line-1.jpg"), cv2.IMREAD_COLOR_RGB)
    assert np.abs(image.astype(int) - noise(1)).mean() < 4, "the plain frame"
    assert [task["data"]["image"] for task in tasks(folder)] == [
        "/data/local-files/?d=ok/line-1.jpg",
        "/data/local-files/?d=dent/line-2.jpg",
    ]


def test_moved_photo_has_its_new_label_in_a_training(tmp_path):
    with build_sink(f"stills:{tmp_path}/review/", when="score<0.6") as sink:
        for index in range(4):
            put(sink, index, label="ok" if index % 2 else "dent", score=0.4)
    folder = tmp_path / "review"
    (folder / "ok/line-1.jpg").rename(folder / "dent/line-1.jpg")
    samples = list_samples(folder, None, None, None).samples
    assert sorted((sample.label, os.path.basename(sample.path)) for sample in samples) == [  # noqa: PTH119
        ("dent", "line-0.jpg"), ("dent", "line-1.jpg"), ("dent", "line-2.jpg"), ("ok", "line-3.jpg"),
    ]  # fmt: skip


def test_rate_is_limited_for_each_camera_on_the_clock_of_its_frames(tmp_path):
    with build_sink(f"stills:{tmp_path}/", when="score<1", max_rate=2) as sink:
        for index in range(20):
            for camera in ("north", "south"):
                put(sink, index, seed=2 * index + (camera == "south"), at=index / 10, camera=camera)
        put(sink, 20, seed=99, at=0.0, camera="north")
    names = saved(tmp_path)
    assert [name for name in names if "south" in name] == [f"bottle/south-{index}.jpg" for index in (0, 10, 15, 5)]
    assert "bottle/north-20.jpg" in names, "a clock that went back is due at once"


def test_similar_frames_are_saved_once(tmp_path):
    with build_sink(f"stills:{tmp_path}/", when="score<1", max_rate=1000) as sink:
        for index in range(6):
            put(sink, index, seed=index % 2)
        put(sink, 6, seed=0, camera="other")
    assert saved(tmp_path) == ["bottle/line-0.jpg", "bottle/line-1.jpg", "bottle/other-6.jpg"]
    with build_sink(f"stills:{tmp_path}/all", when="score<1", max_rate=1000, min_difference=0) as sink:
        for index in range(6):
            put(sink, index, seed=0)
    assert len(saved(tmp_path / "all")) == 6


def test_difference_hash_is_near_for_noise_and_far_for_another_image():
    image = noise(1)
    noisy = np.clip(image.astype(int) + np.random.default_rng(5).integers(-4, 5, image.shape), 0, 255).astype(np.uint8)
    assert (difference_hash(image) ^ difference_hash(noisy)).bit_count() <= 3
    assert (difference_hash(image) ^ difference_hash(noise(2))).bit_count() > 12


def test_change_of_the_label_is_saved_where_it_is_asked_for(tmp_path):
    labels = ["ok", "ok", "dent", "ok"]
    for name, option in (("with", True), ("without", False)):
        with build_sink(f"stills:{tmp_path}/{name}", when="score<0.1", label_changes=option) as sink:
            for index, label in enumerate(labels):
                put(sink, index, label=label)
    assert saved(tmp_path / "with") == ["dent/line-2.jpg", "ok/line-3.jpg"]
    assert saved(tmp_path / "without") == []


def test_number_of_images_of_a_run_is_limited(tmp_path, caplog):
    with build_sink(f"stills:{tmp_path}/", when="score<1", max_images=2) as sink:
        for index in range(5):
            put(sink, index)
    assert saved(tmp_path) == ["bottle/line-0.jpg", "bottle/line-1.jpg"]
    assert caplog.text.count("max_images") == 1


def test_restart_adds_to_the_folder_and_replaces_nothing(tmp_path):
    for _ in range(2):
        with build_sink(f"stills:{tmp_path}/", when="score<1") as sink:
            put(sink, 0)
    assert saved(tmp_path) == ["bottle/line-0-2.jpg", "bottle/line-0.jpg"]
    assert len(tasks(tmp_path)) == 2


def test_camera_without_signal_is_not_saved(tmp_path):
    with build_sink(f"stills:{tmp_path}/", when="score<1") as sink:
        explanation = explain()
        sink.put(Overlay(explanation.frame.image, explanation, SignalLoss(3.0)))
    assert saved(tmp_path) == []


def test_task_has_label_score_and_peak_as_percent_of_the_image(tmp_path):
    heat = np.zeros((3, 4), np.float32)
    heat[1, 2] = 1.0
    with build_sink(f"stills:{tmp_path}/", when="score<1") as sink:
        put(sink, 0, heat=heat)
    [task] = tasks(tmp_path)
    [prediction] = task["predictions"]
    assert (prediction["model_version"], prediction["score"]) == ("resnet50", 0.875)
    choice, peak = prediction["result"]
    assert choice["value"] == {"choices": ["bottle"]}
    assert peak["value"] == {"x": 62.5, "y": 50.0, "width": 1.0, "keypointlabels": ["bottle"]}
    assert (peak["original_width"], peak["original_height"]) == (64, 48)


def test_task_of_a_detector_has_its_boxes(tmp_path):
    explanation = explained_boxes(box(64, 36, score=0.4), box(320, 180, label="truck", score=0.3))
    with build_sink(f"stills:{tmp_path}/", when="score<0.5") as sink:
        sink.put(Overlay(explanation.frame.image, explanation))
    [task] = tasks(tmp_path)
    _, first, second = task["predictions"][0]["result"]
    assert first["type"] == "rectanglelabels"
    values = {key: first["value"][key] for key in ("x", "y", "width", "height")}
    assert values == pytest.approx({"x": 10, "y": 10, "width": 100 * 60 / 640, "height": 100 * 40 / 360})
    assert second["value"]["rectanglelabels"] == ["truck"]
    assert saved(tmp_path) == ["car/north-0.jpg"]


def test_task_without_a_box_is_under_none(tmp_path):
    explanation = explained_boxes()
    with build_sink(f"stills:{tmp_path}/", when="score<0.5") as sink:
        sink.put(Overlay(explanation.frame.image, explanation))
    assert saved(tmp_path) == ["none/north-0.jpg"]


@pytest.mark.parametrize(
    ("label", "folder"),
    [
        ("water bottle", "water bottle"),
        ("a/b\\c\n", "a_b_c_"),
        ("..", "none"),
        ("../x", "_x"),
        (" ..", "none"),
        (" . .x", "x"),
        ("", "none"),
        ("é" * 99, "é" * 50),
    ],
)
def test_label_becomes_one_folder(label, folder):
    assert folder_name(label) == folder


@pytest.mark.parametrize("cut", range(1, 34, 4))
def test_task_file_of_a_killed_run_is_valid_again(tmp_path, cut):
    path = tmp_path / "tasks.json"
    for number in range(3):
        stills.append_task(path, {"data": {"image": f"{number}.jpg"}})
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    mend_tasks(path)
    stills.append_task(path, {"data": {"image": "new.jpg"}})
    names = [task["data"]["image"] for task in json.loads(path.read_bytes())]
    assert names[-1] == "new.jpg"
    assert names[:-1] == [f"{number}.jpg" for number in range(len(names) - 1)]
    assert len(names) >= 3


@pytest.mark.parametrize("indent", [None, 1, 2])
def test_tasks_that_another_program_has_formatted_are_kept(tmp_path, indent):
    path = tmp_path / "tasks.json"
    before = [{"data": {"image": f"{number}.jpg"}, "annotations": [1]} for number in range(2)]
    path.write_text(json.dumps(before, indent=indent))
    mend_tasks(path)
    stills.append_task(path, {"data": {}})
    assert json.loads(path.read_bytes()) == [*before, {"data": {}}]


def test_formatted_task_file_that_is_damaged_is_refused_and_kept(tmp_path):
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps([{"data": {"image": "0.jpg"}}] * 2, indent=2)[:-2])
    before = path.read_bytes()
    with pytest.raises(SinkError, match="repair it or move it away"):
        mend_tasks(path)
    assert path.read_bytes() == before


def test_task_file_of_another_program_is_refused_and_kept(tmp_path):
    (tmp_path / "tasks.json").write_text('{"mine": 1}')
    with pytest.raises(SinkError, match="move it away"), build_sink(f"stills:{tmp_path}/", when="score<1"):
        pass
    assert (tmp_path / "tasks.json").read_text() == '{"mine": 1}'


def test_full_disk_loses_photos_and_keeps_the_others_complete(tmp_path, monkeypatch):
    now, full = [0.0], [False]
    write = stills._written

    def refusing(folder, stems, payload):
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(folder, stems, payload)

    monkeypatch.setattr(stills, "_written", refusing)
    settings = SINKS.settings(f"stills:{tmp_path}/", when="score<1")
    with pytest.raises(DataLossError, match=r"2 images were not written.*disk was full"):  # noqa: PT012, SIM117
        with stills.StillsSink(settings, clock=lambda: now[0]) as sink:
            put(sink, 0)
            full[0] = True
            put(sink, 1, label="crack")
            put(sink, 2)
            full[0], now[0] = False, 5.0
            put(sink, 3)
    assert saved(tmp_path) == ["bottle/line-0.jpg", "bottle/line-3.jpg"]
    assert len(tasks(tmp_path)) == 2
    assert not (tmp_path / "crack").exists(), "a training refuses a class without images"


@pytest.mark.parametrize(
    ("option", "message"), [("scoree<1", "when: 'scoree<1'.*Did you mean 'score'"), ("score>2", "a number from 0 to 1")]
)
def test_wrong_condition_is_refused_with_its_place(tmp_path, option, message):
    with pytest.raises(ConfigError, match=message):
        build_sink(f"stills:{tmp_path}/", when=option)


def test_folder_is_locked_as_a_whole_and_options_of_clips_are_refused():
    assert to_claim(["stills:review/"], ["a"]) == to_claim(["stills:review"], ["a", "b"])
    assert SINKS.settings("review/?when=guard").uri == "stills:review/"
    assert SINKS.settings("clips/?record_when=guard").uri == "clips/"
    with pytest.raises(SinkError, match="record_when: is not an option of a folder of stills"):
        SINKS.settings("stills:review/", when="guard", record_when="guard")
