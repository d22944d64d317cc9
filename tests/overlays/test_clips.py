"""The recorder of clips: whatever happens to the disk or the process, what was recorded plays."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from overlays.sinks import disk
from overlays.sinks.clips.fragments import AllOrNothingFile
from overlays.sinks.clips.sink import ClipSink
from overlays.sinks.clips.writer import ClipEncoder, ClipWriter
from overlays.sinks.locks import claimed, to_claim
from overlays.sinks.settings import ClipSettings, VideoSettings
from overlays.sinks.video import VideoSink
from pipeline.errors import FrameError, SinkError
from pipeline.frames import Overlay, SignalLoss
from pipeline.settings import SinkContext
from tests.support.limits import PROGRAM_SECONDS

ROOT = Path(__file__).resolve().parents[2]
RATE = 30


def grey(index):
    return np.full((48, 64, 3), 20 + (index * 7) % 200, np.uint8)


def greys(path):
    with av.open(str(path)) as film:
        return [round(frame.to_ndarray(format="rgb24").mean()) for frame in film.decode(video=0)]


def videos(folder):
    return sorted(folder.glob("*.mp4"))


def lines(path):
    return [json.loads(line) for line in path.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]


def clip_settings(folder, **options):
    """Settings of any value: short clips and small budgets keep the tests quick."""
    for name in ("budget_bytes", "rotate_bytes", "ring_bytes"):
        if name in options:
            mib = {"budget_bytes": "disk_budget_mib", "rotate_bytes": "rotate_mib", "ring_bytes": "preroll_memory_mib"}
            options[mib[name]] = options.pop(name) / (1 << 20)
    return ClipSettings.model_construct(uri=f"{folder}/", **options)


def recorder(folder, *, camera="line", **options):
    return ClipSink(clip_settings(folder, **options), SinkContext(cameras=(camera,)))


def test_rotated_clips_contain_every_frame_once_in_order_with_its_record(tmp_path, overlaid):
    with recorder(tmp_path, rotate_seconds=1.0) as sink:
        for index in range(100):
            sink.put(overlaid(grey(index), index=index, pts_seconds=5 + index / RATE))
    films = videos(tmp_path)
    assert [len(greys(film)) for film in films] == [30, 30, 30, 10]
    seen = [value for film in films for value in greys(film)]
    assert np.abs(np.array(seen) - [20 + (k * 7) % 200 for k in range(100)]).max() <= 2
    values = [line for film in films for line in lines(film)]
    assert [line["index"] for line in values] == list(range(100))
    for film in films:
        with av.open(str(film)) as held:
            shown = [frame.time for frame in held.decode(video=0)]
        assert shown == pytest.approx([line["clip_seconds"] for line in lines(film)], abs=1e-5)


def test_clip_is_named_by_camera_and_utc_time_of_its_first_frame(tmp_path, overlaid):
    sink = ClipSink(
        f"{tmp_path}/", SinkContext(cameras=("hall/door",)), wall_clock=lambda: 1_800_000_000.25, clock=lambda: 100.0
    )
    with sink:
        sink.put(overlaid(camera="hall/door", taken_at=98.0, pts_seconds=0.0))
        assert {p.name for p in tmp_path.iterdir()} == {
            "hall_door_20270115T075958.250Z.part.mp4",
            "hall_door_20270115T075958.250Z.part.jsonl",
        }
    assert {p.name for p in tmp_path.iterdir()} == {
        "hall_door_20270115T075958.250Z.mp4",
        "hall_door_20270115T075958.250Z.jsonl",
    }


def test_clip_file_name_is_shortened_for_a_long_camera_name(tmp_path, overlaid):
    camera = "\U00020000" * 64
    with (
        recorder(tmp_path, camera=camera) as sink,
        VideoSink(tmp_path / "film.mp4", SinkContext(cameras=(camera, "b"))) as film,
    ):
        for each in (sink, film):
            each.put(overlaid(grey(0), camera=camera))
    assert sink.lost == 0
    assert len(videos(tmp_path)) == 2


def test_clips_rotate_by_size_and_when_the_image_size_changes(tmp_path, overlaid):
    dice = np.random.default_rng(0)
    with recorder(tmp_path, rotate_bytes=30_000) as sink:
        for index in range(20):
            sink.put(overlaid(dice.integers(0, 256, (96, 96, 3), np.uint8), index=index, pts_seconds=index / RATE))
    assert len(videos(tmp_path)) > 3
    assert max(film.stat().st_size for film in videos(tmp_path)) < 60_000
    with recorder(tmp_path / "two") as sink:
        sink.put(overlaid(np.zeros((48, 64, 3), np.uint8), pts_seconds=0.0))
        sink.put(overlaid(np.zeros((33, 35, 3), np.uint8), pts_seconds=0.1))
    assert [len(greys(film)) for film in videos(tmp_path / "two")] == [1, 1]


def test_camera_that_changes_size_with_every_image_makes_few_clips_and_loses_none(tmp_path, overlaid, caplog):
    with recorder(tmp_path) as sink:
        for index in range(300):
            size = (48, 64) if index % 2 else (50, 64)
            sink.put(overlaid(np.zeros((*size, 3), np.uint8), index=index, pts_seconds=index / 10))
    assert len(videos(tmp_path)) <= 5
    assert sum(len(greys(film)) for film in videos(tmp_path)) == 300
    assert len([record for record in caplog.records if "change their size repeatedly" in record.getMessage()]) == 1


def test_disk_budget_holds_over_two_hundred_rotations_and_removes_own_oldest_clips(tmp_path, overlaid):
    strangers = ["other_20200101T000000.000Z.mp4", "holiday.mp4", "line_note.jsonl", "line_20200101.mp4"]
    for name in strangers:
        (tmp_path / name).write_bytes(b"x" * 50_000)
    (tmp_path / "line_20200101T000000.000Z.mp4").write_bytes(b"x" * 50_000)
    budget, most, started = 300_000, 0, set()
    dice = np.random.default_rng(0)
    with recorder(tmp_path, rotate_seconds=0.2, budget_bytes=budget) as sink:
        for index in range(203 * 6):
            sink.put(overlaid(dice.integers(0, 99, (48, 64, 3), np.uint8), index=index, pts_seconds=index / RATE))
            own = [p for p in tmp_path.iterdir() if p.name not in strangers]
            started |= {p.name.removesuffix(".part.mp4") for p in own if p.name.endswith(".part.mp4")}
            most = max(most, sum(p.stat().st_size for p in own))
    own = [p for p in tmp_path.iterdir() if p.name not in strangers]
    assert len(started) >= 200
    assert max(most, sum(p.stat().st_size for p in own)) <= budget
    assert most > budget * 0.6, "it is used, too"
    remaining = {p.stem for p in own}
    assert remaining == set(sorted(started)[-len(remaining) :]), "the newest stay"
    assert all((p.with_suffix(".jsonl")).exists() for p in own)
    assert all((tmp_path / name).stat().st_size == 50_000 for name in strangers)
    assert not (tmp_path / "line_20200101T000000.000Z.mp4").exists(), "an earlier run's clip was its own"


def test_clock_set_back_does_not_reorder_clips(tmp_path, overlaid):
    wall, dice = [1_800_000_000.0], np.random.default_rng(0)
    settings = clip_settings(tmp_path, rotate_seconds=0.1, budget_bytes=150_000)
    with ClipSink(settings, SinkContext(cameras=("line",)), wall_clock=lambda: wall[0]) as sink:
        for index in range(60):
            wall[0] += 1 / RATE if index != 40 else -3600.0
            sink.put(overlaid(dice.integers(0, 256, (96, 96, 3), np.uint8), index=index, pts_seconds=index / RATE))
    remaining = sorted(line["index"] for film in videos(tmp_path) for line in lines(film))
    assert len(remaining) < 40, "the budget is small"
    assert remaining == list(range(remaining[0], 60)), "the newest are kept"


def test_killed_recorder_leaves_all_but_the_last_second_playable(tmp_path):
    code = (
        "import sys, os, signal; sys.path.insert(0, 'tests/overlays'); from conftest import explain\n"
        "from overlays.sinks.clips.sink import ClipSink; from pipeline.frames import Overlay\n"
        "from pipeline.settings import SinkContext\n"
        "import numpy as np\n"
        "sink = ClipSink(sys.argv[1] + '/', SinkContext(('line',))).__enter__()\n"
        "for i in range(155):\n"
        "    e = explain(np.full((120, 160, 3), i, np.uint8), index=i, pts_seconds=i / 30)\n"
        "    sink.put(Overlay(e.frame.image, e))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=False, timeout=PROGRAM_SECONDS)
    assert ended.returncode == -signal.SIGKILL
    (film,) = videos(tmp_path)
    assert film.name.endswith(".part.mp4")
    seen = greys(film)
    assert len(seen) >= 155 - RATE
    assert np.abs(np.array(seen) - np.arange(len(seen))).max() <= 2
    assert [line["index"] for line in lines(film)] == list(range(155))


def put_with_events(sink, overlaid, events, count=300):
    for index in range(count):
        label = "scratch" if index in events else "good"
        sink.put(overlaid(grey(index), index=index, pts_seconds=index / RATE, label=label, score=0.9))


def test_event_is_recorded_with_the_time_before_and_after(tmp_path, overlaid):
    with recorder(tmp_path, record_when="label=scratch and score>0.8", seconds_before=2.0, seconds_after=1.0) as sink:
        put_with_events(sink, overlaid, {120, 121, 140, 250})
    first, second = [[line["index"] for line in lines(film)] for film in videos(tmp_path)]
    assert 120 - 60 - RATE <= first[0] <= 120 - 60, "from the key picture before"
    assert first == list(range(first[0], 171))
    assert 250 - 60 - RATE <= second[0] <= 250 - 60
    assert second == list(range(second[0], 281))
    for film in videos(tmp_path):
        assert len(greys(film)) == len(lines(film))


def test_no_clip_is_written_without_an_event(tmp_path, overlaid):
    with recorder(tmp_path, record_when="label=scratch and score>0.95") as sink:
        put_with_events(sink, overlaid, {50}, count=90)
    assert list(tmp_path.iterdir()) == []


def test_preroll_is_bounded_in_bytes(tmp_path, overlaid, caplog):
    dice = np.random.default_rng(0)
    with recorder(tmp_path, record_when="label=scratch", seconds_before=60.0, ring_bytes=300_000) as sink:
        for index in range(400):
            noise = dice.integers(0, 256, (48, 64, 3), np.uint8)
            sink.put(overlaid(noise, index=index, pts_seconds=index / RATE))
            assert sink._tracks["line"].ring.bytes <= 300_000
        sink.put(overlaid(noise, index=400, pts_seconds=400 / RATE, label="scratch"))
    (film,) = videos(tmp_path)
    held = [line["index"] for line in lines(film)]
    assert held == list(range(held[0], 401))
    assert len(greys(film)) == len(held)
    assert len([r for r in caplog.records if "do not fit" in r.message]) == 1


def test_signal_loss_is_recorded_without_explanations(tmp_path, overlaid):
    with recorder(tmp_path) as sink:
        sink.put(last := overlaid(index=0, pts_seconds=0.0))
        sink.put(Overlay(last.image, last.explanation, SignalLoss(2.0)))
    (film,) = videos(tmp_path)
    assert len(greys(film)) == 2
    assert len(lines(film)) == 1


def test_failing_disk_ends_the_clip_not_the_stream_and_is_logged_once(tmp_path, overlaid, caplog, monkeypatch):
    now, full = [0.0], [False]
    add = ClipWriter.add

    def adding(self, coded):
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        add(self, coded)

    monkeypatch.setattr(ClipWriter, "add", adding)
    sink = ClipSink(f"{tmp_path}/", SinkContext(cameras=("line",)), clock=lambda: now[0])
    with caplog.at_level(logging.INFO), sink:
        for index in range(600):
            now[0] = index / RATE
            full[0] = 100 <= index < 400
            sink.put(overlaid(grey(index), index=index, pts_seconds=index / RATE, taken_at=now[0]))
        assert sink.lost >= 300
    before, after = videos(tmp_path)
    assert [line["index"] for line in lines(before)] == list(range(100))
    held = [line["index"] for line in lines(after)]
    assert held == list(range(held[0], 600))
    assert 400 <= held[0] <= 400 + 9 * RATE
    assert [len(greys(film)) for film in (before, after)] == [100, len(held)]
    messages = [r.getMessage() for r in caplog.records if r.name == disk.__name__]
    assert len(messages) == 2
    assert "No space left" in messages[0]
    assert re.search(r"space again; \d+ frames", messages[1])


def test_clip_that_lost_frames_ends_before_them(tmp_path, overlaid, monkeypatch, caplog):
    now, full = [0.0], [False]
    add = ClipWriter.add

    def refuse(clip, coded):
        if full[0] and clip.path.name.startswith("a"):
            raise OSError(errno.ENOSPC, "No space left on device")
        add(clip, coded)

    monkeypatch.setattr(ClipWriter, "add", refuse)
    settings = clip_settings(tmp_path, record_when="score>0.5", seconds_before=1.0, seconds_after=1.0)
    with ClipSink(settings, SinkContext(cameras=("a", "b")), clock=lambda: now[0]) as sink:
        for index in range(60):
            now[0], full[0] = index / 10, index == 17
            for camera in ("a", "b"):
                score = 0.9 if 5 <= index < 35 else 0.1
                sink.put(overlaid(grey(index), camera=camera, index=index, pts_seconds=now[0], score=score))
    films = sorted(tmp_path.glob("b_*.mp4"))
    assert len(films) == 2
    for film in videos(tmp_path):
        values = [line["index"] for line in lines(film)]
        assert values == list(range(values[0], values[-1] + 1)), "a clip has no holes"
        assert np.abs(np.array(greys(film)) - [20 + (k * 7) % 200 for k in values]).max() <= 2
    assert not any(" -" in record.getMessage() for record in caplog.records)


def test_clip_on_a_full_disk_is_playable_to_its_end(tmp_path, overlaid, monkeypatch):
    room = [0]
    write = AllOrNothingFile.write

    def writing(self, chunk):
        if len(chunk) > room[0]:
            write(self, bytes(chunk)[: room[0]])
            room[0] = 0
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room[0] -= len(chunk)
        return write(self, chunk)

    monkeypatch.setattr(AllOrNothingFile, "write", writing)
    monkeypatch.setattr(disk, "RETRY_SECONDS", (1e6, 1e6))
    dice = np.random.default_rng(0)
    noise = [dice.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(40)]
    remaining = []
    for size in [*range(500, 130_000, 4999), *range(190_000, 240_000, 611)]:
        room[0] = size
        with recorder(tmp_path / str(size)) as sink:
            for index, image in enumerate(noise):
                sink.put(overlaid(image, index=index, pts_seconds=index / RATE, taken_at=0.0))
        films = videos(tmp_path / str(size))
        assert not list((tmp_path / str(size)).glob("*.part.*"))
        remaining.append(len(greys(films[0])) if films else 0)
        assert not films or remaining[-1] <= len(lines(films[0]))
    assert remaining == sorted(remaining)
    assert {0, 40} <= set(remaining), "from no room at all to room for everything"
    assert len(set(remaining)) >= 4


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    created = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)], check=False, capture_output=True
    )
    if created.returncode:
        pytest.skip("may not mount a tmpfs")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_full_disk_leaves_playable_clips_and_recording_resumes(small_disk, overlaid, caplog, monkeypatch):
    monkeypatch.setattr(disk, "RETRY_SECONDS", (0.0, 0.0))
    dice = np.random.default_rng(0)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 600_000)
    with recorder(small_disk, rotate_seconds=2.0) as sink:
        for index in range(200):
            noise = dice.integers(0, 256, (48, 64, 3), np.uint8)
            sink.put(overlaid(noise, index=index, pts_seconds=index / RATE))
            if sink.lost == 20 and ballast.exists():
                ballast.unlink()
                resumed = index + 1
        assert sink.lost == 20
    films = videos(small_disk)
    assert not list(small_disk.glob("*.part.*"))
    indices = [[line["index"] for line in lines(film)] for film in films]
    assert any(resumed in each for each in indices)
    for film, each in zip(films, indices, strict=True):
        assert each == list(range(each[0], each[0] + len(each)))
        assert len(greys(film)) >= len(each) - RATE, "a clip that ran into the wall lacks its last moment at the most"
    assert len([r for r in caplog.records if "the disk is full" in r.getMessage()]) == 1
    assert len([r for r in caplog.records if "space again" in r.getMessage()]) == 1


def test_path_that_cannot_be_a_folder_is_refused_at_start(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SinkError, match="is a file"), recorder(tmp_path / "file"):
        pass
    with pytest.raises(SinkError, match="mkdir -p"), recorder(tmp_path / "no" / "clips"):
        pass
    with recorder(tmp_path / "made"):
        pass
    assert list((tmp_path / "made").iterdir()) == []


def test_second_run_cannot_record_the_same_camera_into_the_same_folder(tmp_path):
    clips, film = f"{tmp_path}/clips/", f"{tmp_path}/out.mp4"
    ours = to_claim([clips, film, "tcp://127.0.0.1:5555", "http://127.0.0.1:8000"], ["door", "a/b", "a_b"])
    with claimed(ours):
        for uri, camera in ((clips, "door"), (clips.replace("clips", "./clips"), "a/b"), (film, "gate")):
            with pytest.raises(SinkError, match="by another run"), claimed(to_claim([uri], [camera])):
                pass
        with claimed(to_claim([clips, film.replace("out", "other")], ["gate"])):
            pass


def test_second_run_cannot_write_the_file_of_one_of_several_cameras(tmp_path, overlaid):
    with (
        claimed(to_claim([f"{tmp_path}/out.mp4"], ["a", "b"])),
        pytest.raises(SinkError, match="by another run"),
        claimed(to_claim([f"{tmp_path}/out.a.mp4?mode=replace"], ["door"])),
    ):
        pass


@pytest.mark.parametrize("name", ["out.a.mp4", "link.mp4"])
def test_file_is_not_truncated_while_another_run_writes_it_by_another_name(tmp_path, overlaid, name):
    with VideoSink(tmp_path / "out.mp4") as ours:  # whose cameras are not known: nothing is claimed for them
        for index in range(60):
            ours.put(overlaid(grey(index), camera="a", index=index, pts_seconds=index / RATE))
        (tmp_path / "link.mp4").hardlink_to(tmp_path / "out.a.mp4")
        theirs = VideoSink(VideoSettings(uri=str(tmp_path / name), mode="replace"), SinkContext(("door",)))
        with theirs, pytest.raises(SinkError, match="another run writes it"):
            theirs.put(overlaid(grey(0), camera="door", pts_seconds=0.0))
        for index in range(60, 90):
            ours.put(overlaid(grey(index), camera="a", index=index, pts_seconds=index / RATE))
    assert len(greys(tmp_path / "out.a.mp4")) == 90


def test_devices_and_pipes_may_be_written_by_several_runs(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "nothing.jsonl").symlink_to(os.devnull)
    uris = [str(tmp_path / "pipe.jsonl"), str(tmp_path / "nothing.jsonl")]
    with claimed(to_claim(uris, ["line"])), claimed(to_claim(uris, ["line"])):
        assert to_claim(uris, ["line"]) == []


def test_wrong_preset_is_refused_with_a_message(tmp_path, overlaid):
    sink = ClipSink(clip_settings(tmp_path, preset="fastish"))
    with pytest.raises(SinkError, match="cannot be encoded"), sink:
        sink.put(overlaid())


def test_images_beyond_encoder_limits_are_recorded_smaller_and_logged_once(tmp_path, overlaid, caplog):
    with recorder(tmp_path) as sink:
        for index in range(3):
            sink.put(overlaid(np.full((64, 20_000, 3), 200, np.uint8), index=index, pts_seconds=index / RATE))
    (film,) = videos(tmp_path)
    assert [round(value / 10) for value in greys(film)] == [20] * 3
    assert [line["width"] for line in lines(film)] == [20_000] * 3
    assert len([r for r in caplog.records if "more than can be encoded; recorded as 16384x52" in r.getMessage()]) == 1


def test_frame_refused_by_the_encoder_is_lost_alone(tmp_path, overlaid, monkeypatch):
    encode = ClipEncoder.encode

    def encoding(self, image, ticks, step_ticks, *, key):
        if image.mean() > 250:
            raise FrameError("refused")
        return encode(self, image, ticks, step_ticks, key=key)

    monkeypatch.setattr(ClipEncoder, "encode", encoding)
    with recorder(tmp_path) as sink:
        for index in range(9):
            pixels = np.full((48, 64, 3), 255, np.uint8) if index in {0, 5} else grey(index)
            with contextlib.suppress(FrameError):
                sink.put(overlaid(pixels, index=index, pts_seconds=index / RATE))
    (film,) = videos(tmp_path)
    assert [line["index"] for line in lines(film)] == [1, 2, 3, 4, 6, 7, 8]
    assert len(greys(film)) == 7


def test_clip_logs_contain_the_names_of_the_source_files(tmp_path, overlaid):
    with recorder(tmp_path) as sink:
        sink.put(overlaid(source_name="ok/1.jpg"))
    (film,) = videos(tmp_path)
    assert lines(film)[0]["source"] == "ok/1.jpg"
