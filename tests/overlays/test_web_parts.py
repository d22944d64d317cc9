"""The strip of the last parts on the page, and its data."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest

from overlays.render.jpeg import decode_image
from overlays.web.parts import SHOWN
from pipeline.frames import Overlay
from pipeline.passages.passage import Place, PlaceCount
from tests.support.browser import CHROMIUM
from tests.support.detections import detection_frame, detections
from tests.support.page import fetch, page
from tests.support.passages import part, with_passages

ZONE = Place("zone", "station", ((40.0, 10.0), (120.0, 10.0), (120.0, 110.0), (40.0, 110.0)))


def _overlay(index, *passages):
    ok, bad = sum(p.is_ok is True for p in passages), sum(p.is_ok is False for p in passages)
    counts = (PlaceCount("ok", "", True, ok), PlaceCount("dent", "", False, bad))
    explanation = with_passages(detections(detection_frame(index)), places=(replace(ZONE, counts=counts),))
    explanation = replace(explanation, recent_passages=tuple(passages))
    return Overlay(explanation.frame.image, explanation)


def _parts(sink, query=""):
    status, _, body = fetch(sink, f"/parts/road.json{query}")
    return status, body


def test_parts_of_a_camera_are_served_with_their_images():
    with page(cameras=("road",)) as sink:
        assert _parts(sink) == (200, b"[]")
        sink.put(_overlay(1, part(1), part(2, label="dent", is_ok=False)))
        status, body = _parts(sink, "?after=1")
        assert status == 200
        [record] = json.loads(body)
        assert (record["sequence"], record["label"], record["is_ok"]) == (2, "dent", False)
        image = decode_image(base64.b64decode(record["jpeg"]))
        assert image.shape == (24, 32, 3)
        assert abs(image[:6].mean() - 90) < 8
        assert len(json.loads(_parts(sink)[1])) == 2


def test_parts_are_the_last_ones_and_leave_with_their_camera():
    with page(cameras=("road",)) as sink:
        sink.put(_overlay(1, *(part(k) for k in range(1, 20))))
        assert [each["sequence"] for each in json.loads(_parts(sink)[1])] == list(range(20 - SHOWN, 20))
        sink.forget_camera("road")
        assert _parts(sink)[0] == 404


@pytest.mark.parametrize("query", ["?after=x", "?after=nan", "?after=inf"])
def test_sequence_number_that_is_no_number_is_refused(query):
    with page(cameras=("road",)) as sink:
        assert _parts(sink, query)[0] == 400


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt install chromium")
def test_page_shows_counts_and_the_last_parts_with_their_verdicts(tab, wait_until):
    pytest.importorskip("playwright.sync_api")
    with page(cameras=("road",)) as sink:
        shown = tab(sink.endpoint)
        index = 0

        def count(selector, *passages):
            nonlocal index
            index += 1
            sink.put(_overlay(index, *passages))
            shown.wait_for_timeout(50)
            return shown.locator(selector).count()

        first, second = part(1), part(2, label="dent", is_ok=False, evidence_outside_box=0.4)
        wait_until(lambda: count(".part-strip li", first) == 1)
        wait_until(lambda: count(".part-strip li", first, second) == 2)
        newest = shown.locator(".part-strip li").first
        assert newest.get_attribute("data-verdict") == "rejected"
        assert newest.inner_text() == "dent"
        assert "40 % of the evidence outside its box" in newest.get_attribute("title")
        assert shown.locator(".part-counts").inner_text() == "station: 2 · 1 rejected · 0 inside"
        shown.wait_for_function("() => document.querySelector('.part-strip img').naturalWidth === 32")
