"""Two runs never write the same file or record the same camera into the same folder."""

from __future__ import annotations

import os

import pytest

from overlays.sinks.locks import claimed, to_claim
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
