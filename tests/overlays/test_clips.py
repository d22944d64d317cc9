"""The recorder of clips: whatever happens to the disk or the process, what was recorded plays."""

from __future__ import annotations

import av
import numpy as np
import pytest

from overlays.sinks.clips.sink import ClipSink
from overlays.sinks.video import VideoSink
from pipeline.frames import Overlay, SignalLoss
from pipeline.settings import SinkContext
from tests.support.clips import RATE, clip_settings, grey, greys, lines, recorder, videos


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


@pytest.mark.slow
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


def test_clip_logs_contain_the_names_of_the_source_files(tmp_path, overlaid):
    with recorder(tmp_path) as sink:
        sink.put(overlaid(source_name="ok/1.jpg"))
    (film,) = videos(tmp_path)
    assert lines(film)[0]["source"] == "ok/1.jpg"
