"""Output of the network sink: size, rate, number of compressions."""

from __future__ import annotations

import time
from contextlib import ExitStack

import numpy as np
import pytest

from overlays.sinks.rate_limit import RateLimiter
from overlays.sinks.settings import ZeroMqSettings
from overlays.sinks.zeromq import ZeroMqSink
from overlays.wire.viewer import Viewer
from pipeline.frames import Box, GroundTruth

ANY = "tcp://127.0.0.1:0"


def joined(sink, wait_until, topic=b""):
    def heard():
        sink.idle()
        return topic in sink.topics

    wait_until(heard)


def seen_by(viewer, polls=6):
    return [each for _, each in zip(range(polls), viewer.messages_or_none(), strict=False) if each is not None]


def test_smaller_image_is_sent_with_scaled_boxes(overlaid, wait_until):
    whole = np.full((80, 120, 3), (200, 30, 60), np.uint8)
    facts = {"region": Box(-20, 0, 140, 80), "truth": GroundTruth("x", (Box(12, 0, 24, 8),))}
    with ZeroMqSink(ZeroMqSettings(uri=ANY, scale=0.5)) as sink, Viewer(sink.endpoint) as viewer:
        joined(sink, wait_until)
        sink.put(overlaid(whole, **facts))
        received = seen_by(viewer)[0]
    header, explanation = received.header, received.overlay().explanation
    assert received.image.shape == (40, 60, 3)
    assert (header.width, header.height, header.frame_width, header.frame_height) == (60, 40, 120, 80)
    assert header.heat_region == Box(-20, 0, 140, 80)
    assert explanation.region == Box(-10, 0, 70, 40)
    assert explanation.frame.truth.boxes == (Box(6, 0, 12, 4),)
    assert np.abs(received.image[20, 30].astype(int) - (200, 30, 60)).max() <= 4


def test_lower_quality_is_smaller(overlaid, wait_until):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    sizes = []
    for quality in (90, 10):
        with ZeroMqSink(ZeroMqSettings(uri=ANY, quality=quality)) as sink, Viewer(sink.endpoint) as viewer:
            joined(sink, wait_until)
            sink.put(overlaid(noise))
            sizes.append(len(seen_by(viewer)[0].payload))
    assert sizes[1] < sizes[0] / 3


def run_at(sink, overlaid, now, rate, seconds, camera="line", *, drawn=None):
    """Put frames as a run does: drawn only if a picture is asked for; return the indices that were compressed."""
    sent = []
    for index in range(round(rate * seconds)):
        now[0] += 1 / rate
        before = sink.encoded
        expected = sink.needs_image(camera) if drawn is None else drawn
        sink.put(overlaid(index=index, camera=camera, drawn=expected, taken_at=0.0))
        if sink.encoded > before:
            sent.append((index, expected))
    return sent


@pytest.mark.parametrize(("most", "expected"), [(5.0, 10), (20.0, 40), (100.0, 60), (None, 60)])
def test_rate_limits_sent_and_drawn_frames(most, expected, overlaid, wait_until):
    now = [100.0]
    settings = ZeroMqSettings(uri=ANY, max_rate=most)
    with ZeroMqSink(settings, clock=lambda: now[0]) as sink, Viewer(sink.endpoint) as viewer:
        sink.put(overlaid(taken_at=0.0))
        joined(sink, wait_until)
        now[0] += 1.0
        sent = run_at(sink, overlaid, now, 30, 2.0)
        assert expected - 1 <= len(sent) <= expected + 1
        assert all(drawn for _, drawn in sent), "no frame leaves without its heat"
        assert seen_by(viewer, 1)


def test_rate_applies_to_each_camera():
    pace = RateLimiter(10.0)
    pace.record("a", 5.0)
    assert not pace.is_due("a", 5.09)
    assert pace.is_due("a", 5.11)
    assert pace.is_due("b", 5.0)
    pace.record("a", 9.0)
    assert pace.due_at("a") == pytest.approx(9.1), "after a pause nothing is made up for"


def test_newest_frame_is_sent_when_the_rate_allows(overlaid, wait_until):
    now = [100.0]
    settings = ZeroMqSettings(uri=ANY, max_rate=1.0)
    with ZeroMqSink(settings, clock=lambda: now[0]) as sink, Viewer(sink.endpoint) as viewer:
        sink.put(overlaid(index=0, taken_at=0.0))
        joined(sink, wait_until)
        for index in (1, 2, 3):
            sink.put(overlaid(index=index, taken_at=0.0))
        assert [each.header.index for each in seen_by(viewer)] == [0]
        now[0] += 1.1
        sink.idle()
        assert [each.header.index for each in seen_by(viewer)] == [3]
        sink.idle()
        assert sink.encoded == 2


def test_late_viewer_gets_the_last_frame_without_another_compression(overlaid, wait_until):
    now = [100.0]
    clocks = {"clock": lambda: now[0], "wall_clock": lambda: now[0]}
    with (
        ZeroMqSink(ZeroMqSettings(uri=ANY, max_rate=0.1), **clocks) as sink,
        Viewer(sink.endpoint, ("line",)) as early,
    ):
        joined(sink, wait_until, b"line")
        sink.put(overlaid(index=7, taken_at=0.0))
        assert [each.header.index for each in seen_by(early)] == [7]
        sink.put(overlaid(index=8, drawn=False, taken_at=0.0))
        with Viewer(sink.endpoint, ("li",)) as late:
            joined(sink, wait_until, b"li")
            assert [each.header.index for each in seen_by(late)] == [7]
            assert seen_by(early, 2) == []
        assert sink.encoded == 1


@pytest.mark.parametrize("viewers", [0, 1, 6])
def test_frame_is_compressed_once_for_all_viewers_and_never_without(viewers, overlaid, wait_until):
    with ExitStack() as stack:
        sink = stack.enter_context(ZeroMqSink(ANY))
        watching = [stack.enter_context(Viewer(sink.endpoint)) for _ in range(viewers)]

        def all_there():
            sink.idle()
            return sink.viewers == viewers and (not viewers or bool(sink.topics))

        wait_until(all_there)
        request_count = 0
        for index in range(3):
            request_count += sink.needs_image("line")
            sink.put(overlaid(index=index, taken_at=time.monotonic()))
        assert (sink.encoded, request_count) == ((3, 3) if viewers else (0, 0))
        for viewer in watching:

            def served(viewer=viewer):
                sink.idle()
                return any(each.header.index == 2 for each in seen_by(viewer, 1))

            wait_until(served)
            assert (viewer.problem, viewer.refused, viewer.damaged) == ("", 0, 0)
        assert sink.encoded == (3 if viewers else 0), "nor again for whoever was late"
