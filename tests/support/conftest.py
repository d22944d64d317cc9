"""A synthetic camera for the tests of the support servers."""

from __future__ import annotations

import pytest

from tests.support.feed import Feed
from tests.support.rtsp_server import RtspServer


@pytest.fixture
def feed():
    with Feed((160, 120), rate=20) as feed:
        yield feed


@pytest.fixture
def server(feed):
    with RtspServer(feed) as server:
        yield server
