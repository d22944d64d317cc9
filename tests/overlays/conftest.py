"""Fixtures of the overlay tests: explanations with known values."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.frames import Box, Explanation, Finding, Frame, GroundTruth, Overlay
from tests.support.broker import Broker
from tests.support.browser import CHROMIUM, browsing, console_checked_tabs
from tests.support.limits import LIMIT_SECONDS


@pytest.fixture(autouse=True)
def _one_thread():
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(before)


def explain(
    image: np.ndarray | None = None,
    *,
    heat: np.ndarray | None = None,
    label: str = "bottle",
    score: float = 0.875,
    camera: str = "line",
    index: int = 0,
    taken_at: float | None = None,
    pts_seconds: float | None = None,
    region: Box | None = None,
    truth: GroundTruth | None = None,
    others: tuple[Finding, ...] = (),
    source_name: str = "",
) -> Explanation:
    """Make an explanation; whatever is not given is plain."""
    if image is None:
        image = np.full((48, 64, 3), 100, np.uint8)
    if heat is None:
        heat = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    captured_at = time.monotonic() if taken_at is None else taken_at
    frame = Frame(image, camera, index, captured_at, pts_seconds, truth, source_name)
    actual = (Finding(label, score, heat, class_index=3), *others)
    return Explanation(frame, actual, "recipro-cam/point", "layer4", {"explain": 0.01}, "resnet50", region)


@pytest.fixture(scope="session")
def explained() -> Callable[..., Explanation]:
    return explain


@pytest.fixture(scope="session")
def overlaid() -> Callable[..., Overlay]:
    """Return an overlay with the given image, or with a copy of the frame's image without drawings."""

    def overlay(image: np.ndarray | None = None, *, drawn: bool = True, **facts) -> Overlay:
        explanation = explain(image, **facts)
        pixels = explanation.frame.image
        return Overlay(pixels.copy() if drawn else pixels, explanation)

    return overlay


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    """Wait for a condition that another process or the network brings about; fail when it does not come."""

    def wait(condition: Callable[[], bool], seconds: float = LIMIT_SECONDS) -> None:
        pause = threading.Event()
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not come to pass"
            pause.wait(0.01)

    return wait


def figures(sink):
    """Return name, labels (without ``sink`` and ``le``) and value of each sample of a page."""
    link = http.client.HTTPConnection(sink.endpoint.removeprefix("http://"), timeout=LIMIT_SECONDS)
    try:
        link.request("GET", "/metrics")
        text = link.getresponse().read().decode()
    finally:
        link.close()
    assert "://u:p@" not in text
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            labels = (value for key, value in sorted(sample.labels.items()) if key not in {"le", "sink"})
            yield " ".join((sample.name, *labels)), sample.value


@pytest.fixture
def quick_mqtt(monkeypatch):
    """Shorten the waits of the MQTT sink before a new connection and before it gives a broker up."""
    from overlays.sinks.mqtt import connection, sink

    monkeypatch.setattr(connection, "_RETRY_SECONDS", (0.1, 0.2))
    monkeypatch.setattr(sink, "_STALL_SECONDS", 1.0)


@pytest.fixture
def broker(tmp_path):
    """Start an MQTT broker that asks for no password."""
    with Broker(tmp_path, "allow_anonymous true") as running:
        yield running


@pytest.fixture
def keyring(tmp_path):
    """The keys of a server, of a viewer, and of a viewer that is on no list."""
    from overlays.wire.curve.keys import create_keyring, make_pair

    folder = tmp_path / "keys"
    create_keyring(folder)
    (tmp_path / "abroad").mkdir()
    make_pair(tmp_path / "abroad", "stranger")
    return folder


@pytest.fixture(scope="module")
def chromium():
    """Start Chromium: one for a module, because Playwright keeps an event loop in this thread."""
    pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt install chromium")
    with browsing() as browser:
        yield browser


@pytest.fixture
def tab(chromium):
    """Open tabs; fail when one writes an error to its console."""
    with console_checked_tabs(chromium) as opened:
        yield opened
