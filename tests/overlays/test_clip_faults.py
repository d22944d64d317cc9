"""The recorder of clips while a disk, an encoder or the process fails: what was recorded plays."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from overlays.sinks import disk
from overlays.sinks.clips.fragments import AllOrNothingFile
from overlays.sinks.clips.sink import ClipSink
from overlays.sinks.clips.writer import ClipEncoder, ClipWriter
from pipeline.errors import FrameError, SinkError
from pipeline.settings import SinkContext
from tests.support.clips import RATE, clip_settings, grey, greys, lines, recorder, videos
from tests.support.limits import PROGRAM_SECONDS

ROOT = Path(__file__).resolve().parents[2]


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


@pytest.mark.slow
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
    for size in [*range(500, 130_000, 8999), *range(190_000, 240_000, 1999)]:
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
