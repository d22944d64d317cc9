"""Tests of an unplugged cable, which closes no connection."""

import pytest

from stream.sources import build_source
from tests.support.cable import Cable, missing
from tests.support.feed import Feed
from tests.support.reader import Reader
from tests.support.rtsp_server import RtspServer


@pytest.fixture
def cable():
    if missing():
        pytest.skip(missing())
    with Cable() as laid:
        yield laid


@pytest.mark.slow
@pytest.mark.parametrize("seconds_down", [0.0, 4.0])
def test_pulled_cable_is_detected_and_the_camera_returns(cable, seconds_down):
    options = {"read_timeout_seconds": 1.0}
    with (
        Feed() as feed,
        RtspServer(feed, user="eye", password="right", host=cable.far, namespace=cable.name) as server,  # noqa: S106
        build_source(server.url(), camera="door", **options) as source,
        Reader(source) as reader,
    ):
        reader.until(lambda: len(reader.frames) > 3)
        cable.pull()
        reader.until(lambda: source.health.state != "live")
        assert (source.health.cause, source.health.reason) == ("stalled", "no frame for 1 s")
        down_until = feed.number + round(seconds_down * feed.rate)
        reader.until(lambda: feed.number >= down_until)
        assert source.health.state != "live"
        cable.plug()
        reader.until_number(feed.number)
        assert (source.health.state, source.health.reconnects) == ("live", 1)
