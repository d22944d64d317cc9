"""Two runs never write the same file or record the same camera into the same folder."""

from __future__ import annotations

import os

import pytest

from overlays.sinks.locks import Claims, claimed, to_claim
from overlays.sinks.settings import VideoSettings
from overlays.sinks.video import VideoSink
from pipeline.errors import SinkError
from pipeline.settings import SinkContext
from tests.support.clips import RATE, grey, greys


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


def test_claims_of_a_camera_that_left_are_free_for_another_run_and_the_others_stay(tmp_path):
    uris = [f"{tmp_path}/clips/", f"{tmp_path}/out.mp4", f"{tmp_path}/log.jsonl"]
    with Claims(uris) as ours:
        ours.add(["a", "b"])
        ours.add(["a", "b", "c"])
        ours.release("a")
        ours.release("c")
        ours.release("never")
        with claimed(to_claim([uris[0], f"{tmp_path}/out.a.mp4"], ["a"])), claimed([tmp_path / "out.c.mp4"]):
            pass
        for uri, cameras in ((uris[0], ["b"]), (f"{tmp_path}/out.b.mp4", ["x"]), (uris[1], ["x"]), (uris[2], ["x"])):
            with pytest.raises(SinkError, match="by another run"), claimed(to_claim([uri], cameras)):
                pass
        ours.add(["a", "b"])
        with pytest.raises(SinkError, match="by another run"), claimed(to_claim([uris[0]], ["a"])):
            pass
    with claimed(to_claim(uris, ["a", "b", "c"])):
        pass


def test_claims_that_another_run_holds_in_part_leave_nothing_locked(tmp_path):
    uris = [f"{tmp_path}/clips/", f"{tmp_path}/out.mp4"]
    with claimed([tmp_path / "out.b.mp4"]), Claims(uris) as ours:
        with pytest.raises(SinkError, match="by another run"):
            ours.add(["a", "b"])
        with claimed(to_claim(uris[:1], ["a"])):
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
        assert to_claim(uris, ["line"]) == {}
