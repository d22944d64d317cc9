"""`run.py explain-archive`: each photo and video is explained exactly once, whatever ends a run."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from commands.archive.folders import open_folder
from commands.archive.inputs import ArchiveFile, Shard, divided, find_files, shards_of
from commands.archive.partitions import Partition, PartitionWriter, complete_partitions
from commands.archive.worker import ArchiveSettings, Interrupted, ShardWorker
from overlays.records.arrow_schema import SCHEMA
from overlays.sinks.locks import claimed
from pipeline.config import Config
from pipeline.errors import ConfigError, SinkError
from stream.file_part import InexactPartError, PartSource
from tests.conftest import ROOT

OPTIONS = ("--output", "out", "--model", "line_net", "--backend", "eager", "--threads", "1", "--input-size", "48x64")


def write_photos(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image = np.random.default_rng(number).integers(0, 255, (48, 64, 3), np.uint8)
        cv2.imwrite(str(folder / f"{number:03}.jpg"), image)


def write_video(path: Path, frames: int) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 48))
    for number in range(frames):
        writer.write(np.full((48, 64, 3), 10 * number, np.uint8))
    writer.release()


def rows(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


@pytest.fixture
def archive(tmp_path):
    write_photos(tmp_path / "in" / "belt", 6)
    write_video(tmp_path / "in" / "film.mp4", 7)
    (tmp_path / "in" / "notes.md").write_text("no photo")
    return tmp_path / "in"


def test_archive_holds_each_photo_and_every_frame_asked_for(command, tmp_path, archive, caplog):
    code, _, errors = command("explain-archive", "in", *OPTIONS, "--photos", 4, "--every", 3)
    assert code == 0, errors
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 3  # 4 photos, 2 photos, a video
    found = rows(tmp_path / "out")
    photos = [row for row in found if row["camera"] == "belt"]
    assert sorted(row["source"] for row in photos) == [str(archive / "belt" / f"{n:03}.jpg") for n in range(6)]
    film = [row for row in found if row["camera"] == "film"]
    assert [row["index"] for row in film] == [0, 3, 6]
    assert {row["source"] for row in film} == {str(archive / "film.mp4")}
    assert len(found) == 9
    assert set(found[0]) == {*SCHEMA.names, "error"}
    assert all(row["error"] is None and row["label"] and row["findings"][0]["heat_u8"] for row in found)
    assert "1 files that are neither photos nor videos: 1 .md" in caplog.text
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["files"], summary["images"], summary["failed"]) == (7, 9, 0)


def test_archive_says_what_an_evaluation_of_the_same_photo_says(command, tmp_path, archive):
    assert command("explain-archive", "in/belt", *OPTIONS)[0] == 0
    log_options = ("--model", "line_net", "--backend", "eager", "--threads", "1", "--input-size", "48x64")
    code, _, errors = command("stream", "--source", "in/belt", "--sink", "log.parquet", *log_options)
    assert code == 0, errors
    streamed = {Path(row["source"]).name: row for row in pq.read_table(tmp_path / "log.parquet").to_pylist()}
    for row in rows(tmp_path / "out"):
        other = streamed[Path(row["source"]).name]
        assert (row["label"], row["layer"], row["heat_region"]) == (
            other["label"],
            other["layer"],
            other["heat_region"],
        )
        assert row["score"] == pytest.approx(other["score"], abs=1e-5)
        assert row["findings"][0]["heat_u8"] == other["findings"][0]["heat_u8"]


def test_files_that_cannot_be_read_are_rows_with_the_reason(command, tmp_path, archive):
    (archive / "bad.jpg").write_text("no image")
    content = (archive / "film.mp4").read_bytes()
    (archive / "cut.mp4").write_bytes(content[: len(content) // 3])
    (archive / "empty.png").touch()
    code, output, errors = command("explain-archive", "in", *OPTIONS)
    assert code == 0, errors
    failed = {Path(row["source"]).name: row["error"] for row in rows(tmp_path / "out") if row["error"]}
    assert set(failed) == {"bad.jpg", "cut.mp4", "empty.png"}
    assert all(failed.values())
    assert "3 files could not be read to their end" in output
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["images"], summary["failed"]) == (13, 3)
    assert {Path(entry["file"]).name for entry in summary["failures"]} == set(failed)


def test_find_files_gives_each_file_one_path_and_names_folders_left_out(tmp_path):
    write_photos(tmp_path / "in", 2)
    (tmp_path / "latest").symlink_to("in")
    (tmp_path / "in" / "gone.jpg").symlink_to("nowhere")
    (tmp_path / "in" / "loop").symlink_to("..")
    found = find_files([str(tmp_path / name) for name in ("in", "latest", "in/../in/000.jpg")])
    assert [Path(file.path).relative_to(tmp_path / "in").as_posix() for file in found.files] == [
        "000.jpg", "001.jpg", "gone.jpg",
    ]  # fmt: skip
    assert any("loop: is a link" in folder for folder in found.not_entered)


def test_archive_explains_or_names_files_of_any_name_and_kind(command, tmp_path):
    folder = tmp_path / "in" / os.fsdecode(b"bytes\xff\n")
    write_photos(tmp_path / "in" / "plain", 1)  # OpenCV writes no such names
    (tmp_path / "in" / "plain").rename(folder)
    write_video(tmp_path / "film.mp4", 2)
    (tmp_path / "film.mp4").rename(folder / os.fsdecode(b"\xfe#?%41.mp4"))
    (folder / os.fsdecode(b"empty\xff.jpg")).touch()
    (folder / "gone.jpg").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.mp4")
    code, _, errors = command("explain-archive", "in", *OPTIONS)
    assert code == 0, errors
    found = rows(tmp_path / "out")
    assert sorted(Counter(row["source"] for row in found if not row["error"]).values()) == [1, 2]
    failed = {Path(row["source"]).name: row["error"] for row in found if row["error"]}
    assert failed.keys() == {"empty\\udcff.jpg", "gone.jpg", "pipe.mp4"}
    assert "is a pipe" in failed["pipe.mp4"]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {entry["file"] for entry in summary["failures"]} == {row["source"] for row in found if row["error"]}


def test_partition_of_full_disk_leaves_nothing_and_names_the_remedy(tmp_path, monkeypatch):
    shard = Shard("part", (ArchiveFile("/a.jpg", 1, 1, is_video=False),))

    def refuse(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with (
        pytest.raises(SinkError, match=r"No space left on device.*the same command"),
        PartitionWriter(open_folder(str(tmp_path)), shard),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_second_run_explains_only_what_was_added(command, tmp_path, archive, caplog):
    assert command("explain-archive", "in", *OPTIONS)[0] == 0
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    write_photos(archive / "more", 2)
    (archive / "belt" / "000.jpg").write_bytes((archive / "belt" / "001.jpg").read_bytes())
    code, output, errors = command("explain-archive", "in", *OPTIONS)
    assert code == 0, errors
    assert "7 of 9 files were explained before" in output
    assert "1 files have changed since they were explained" in caplog.text
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    assert after.items() > before.items()
    assert set(Counter(row["source"] for row in rows(tmp_path / "out") if row["camera"] != "film").values()) == {1}
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["files"] == 9


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (("in", *OPTIONS, "--every", 2), r"other settings \(every\)"),
        (("in", *OPTIONS, "--kernel", "gaussian"), r"other settings \(kernel\)"),
        (("none", *OPTIONS), "there is no such file"),
        (("in/notes.md", *OPTIONS), "no suffix of a photo or a video"),
        (("in/*.md", *OPTIONS), "no photos and no videos"),
        (("list.txt", *OPTIONS), "which does not exist"),
    ],
)
def test_archive_refuses_a_mistake_before_it_builds_the_network(command, tmp_path, archive, words, rule):
    (tmp_path / "list.txt").write_text("in/belt/000.jpg\nin/belt/gone.jpg\n")
    if "settings" in rule:
        assert command("explain-archive", "in/belt/000.jpg", *OPTIONS)[0] == 0
    code, _, errors = command("explain-archive", *words)
    assert code == 2
    assert re.search(rule, errors), errors


def test_archive_refuses_a_folder_with_foreign_tables_or_of_a_running_archive(command, tmp_path, archive):
    with claimed([tmp_path / "out"]):
        code, _, errors = command("explain-archive", "in", *OPTIONS)
    assert code != 0
    assert "by another run" in errors
    (tmp_path / "out" / "other.parquet").write_bytes(b"no table")
    code, _, errors = command("explain-archive", "in", *OPTIONS)
    assert code == 2
    assert "other.parquet: is no partition" in errors


def test_interrupted_shard_leaves_nothing(tmp_path, archive):
    stop = threading.Event()
    config = Config.model_validate({"engine": {"model": "line_net", "backend": "eager", "input_size": (48, 64)}})
    (tmp_path / "out").mkdir()
    worker = ShardWorker(ArchiveSettings(config, str(tmp_path / "out"), ""), stop)
    stop.set()
    with pytest.raises(Interrupted):
        worker.explain(shards_of(find_files([str(archive)]).files, "", 100)[0])
    assert list((tmp_path / "out").iterdir()) == []


def start(folder: Path, *words: str) -> subprocess.Popen:
    arguments = [sys.executable, str(ROOT / "run.py"), "explain-archive", *map(str, words)]
    return subprocess.Popen(arguments, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_partitions(process: subprocess.Popen, folder: Path, count: int) -> None:
    while len(list(folder.glob("*.parquet"))) < count:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_run_continues_and_has_each_file_once(command, tmp_path):
    write_photos(tmp_path / "in", 60)
    words = ("in", *OPTIONS, "--photos", 1)
    process = start(tmp_path, *words)
    wait_for_partitions(process, tmp_path / "out", 5)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    (tmp_path / "out" / ".half.1.tmp").write_bytes(b"of a killed run")
    assert not (tmp_path / "out" / "summary.json").exists()
    code, output, errors = command("explain-archive", *words)
    assert code == 0, errors
    assert "files were explained before; continuing" in output
    assert sorted(row["source"] for row in rows(tmp_path / "out")) == sorted(map(str, (tmp_path / "in").iterdir()))
    assert not list((tmp_path / "out").glob(".*"))


def writers(folder: Path) -> list[int]:
    """Return the processes that have a file below a folder open."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if link.readlink().is_relative_to(folder):
                found.append(int(link.parts[2]))
    return found


@pytest.mark.fleet
@pytest.mark.slow
def test_workers_share_the_files_and_a_killed_worker_is_replaced(tmp_path):
    pytest.importorskip("ray")
    write_photos(tmp_path / "in", 120)
    process = start(tmp_path, "in", *OPTIONS, "--photos", 1, "--workers", 2)
    wait_for_partitions(process, tmp_path / "out", 3)
    while not (writing := writers(tmp_path / "out")):
        assert process.poll() is None, process.stdout.read()
    worker = writing[0]
    os.kill(worker, signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert sorted(row["source"] for row in rows(tmp_path / "out")) == sorted(map(str, (tmp_path / "in").iterdir()))
    assert not Path(f"/proc/{worker}").exists()


def long_video(path: Path) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("needs the program ffmpeg: apt-get install ffmpeg")
    picture = ("-f", "lavfi", "-i", "testsrc2=size=64x48:rate=10:duration=6")
    subprocess.run(["ffmpeg", "-loglevel", "error", *picture, "-c:v", "libx264", "-g", "10", str(path)], check=True)


def film(folder: Path) -> list[tuple]:
    found = [row for row in rows(folder) if row["camera"] == "film"]
    return sorted((row["index"], row["pts_seconds"], row["label"], row["findings"][0]["heat_u8"]) for row in found)


@pytest.mark.slow
def test_long_video_is_divided_and_a_run_with_another_length_of_parts_has_each_frame_once(command, tmp_path):
    (tmp_path / "in").mkdir()
    long_video(tmp_path / "in" / "film.mp4")
    whole, parts = ("--output", "whole", *OPTIONS[2:], "--every", 4), ("--output", "parts", *OPTIONS[2:], "--every", 4)
    assert command("explain-archive", "in", *whole)[0] == 0
    assert command("explain-archive", "in", *parts, "--part-seconds", 1)[0] == 0
    assert len(list((tmp_path / "parts").glob("*.parquet"))) == 6
    assert film(tmp_path / "parts") == film(tmp_path / "whole")
    summary = json.loads((tmp_path / "parts" / "summary.json").read_text())
    assert (summary["partitions"], summary["files"], summary["images"]) == (6, 1, 15)
    next((tmp_path / "parts").glob("*.parquet")).unlink()
    code, _, errors = command("explain-archive", "in", *parts, "--part-seconds", 2)
    assert code == 0, errors
    assert len(list((tmp_path / "parts").glob("*.parquet"))) == 3
    assert film(tmp_path / "parts") == film(tmp_path / "whole")


def test_video_whose_part_is_not_exact_is_explained_as_a_whole(command, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    long_video(tmp_path / "in" / "film.mp4")
    finish = PartSource._finish

    def refuse_the_last(self) -> None:
        if self._part is not None and self._part.number == 4:
            raise InexactPartError("not exact")
        finish(self)

    monkeypatch.setattr(PartSource, "_finish", refuse_the_last)
    code, output, errors = command("explain-archive", "in", *OPTIONS, "--part-seconds", 1)
    assert code == 0, errors
    assert "1 files with " in output
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 1
    assert [row[0] for row in film(tmp_path / "out")] == list(range(60))


def drawn(folder: Path) -> dict[str, list[str]]:
    """Return the overlays of each partition."""
    found: dict[str, list[str]] = {}
    for path in sorted((folder / "overlays").rglob("*")):
        if path.is_file():
            found.setdefault(path.parent.name, []).append(path.name)
    return found


def test_overlays_are_drawn_for_each_row_and_those_of_an_ended_run_are_removed(command, tmp_path, archive):
    (archive / "belt" / "bad.jpg").write_text("no image")
    words = ("explain-archive", "in", *OPTIONS, "--photos", 4, "--overlays")
    code, _, errors = command(*words)
    assert code == 0, errors
    found = {row["source"]: row["overlay"] for row in rows(tmp_path / "out") if not row["error"]}
    assert len(found) == 7
    assert {row["overlay"] for row in rows(tmp_path / "out") if row["error"]} == {None}
    photo = cv2.imread(str(tmp_path / "out" / found[str(archive / "belt" / "003.jpg")]))
    assert photo.shape == (48, 64, 3)
    assert np.abs(photo.astype(int) - cv2.imread(str(archive / "belt" / "003.jpg"))).mean() > 5  # heat is drawn
    film = cv2.VideoCapture(str(tmp_path / "out" / found[str(archive / "film.mp4")]))
    assert (film.get(cv2.CAP_PROP_FRAME_COUNT), film.get(cv2.CAP_PROP_FPS)) == (7, 10)
    before = drawn(tmp_path / "out")
    assert set(before) == {path.stem for path in (tmp_path / "out").glob("*.parquet")}
    ended = next(name for name in before if len(before[name]) > 1)
    (tmp_path / "out" / f"{ended}.parquet").unlink()  # as if the run had ended between the overlays and the partition
    (tmp_path / "out" / "overlays" / "other").mkdir()
    assert command(*words)[0] == 0
    assert drawn(tmp_path / "out") == before
    assert not (tmp_path / "out" / "overlays" / "other").exists()
    code, _, errors = command("explain-archive", "in", *OPTIONS, "--photos", 4)
    assert code == 2
    assert "other settings (overlays)" in errors


def partition(name, path, part=None):
    return Partition((file(path, is_video=True),), 1, (), name, part)


def test_video_is_complete_as_a_whole_or_with_all_its_parts():
    parts = [partition("a0", "a", (0, 2)), partition("a1", "a", (1, 2))]
    mixed = [partition("b0", "b", (0, 2)), partition("b1", "b", (1, 3))]
    both = [partition("c", "c"), partition("c0", "c", (0, 1))]
    complete, loose = complete_partitions([*parts, *mixed, *both])
    assert [each.name for each in complete] == ["a0", "a1", "c"]
    assert {path: [each.name for each in of] for path, of in loose.items()} == {"b": ["b0", "b1"], "c": ["c0"]}


def file(name, size=1, is_video=False):
    return ArchiveFile(name, size, 0, is_video)


def test_shards_hold_each_file_once_and_a_video_is_alone():
    files = [file("a.mp4", is_video=True), *(file(f"{n}.jpg") for n in range(7)), file("z.mp4", is_video=True)]
    shards = shards_of(files, "settings", 3)
    assert Counter(each for shard in shards for each in shard.files) == Counter(files)
    assert [len(shard.files) for shard in shards] == [3, 3, 1, 1, 1]
    assert len({shard.name for shard in shards}) == len(shards)
    assert [shard.name for shard in shards_of(files, "settings", 3)] == [shard.name for shard in shards]
    assert not {s.name for s in shards_of(files, "other", 3)} & {s.name for s in shards}


def test_divided_leaves_out_explained_files_and_names_changed_ones():
    files = [file("a"), file("b", 2), file("c")]
    assert divided(files, [file("a"), file("b", 1), file("gone")]) == ([file("c")], [file("b", 2)])


def test_find_files_names_each_file_once(tmp_path, archive):
    inputs = [str(archive), str(archive / "belt"), str(archive / "*.mp4"), str(archive / "belt" / "000.jpg")]
    found = find_files(inputs)
    assert len(found.files) == len({each.path for each in found.files}) == 7
    assert [each.is_video for each in found.files].count(True) == 1
    with pytest.raises(ConfigError, match="no photos and no videos"):
        find_files([str(tmp_path / "in" / "*.md")])
