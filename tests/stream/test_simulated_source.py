"""Tests of the simulated line as a source: URI, clock and frames."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from pipeline.errors import SourceError
from pipeline.ports import Source
from stream.simulated import source as simulated_source
from stream.simulated.source import SimulatedLineSource
from stream.sources import build_source


def unpaced(**options) -> SimulatedLineSource:
    return SimulatedLineSource(**{"size": (160, 120), "paced": False, "frames": 5} | options)


def test_simulated_line_is_source():
    assert isinstance(unpaced(), Source)


def test_simulated_line_unpaced_gives_every_frame_and_ends():
    with unpaced(frames=12, fps=20.0) as source:
        frames = list(source.frames(threading.Event()))
    assert [frame.index for frame in frames] == list(range(12))
    assert [frame.pts_seconds for frame in frames] == [index / 20.0 for index in range(12)]
    assert all(frame.image.shape == (120, 160, 3) and not frame.image.flags.writeable for frame in frames)
    assert source.live is False
    assert source.health.state == "ended"


@pytest.mark.parametrize("size", ["120x120", "160x120", "121x121", "217x133"])
def test_parts_fit_into_the_smallest_pictures(size):
    with build_source(f"line:?fps=1&size={size}&seed=3&frames=20&paced=0") as source:
        assert sum(1 for _ in source.frames(threading.Event())) == 20


def test_pacing_changes_when_frames_come_and_nothing_of_what_they_show():
    stop = threading.Event()
    slow = list(unpaced().frames(stop))
    started_at = time.monotonic()
    paced = list(unpaced(paced=True, fps=30.0).frames(stop))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(slow, paced, strict=False) if a.index == b.index)
    assert all(frame.captured_at - started_at >= frame.index / 30.0 for frame in paced)


def test_simulated_line_paced_stops_at_once():
    stop = threading.Event()
    source = SimulatedLineSource(size=(160, 120), fps=0.1)
    frames = source.frames(stop)
    assert next(frames).index == 0
    timer = threading.Timer(0.05, stop.set)
    timer.start()
    started_at = time.monotonic()
    assert next(frames, None) is None
    assert time.monotonic() - started_at < 9.0, "long before the next frame was due"
    timer.join()


def test_simulated_line_skips_frames_for_slow_reader():
    source = SimulatedLineSource(size=(160, 120), fps=100.0)
    assert source._next(10, 0.11) == 11
    assert source._next(10, 0.14) == 11  # still in the driver's buffer
    assert source._next(10, 1.0) == 100 - simulated_source._BUFFER_FRAMES + 1


def test_simulated_line_uri_sets_all_options():
    source = build_source("line:?fps=12.5&size=320x240&seed=9&frames=3&paced=0", camera="belt 2")
    assert (source.camera, source.rate, source.frames_total, source.live) == ("belt 2", 12.5, 3, False)
    assert source.uri == "line:?fps=12.5&size=320x240&seed=9&paced=0&frames=3"
    again = build_source(source.uri)
    stop = threading.Event()
    assert np.array_equal(next(source.frames(stop)).image, next(again.frames(stop)).image)


@pytest.mark.parametrize("uri", ["line:", "line://", "line:?"])
def test_simulated_line_bare_uri_is_default(uri):
    source = build_source(uri)
    assert (source.camera, source.rate, source.live, source.frames_total) == ("line", 30.0, True, None)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("line:?fsp=30", "Did you mean 'fps'"),
        ("line:?fps=fast", "fps='fast'"),
        ("line:?fps=0", "greater than or equal to 0.1"),
        ("line:?fps=nan", "finite number"),
        ("line:?size=640", "size='640'"),
        ("line:?size=0x0", "size='0x0'"),
        ("line:?size=4000x300", "0.75 to 1.8 times the height"),
        ("line:?size=60x50", "120 to 2160"),
        ("line:?seed=x", "valid integer"),
        ("line:?seed=-1", "greater than or equal to 0"),
        ("line:?frames=0", "greater than or equal to 1"),
        ("line:?paced=maybe", "valid boolean"),
        ("line:?fps=1&fps=2", "given twice"),
        ("line:?fps", "key=value"),
        ("line:7", "for example line:"),
    ],
)
def test_simulated_line_bad_uri_names_value_and_hint(uri, message):
    with pytest.raises(SourceError) as caught:
        build_source(uri)
    assert message in str(caught.value)
    assert "line:" in str(caught.value)
