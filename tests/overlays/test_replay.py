"""A log over its video: each line is drawn on the frame for which it was written, or on none."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace

import av
import numpy as np
import pytest

from overlays.records.replay import BlankFrameSource, LoggedExplainer, RealTimeSource
from overlays.render.renderer import HeatRenderer
from overlays.sinks.clips.sink import ClipSink
from overlays.sinks.jsonl import JsonlSink
from overlays.sinks.settings import ClipSettings
from pipeline.errors import SourceError, WireVersionError
from pipeline.frames import Box, Frame, GroundTruth, Overlay
from pipeline.ports import Explainer, Source
from pipeline.settings import SinkContext
from tests.overlays.conftest import explain
from tests.support.boxes import box, explained_boxes, hot_cell, street
from tests.support.logs import log_lines

RATE = 30


def heat_of(index):
    return np.full((2, 3), (index % 50) / 51, np.float32)


@pytest.fixture
def logged(tmp_path, overlaid):
    """Write a log of the given indices; return its path."""

    def write(indices, camera="line", **facts):
        path = tmp_path / f"{camera}.jsonl"
        with JsonlSink(path) as sink:
            for index in indices:
                sink.put(overlaid(index=index, pts_seconds=index / RATE, heat=heat_of(index), camera=camera, **facts))
        return path

    return write


def frame(index, pts_seconds=None, size=(48, 64)):
    return Frame(np.zeros((*size, 3), np.uint8), "line", index, time.monotonic(), pts_seconds)


def result(explanation):
    """Return the record that is drawn on the frame, by its heat; None: no record."""
    return round(float(explanation.findings[0].heat[0, 0]) * 51) if explanation.findings else None


def test_records_are_shown_on_their_own_frames_and_gaps_stay_gaps(logged):
    lines = [0, 1, 5, 6, 7, 20]
    with LoggedExplainer(logged(lines)) as explainer:
        assert isinstance(explainer, Explainer)
        seen = [result(each) for each in explainer.explain([frame(k, k / RATE) for k in range(22)])]
    assert seen == [k if k in lines else None for k in range(22)]
    assert (explainer.matched, explainer.unmatched, explainer.line_count) == (6, 16, 6)


def test_cut_video_is_matched_by_time(logged):
    with LoggedExplainer(logged(range(30))) as explainer:
        seen = explainer.explain([frame(k, (k + 12) / RATE + 0.0009) for k in range(30)])
        assert [result(each) for each in seen] == [*range(12, 30), *[None] * 12]
        assert result(explainer.explain([frame(3)])[0]) == 3, "without a time the index alone counts"
        assert result(explainer.explain([frame(3, 3.5 / RATE)])[0]) is None, "between two frames there is none"


def test_image_comes_from_the_video_and_the_rest_from_the_log(logged):
    truth = GroundTruth("bottle", (Box(8.0, 4.0, 32.0, 24.0),))
    path = logged([4], label="cup", score=0.5, truth=truth, region=Box(0.0, 0.0, 32.0, 48.0))
    video_frame = frame(4, 4 / RATE, size=(96, 128))
    with LoggedExplainer(path) as explainer:
        (explanation,) = explainer.explain([video_frame])
    assert explanation.frame.image is video_frame.image
    assert (explanation.frame.captured_at, explanation.frame.index) == (video_frame.captured_at, 4)
    assert (explanation.first.label, explanation.first.score, explanation.model) == ("cup", 0.5, "resnet50")
    assert explanation.region == Box(0.0, 0.0, 64.0, 96.0), "twice as large, as the picture is"
    assert explanation.frame.truth == replace(truth, boxes=(Box(16.0, 8.0, 64.0, 48.0),))


def test_truncated_or_damaged_log_gives_its_whole_records(logged, caplog):
    path = logged(range(5))
    _run, *whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(whole[0] + b"no line\n\xff\n" + whole[1] + whole[2] + whole[3][:50])
    with LoggedExplainer(path) as explainer:
        assert [result(each) for each in explainer.explain([frame(k, k / RATE) for k in range(5)])] == [
            0,
            1,
            2,
            None,
            None,
        ]
        assert explainer.damaged == 3
    assert len([r for r in caplog.records if "line 2" in r.getMessage()]) == 1


def test_one_of_several_cameras_is_chosen(logged, tmp_path):
    both = tmp_path / "both.jsonl"
    both.write_bytes(logged([1], camera="door").read_bytes() + logged([2], camera="yard").read_bytes())
    with pytest.raises(SourceError, match="--camera with one of 'door', 'yard'"), LoggedExplainer(both):
        pass
    with (
        pytest.raises(SourceError, match="no camera 'hall'; its cameras are 'door', 'yard'"),
        LoggedExplainer(both, "hall"),
    ):
        pass
    with LoggedExplainer(both, "yard") as explainer:
        assert [result(each) for each in explainer.explain([frame(1), frame(2)])] == [None, 2]


def test_file_that_is_no_log_is_refused_with_a_message(tmp_path, logged):
    empty = tmp_path / "empty.jsonl"
    empty.write_bytes(b"\x00\x01\n" * 10)
    with pytest.raises(SourceError, match="holds no explanation"), LoggedExplainer(empty):
        pass
    with pytest.raises(SourceError, match="cannot be read"), LoggedExplainer(tmp_path / "none.jsonl"):
        pass
    path = logged([0])
    path.write_text(json.dumps(log_lines(path)[0] | {"version": 2}))
    with pytest.raises(WireVersionError, match="update"), LoggedExplainer(path):
        pass


def test_log_without_its_video_is_shown_on_black(logged):
    with LoggedExplainer(logged([3, 4, 9])) as explainer:
        source = BlankFrameSource(explainer)
        assert isinstance(source, Source)
        assert source.frames_total == 3
        with source:
            frames = list(source.frames(threading.Event()))
        assert [(f.index, f.image.shape, int(f.image.max())) for f in frames] == [
            (k, (48, 64, 3), 0) for k in (3, 4, 9)
        ]
        assert [result(each) for each in explainer.explain(frames)] == [3, 4, 9]


class FakeStop(threading.Event):
    """Its waits take no time, but advance a clock."""

    def __init__(self):
        super().__init__()
        self.now = 100.0

    def wait(self, timeout=None):
        self.now += timeout
        return self.is_set()


def test_real_time_source_gives_each_frame_at_its_presentation_time(logged):
    stop = FakeStop()
    with LoggedExplainer(logged([3, 4, 5, 9])) as explainer:
        source = RealTimeSource(BlankFrameSource(explainer), clock=lambda: stop.now)
        assert isinstance(source, Source)
        with source:
            frames = list(source.frames(stop))
    assert [each.index for each in frames] == [3, 4, 5, 9]
    assert [each.captured_at - 100.0 for each in frames] == pytest.approx([0, 1 / RATE, 2 / RATE, 6 / RATE])


def test_real_time_source_gives_late_frames_at_once_until_it_has_caught_up(logged):
    stop = FakeStop()
    video_frame = []
    with (
        LoggedExplainer(logged([0, 1, 2, 3, 4])) as explainer,
        RealTimeSource(BlankFrameSource(explainer), clock=lambda: stop.now) as source,
    ):
        for each in source.frames(stop):
            video_frame.append(each.captured_at - 100.0)
            if each.index == 0:
                stop.now += 2.5 / RATE
    assert video_frame == pytest.approx([0, 2.5 / RATE, 2.5 / RATE, 3 / RATE, 4 / RATE])


def test_real_time_source_ends_when_stopped_while_it_waits(logged):
    stop = FakeStop()
    with (
        LoggedExplainer(logged([3, 9])) as explainer,
        RealTimeSource(BlankFrameSource(explainer), clock=lambda: stop.now) as source,
    ):
        frames = source.frames(stop)
        next(frames)
        stop.set()
        assert list(frames) == []


HEAT = "AAAAAAAAAAAAAAAA"
FINDING = {"label": "a", "class_index": 0, "score": 0.5, "heat_u8": HEAT, "box": None}
PLAIN = {
    "version": 1, "camera": "line", "width": 32, "height": 24, "pts_seconds": None, "taken_at_unix": 1.0,
    "sent_at_unix": 1.0, "age_seconds": 0.0, "model": "m", "method": "x", "layer": "l", "grid": [3, 4],
    "heat_region": [0, 0, 32, 24], "findings": [FINDING], "timings": {}, "truth": None,
}  # fmt: skip
UNDRAWABLE = {
    "no corner": {"regions": [{"name": "r", "polygon": []}]},
    "two corners": {"regions": [{"name": "r", "polygon": [[0, 0], [1, 1]]}]},
    "a corner far out": {"regions": [{"name": "r", "polygon": [[0, 0], [1e30, 1], [2, 2]]}]},
    "no cell": {"grid": [0, 0], "findings": [FINDING | {"heat_u8": ""}]},
    "no column": {"grid": [3, 0], "findings": [FINDING | {"heat_u8": ""}]},
    "a region far out": {"heat_region": [-1e308, -1e308, 1e308, 1e308], "frame_width": 1, "frame_height": 1},
    "a box far out": {"findings": [FINDING | {"box": [0, 0, 1e300, 1]}]},
    "a centre far out": {
        "findings": [
            FINDING | {"grounds": {"focus_area": 0.1, "entropy": 0.1, "centre": [1e300, 0], "stability": None}}
        ]
    },
}


@pytest.mark.parametrize("name", UNDRAWABLE)
def test_record_that_cannot_be_drawn_is_skipped_like_a_damaged_one(tmp_path, name):
    path = tmp_path / "out.jsonl"
    lines = [PLAIN | {"index": 0}, PLAIN | {"index": 1} | UNDRAWABLE[name], PLAIN | {"index": 2}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with LoggedExplainer(path) as explainer:
        frames = list(BlankFrameSource(explainer).frames(threading.Event()))
        assert [f.index for f in frames] == [0, 2]
        assert len([HeatRenderer(contour=True).render(each) for each in explainer.explain(frames)]) == 2


@pytest.mark.parametrize("odd", ["[" * 100_000, '{"version":' + "9" * 5000 + "}", '{"a":' * 5000, "NaN", "null", "[]"])
def test_record_of_unknown_json_is_skipped(tmp_path, odd):
    path = tmp_path / "out.jsonl"
    path.write_text(odd + "\n" + json.dumps(PLAIN | {"index": 0}) + "\n\n" + json.dumps(PLAIN | {"index": 1}))
    with LoggedExplainer(path) as explainer:
        assert [f.index for f in BlankFrameSource(explainer).frames(threading.Event())] == [0, 1]
        assert explainer.damaged == 1


def test_oversized_frame_is_shown_smaller(tmp_path):
    path = tmp_path / "out.jsonl"
    large = {"index": 0, "width": 20_000, "height": 64, "heat_region": [0, 0, 20_000, 64]}
    path.write_text(json.dumps(PLAIN | large) + "\n")
    with LoggedExplainer(path) as explainer:
        (frame,) = BlankFrameSource(explainer).frames(threading.Event())
        (explanation,) = explainer.explain([frame])
    assert (frame.width, frame.height) == (4096, 13)
    assert explanation.region.right == pytest.approx(4096)


def runs_of(path, *runs):
    for indices in runs:
        with JsonlSink(path, SinkContext(cameras=("line",))) as sink:
            for index in indices:
                heat = heat_of(index + 10 * len(indices))
                explanation = explain(index=index, pts_seconds=index / RATE, heat=heat)
                sink.put(Overlay(explanation.frame.image, explanation))


def test_last_run_of_a_log_is_shown_unless_another_is_chosen(tmp_path, caplog):
    path = tmp_path / "out.jsonl"
    runs_of(path, range(2), range(3))
    with LoggedExplainer(path) as explainer:
        assert [result(each) for each in explainer.explain([frame(k, k / RATE) for k in range(3)])] == [30, 31, 32]
        assert [f.index for f in BlankFrameSource(explainer).frames(threading.Event())] == [0, 1, 2]
    assert "2 runs have records of 'line'; the last one is shown, choose another with --run: 1, 2" in caplog.text
    with LoggedExplainer(path, run=1) as explainer:
        assert [result(each) for each in explainer.explain([frame(k, k / RATE) for k in range(3)])] == [20, 21, None]
        assert [f.index for f in BlankFrameSource(explainer).frames(threading.Event())] == [0, 1]
    with pytest.raises(SourceError, match="choose a run with --run: 1, 2"), LoggedExplainer(path, run=3):
        pass


def test_records_before_the_first_run_record_are_a_run(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text(json.dumps(PLAIN | {"index": 7}) + "\n")
    runs_of(path, range(2))
    with LoggedExplainer(path, run=1) as explainer:
        assert [f.index for f in BlankFrameSource(explainer).frames(threading.Event())] == [7]
    with LoggedExplainer(path) as explainer:
        assert (explainer.run, explainer.line_count) == (2, 2)


def test_photo_is_found_by_name_after_files_were_added_and_removed(tmp_path, overlaid):
    path = tmp_path / "out.jsonl"
    with JsonlSink(path) as sink:
        for index, name in enumerate(["a.jpg", "b.jpg", "c.jpg"]):
            sink.put(overlaid(index=index, heat=heat_of(index), source_name=name, pts_seconds=index / 2))
    shown = [
        replace(frame(k, k / 2), source_name=name) for k, name in enumerate(["new.jpg", "b.jpg", "other.jpg", "c.jpg"])
    ]
    with LoggedExplainer(path) as explainer:
        assert [result(each) for each in explainer.explain(shown)] == [None, 1, None, 2]


def test_log_beside_a_clip_matches_the_clips_images(tmp_path, overlaid):
    with ClipSink(ClipSettings(uri=f"{tmp_path}/", rotate_seconds=1.0), SinkContext(cameras=("line",))) as sink:
        for index in range(65):
            sink.put(overlaid(index=index, pts_seconds=index / RATE, heat=heat_of(index)))
    for number, film in enumerate(sorted(tmp_path.glob("*.mp4"))):
        with av.open(str(film)) as held:
            frames = [frame(k, image.time) for k, image in enumerate(held.decode(video=0))]
        with LoggedExplainer(film.with_suffix(".jsonl"), video=film) as explainer:
            seen = [result(each) for each in explainer.explain(frames)]
        assert seen == [(30 * number + k) % 50 for k in range(len(frames))]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_replay_draws_the_logged_boxes_and_maps_as_the_live_frame(tmp_path, suffix):
    path = tmp_path / f"log.{suffix}"
    live = explained_boxes(
        box(100, 100, track=1, heat=hot_cell(3, 3)),
        box(400, 200, track=2, heat=hot_cell(6, 11), mode="drop", against=hot_cell(1, 14), age_seconds=0.4),
        box(500, 20, track=3),
    )
    sink = JsonlSink(path)
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
        from overlays.sinks.parquet import ParquetSink

        sink = ParquetSink(path)
    with sink:
        sink.put(Overlay(live.frame.image, live))
    with LoggedExplainer(path) as explainer:
        [shown] = explainer.explain([live.frame])
    assert [finding.track for finding in shown.findings] == [finding.track for finding in live.findings]
    assert [finding.box for finding in shown.findings] == [finding.box for finding in live.findings]
    drawn, replayed = (HeatRenderer(legend=False).render(each).image.astype(int) for each in (live, shown))
    assert (drawn != live.frame.image).any()
    assert np.abs(drawn - replayed).max() <= 3


def test_replay_scales_boxes_and_their_maps_to_a_smaller_video(tmp_path):
    path, live = tmp_path / "log.jsonl", street(3)
    with JsonlSink(path) as sink:
        sink.put(Overlay(live.frame.image, live))
    with LoggedExplainer(path) as explainer:
        [shown] = explainer.explain([replace(live.frame, pixels=np.zeros((180, 320, 3), np.uint8))])
    for small, large in zip(shown.findings, live.findings, strict=True):
        assert small.box == pytest.approx([edge / 2 for edge in large.box])
        assert shown.region_of(small) == Box(0, 0, 320, 180)


def test_log_beside_a_clip_has_boxes_tracks_and_maps(tmp_path):
    with ClipSink(ClipSettings(uri=f"{tmp_path}/"), SinkContext(cameras=("north",))) as sink:
        for index in range(5):
            live = street(12, index=index, captured_at=index / RATE, pts_seconds=index / RATE)
            sink.put(Overlay(live.frame.image, live))
    [path] = tmp_path.glob("*.jsonl")
    lines = log_lines(path)
    assert len(lines) == 5
    for line in lines:
        assert [each["track"] for each in line["findings"]] == list(range(1, 13))
        assert [each["box"] for each in line["findings"]] == [list(finding.box) for finding in live.findings]
        assert sum("map" in each for each in line["findings"]) == 8
