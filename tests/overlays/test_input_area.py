"""Regions of interest and masks in what a stream delivers: drawn, sent, logged and replayed in frame coordinates."""

import numpy as np
import pytest

from overlays.records.arrow_schema import from_row, to_row
from overlays.records.replay import LoggedExplainer
from overlays.render.input_area import ROI, draw_input_area, input_area_patch
from overlays.render.jpeg import decode_image
from overlays.render.renderer import HeatRenderer
from overlays.wire.header import Header
from overlays.wire.message import as_overlay, decode_message, encode, explanation_record, record_bytes
from pipeline.errors import WireError
from pipeline.frames import Box, Explanation, Finding, Frame, Overlay
from pipeline.input_area import InputArea, InputAreaOptions
from pipeline.polygons import pixels_inside

SIZE = (320, 240)
MASK = ((200.0, 120.0), (280.0, 120.0), (240.0, 200.0))
AREA = InputAreaOptions((61, 41, 231, 171), (MASK,)).placed(*SIZE)
CLOCK = {"sent_at_unix": 1000.0, "now_monotonic": 100.5}


def explained(area=AREA):
    image = np.random.default_rng(1).integers(60, 200, (SIZE[1], SIZE[0], 3), np.uint8)
    heat = np.zeros((7, 7), np.float32)
    heat[2, 3] = 1.0
    frame = Frame(image, "yard", 4, 100.0, 1.5, area=area)
    region = None if area is None else Box(*map(float, area.cut))
    return Explanation(frame, (Finding("crack", 0.8, heat, 1),), "recipro-cam/point", "layer4", heat_region=region)


def changed(image, before):
    return (image != before).any(axis=2)


def test_renderer_draws_the_outline_and_hatches_masks_and_leaves_the_rest():
    image = explained().frame.image.copy()
    draw_input_area(image, AREA)
    drawn = changed(image, explained().frame.image)
    left, top, right, bottom = AREA.cut
    outline = np.zeros_like(drawn)
    outline[top - 4 : bottom + 4, left - 4 : right + 4] = True
    outline[top + 30 : bottom - 4, left + 4 : right - 4] = False
    hatched = pixels_inside(MASK, (0, 0, *SIZE))
    assert 0.1 < drawn[hatched].mean() < 0.9
    grown = np.zeros_like(drawn)
    for dy in range(-4, 5):
        for dx in range(-4, 5):
            grown |= np.roll(hatched, (dy, dx), (0, 1))
    assert not drawn[~grown & ~outline].any()
    assert image[100, left].astype(int) == pytest.approx(ROI, abs=30)


def test_renderer_draws_no_area_by_option_or_without_one():
    plain = HeatRenderer(legend=False).render(explained(None)).image
    without = HeatRenderer(legend=False, input_area=False).render(explained()).image
    shown = HeatRenderer(legend=False).render(explained()).image
    region = np.s_[60:210, 80:280]
    assert changed(shown, without)[region].any()
    flat = Explanation(explained().frame, (), "", "")
    np.testing.assert_array_equal(HeatRenderer(legend=False, input_area=False).render(flat).image, flat.frame.image)
    assert plain.shape == without.shape


def test_heat_of_a_region_is_painted_inside_it():
    image = HeatRenderer(legend=False, input_area=False).render(explained()).image
    rows, columns = np.nonzero(changed(image, explained().frame.image))
    left, top, right, bottom = AREA.cut
    assert left <= columns.min() <= columns.max() < right
    assert top <= rows.min() <= rows.max() < bottom
    middle = (left + 3.5 * (right - left) / 7, top + 2.5 * (bottom - top) / 7)
    assert (columns.mean(), rows.mean()) == pytest.approx(middle, abs=2.0)


def test_patch_for_another_device_has_the_effect_of_the_drawing():
    image = explained().frame.image.copy()
    patch = input_area_patch(AREA, SIZE[1], SIZE[0])
    rows, columns = patch.tile.shape[:2]
    part = image[patch.top : patch.top + rows, patch.left : patch.left + columns].astype(float)
    expected = np.rint(part * patch.tile[..., 3:] / 255.0) + patch.tile[..., :3]
    draw_input_area(image, AREA)
    drawn = image[patch.top : patch.top + rows, patch.left : patch.left + columns]
    assert np.abs(drawn - expected).max() <= 1
    assert len(HeatRenderer(legend=False).render_patches(explained())) == 1
    assert HeatRenderer(legend=False, input_area=False).render_patches(explained()) == []


def test_area_outside_the_image_draws_nothing():
    far = InputArea.around(((900, 900), (990, 900), (990, 990)), [((2e9, 0), (2e9, 5), (-2e9, -7e8))], *SIZE)
    image = explained().frame.image.copy()
    draw_input_area(image, InputArea.around(far.roi, (), *SIZE))
    np.testing.assert_array_equal(image, explained().frame.image)
    draw_input_area(image, far)  # a received mask may reach anywhere


def test_message_carries_the_area_and_where_the_heat_lies():
    header, payload = decode_message(encode(Overlay(explained().frame.image, explained()), **CLOCK))
    assert header.roi == AREA.roi
    assert header.masks == AREA.masks
    received = as_overlay(header, decode_image(payload), now_unix=1000.0, now_monotonic=100.5).explanation
    assert received.frame.area == AREA
    assert received.region == explained().region
    assert received.first.peak(received.region) == explained().first.peak(explained().region)


def test_message_of_a_smaller_image_scales_the_area():
    small = np.zeros((120, 160, 3), np.uint8)
    header, payload = decode_message(encode(Overlay(small, explained()), **CLOCK))
    area = as_overlay(header, decode_image(payload), now_unix=1000.0, now_monotonic=100.5).explanation.frame.area
    assert area.masks == (tuple((x / 2, y / 2) for x, y in MASK),)
    assert area.roi == tuple((x / 2, y / 2) for x, y in AREA.roi)
    assert area.cut == (30, 20, 146, 106)


def test_record_without_an_area_has_no_keys_of_it():
    assert {"roi", "masks"}.isdisjoint(explanation_record(explained(None), **CLOCK))
    masked = InputAreaOptions(masks=(MASK,)).placed(*SIZE)
    record = explanation_record(explained(masked), **CLOCK)
    assert "roi" not in record
    assert Header.parse(record_bytes(record)).area(1.0, 1.0) == masked


def test_table_gives_the_area_of_a_record_back():
    record = explanation_record(explained(), **CLOCK)
    assert from_row(to_row(record)) == record


def test_replay_gives_the_area_to_the_frames_of_the_video(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(record_bytes(explanation_record(explained(), **CLOCK)) + b"\n")
    half = Frame(np.zeros((120, 160, 3), np.uint8), "video", 4, 0.0, 1.5)
    with LoggedExplainer(path) as logged:
        (found,) = logged.explain([half])
    assert found.frame.image is half.image
    assert found.frame.area.cut == (30, 20, 146, 106)


@pytest.mark.parametrize("key", ["roi", "masks"])
@pytest.mark.parametrize("value", [[[0, 0], [1, 1]], "all", [[0, 0], [1, 1], [float("1e300"), 5]], {"x": 1}])
def test_header_with_a_wrong_area_is_refused(key, value):
    record = explanation_record(explained(), **CLOCK) | {key: value}
    with pytest.raises(WireError, match=key):
        Header.parse(record_bytes(record))
