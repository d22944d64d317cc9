"""Several streams in one run: their cameras are told apart, and a silent stream is named."""

from __future__ import annotations

import threading

import pytest

from overlays.wire.joined import JoinedStreams, cameras_by_stream, stream_suffixes
from overlays.wire.remote import RemoteExplainer, RemoteRenderer, RemoteStream
from pipeline.errors import ConfigError, SourceError
from pipeline.loop import Pipeline
from pipeline.result import RunLimits
from tests.overlays.test_remote import FakeSink, FakeViewer, message
from tests.support.limits import LIMIT_SECONDS

HALL, YARD, DARK = "tcp://hall:5555", "tcp://yard:5555", "tcp://dark:5555"


def test_cameras_of_one_name_in_two_streams_stay_apart_and_a_silent_stream_is_named(overlaid, monkeypatch):
    monkeypatch.setattr("pipeline.workers.batches.IDLE_SECONDS", 0.01)
    viewers = [
        FakeViewer(message(overlaid(camera="line", index=3))),
        FakeViewer(message(overlaid(camera="line"))),
        FakeViewer(),
    ]
    for viewer, uri in zip(viewers, (HALL, YARD, DARK), strict=True):
        viewer.uri = uri
    viewers[2].problem = "refused"
    sink, stop, problems = FakeSink(), threading.Event(), []

    def watch(result):
        problems.append(result.problems())
        if len(sink.shown) == 2:
            stop.set()

    streams = [
        RemoteStream(viewer, suffix=suffix) for viewer, suffix in zip(viewers, ("@hall", "@yard", "@dark"), strict=True)
    ]
    joined = JoinedStreams(streams)
    with streams[0], streams[1], streams[2]:
        Pipeline(
            [], RemoteExplainer(lambda: joined.problem), RemoteRenderer(), [sink],
            limits=RunLimits(seconds=LIMIT_SECONDS), stop=stop, watch=watch, discovery=joined,
        ).run()  # fmt: skip
    assert {shown.explanation.frame.camera: shown.explanation.frame.index for shown in sink.shown} == {
        "line@hall": 3,
        "line@yard": 0,
    }
    assert problems[-1] == {"stream": "tcp://dark:5555: refused"}


def test_suffixes_tell_streams_apart_and_do_not_depend_on_their_order():
    assert stream_suffixes([HALL]) == [""]
    assert stream_suffixes([HALL, YARD]) == ["@hall", "@yard"]
    assert stream_suffixes([YARD, HALL]) == ["@yard", "@hall"]
    assert stream_suffixes([HALL, "tcp://hall:5556"]) == ["@hall:5555", "@hall:5556"]
    with pytest.raises(SourceError, match="given twice"):
        stream_suffixes([HALL, YARD, HALL])
    with pytest.raises(SourceError, match="tcp://host:port"):
        stream_suffixes([HALL, "yard"])


def test_named_cameras_are_received_from_their_stream():
    suffixes = ["@hall", "@yard"]
    assert cameras_by_stream([], suffixes) == [(), ()]
    assert cameras_by_stream(["a"], [""]) == [("a",)]
    assert cameras_by_stream(["a@hall", "b@yard", "c@yard"], suffixes) == [("a",), ("b", "c")]
    with pytest.raises(ConfigError, match="such as a@hall"):
        cameras_by_stream(["a"], suffixes)
    with pytest.raises(ConfigError, match="no given camera belongs to the stream yard"):
        cameras_by_stream(["a@hall"], suffixes)
