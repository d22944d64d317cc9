"""Regions of interest and masks: placed in frames, refused where they do not fit, given to each frame by its worker."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.errors import SourceError
from pipeline.frames import Frame
from pipeline.input_area import InputArea, InputAreaOptions, painted_runs
from pipeline.polygons import pixels_inside
from pipeline.ports import Health, Source
from pipeline.settings import SourceSettings
from pipeline.workers.source import SourceWorker

TRIANGLE = [[2, 1], [9, 3], [4, 8]]

sides = st.integers(1, 40)


def options(**values):
    return SourceSettings(uri="line:", **values).input_area


def is_inside(x, y, polygon):
    """Return whether a point lies in a polygon: a ray to the right crosses an odd number of sides."""
    crossings = 0
    for (x1, y1), (x2, y2) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        if (y1 <= y < y2) or (y2 <= y < y1):
            crossings += x < x1 + (y - y1) * (x2 - x1) / (y2 - y1)
    return crossings % 2 == 1


@given(
    st.lists(st.tuples(st.integers(-8, 48), st.integers(-8, 48)), min_size=3, max_size=7),
    st.tuples(sides, sides),
    st.tuples(sides, sides),
)
def test_pixels_inside_are_those_whose_centres_are(polygon, corner, size):
    (left, top), (width, height) = corner, size
    marked = pixels_inside(polygon, (left, top, left + width, top + height))
    # A centre on a side is on either: its place is a matter of rounding.
    for row in range(height):
        for column in range(width):
            x, y = left + column + 0.5, top + row + 0.5
            beside = {is_inside(x + shift, y, polygon) for shift in (-1e-6, 1e-6)}
            assert bool(marked[row, column]) in beside


def painted(area):
    left, top, right, bottom = area.cut
    pixels = np.zeros((bottom - top) * (right - left), bool)
    for start, stop in painted_runs(area):
        assert start < stop
        pixels[start:stop] = True
    return pixels.reshape(bottom - top, right - left)


def test_painted_runs_are_the_masks_and_what_lies_outside_the_region():
    corners = [(3.2, 1.0), (18.0, 4.0), (9.0, 15.5)]
    mask = [(8.0, 2.0), (12.0, 2.0), (12.0, 30.0), (8.0, 30.0)]
    area = options(roi=[list(corner) for corner in corners], mask=[[list(corner) for corner in mask]]).placed(20, 31)
    assert area.cut == (3, 1, 18, 16)
    expected = [
        [not is_inside(x + 0.5, y + 0.5, corners) or is_inside(x + 0.5, y + 0.5, mask) for x in range(3, 18)]
        for y in range(1, 16)
    ]
    np.testing.assert_array_equal(painted(area), expected)


def test_rectangle_paints_nothing():
    assert painted_runs(options(roi=[5, 3, 8, 9]).placed(20, 20)) == ()


@pytest.mark.parametrize(
    ("roi", "cut"),
    [
        ([100, 50, 448, 300], (100, 50, 548, 350)),
        ([0.25, 0.5, 0.5, 0.5], (160, 240, 480, 480)),
        ([0, 0, 1, 1], (0, 0, 640, 480)),
        ([0.1, 0.2, 0.9, 0.8], (64, 96, 640, 480)),
        ("0.25,0.5,0.5,0.5", (160, 240, 480, 480)),
        ("100,50,448,300", (100, 50, 548, 350)),
        ([0.0, 0.0, 640, 480], (0, 0, 640, 480)),
        ([[10, 20], [110.5, 20], [60, 90]], (10, 20, 111, 90)),
        ([[0, 0], [1, 0], [0.5, 1]], (0, 0, 640, 480)),
    ],
)
def test_region_is_placed_in_pixels_or_fractions(roi, cut):
    assert options(roi=roi).placed(640, 480).cut == cut


@given(sides, sides, *[st.floats(0.01, 1.0) for _ in range(4)])
def test_region_in_fractions_lies_in_every_frame_or_holds_no_pixel(width, height, x, y, right, bottom):
    roi = [min(x, right), min(y, bottom), abs(right - x), abs(bottom - y)]
    if not roi[2] or not roi[3]:
        return
    try:
        left, top, right, bottom = options(roi=roi).placed(width, height).cut
    except SourceError:
        assert min(roi[2] * width, roi[3] * height) < 1
        return
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert abs(left - roi[0] * width) <= 0.5
    assert abs(bottom - (roi[1] + roi[3]) * height) <= 0.5 + 1e-6


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"roi": [300, 0, 400, 100]}, r"roi \[300, 0, 400, 100\]: ends at x 700 and y 100, outside frames of 640x480"),
        (
            {"roi": [0, 400, 100, 81]},
            r"ends at x 100 and y 481, .*; end it at x 640 and y 480 at most, or give fr",
        ),
        ({"roi": [[0, 0], [641, 0], [0, 200]]}, r"roi \[\[0, 0\], \[641, 0\], \[0, 200\]\]: ends at x 641"),
        ({"roi": [0.5, 0.5, 0.0001, 0.0001]}, r"roi .*: contains no pixel of frames of 640x480 pixels; make it larger"),
        ({"mask": [[[700, 0], [800, 0], [800, 50]]]}, r"mask \[\[700, 0\].*: covers no pixel of frames of 640x480"),
        (
            {"mask": [[[0, 0], [1, 0], [1, 1], [0, 1]]]},
            r"mask: covers the whole region of interest in frames of 640x480",
        ),
        (
            {"roi": [0, 0, 9, 9], "mask": [[[0, 0], [9, 0], [9, 9], [0, 9]]]},
            r"covers the whole region of interest .*; make the masks smaller",
        ),
    ],
)
def test_area_that_does_not_fit_the_frames_is_refused(values, message):
    with pytest.raises(SourceError, match=message):
        options(**values).placed(640, 480)


def test_mask_may_reach_beyond_the_frame():
    area = options(mask=[[[600, 400], [700, 400], [700, 500], [600, 500]]]).placed(640, 480)
    assert painted(area).sum() == 40 * 80


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"roi": [0, 0, 0, 5]}, "width and height should be above 0"),
        ({"roi": [0.5, 0, 0.6, 0.5]}, "ends outside the frame"),
        ({"roi": [0.5, 0, 448, 448]}, "give four whole numbers of pixels"),
        ({"roi": [-5, 0, 448, 448]}, "-5: should be a number from 0"),
        ({"roi": [float("nan"), 0, 448, 448]}, "should be a number from 0"),
        ({"roi": [True, 0, 448, 448]}, "True: should be a number"),
        ({"roi": ["1", 0, 448, 448]}, "'1': should be a number"),
        ({"roi": [1, 2, 3]}, r"should be \[x, y, width, height\]"),
        ({"roi": {"x": 1}}, r"should be \[x, y, width, height\]"),
        ({"roi": "100,50"}, r"should be \[x, y, width, height\]"),
        ({"roi": "left"}, "should be x,y,width,height"),
        ({"roi": [[0, 0], [5, 5], [5, 0], [0, 5]]}, "its sides cross each other"),
        ({"roi": [[0, 0], [5, 5]]}, "should be 3 to 64 corners"),
        ({"mask": [[0, 0], [5, 0], [0, 5]]}, "should be 3 to 64 corners"),
        ({"mask": "all"}, "should be a list of at most 64 polygons"),
        ({"mask": [TRIANGLE, [[0, 0], [0.5, 0], [0.2, 0]]]}, "polygon 1: has no area"),
    ],
)
def test_area_that_is_no_area_is_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        SourceSettings(uri="line:", **values)


def test_settings_give_the_area_back_as_it_was_written():
    values = {"roi": [100, 50, 448, 448], "mask": [TRIANGLE]}
    dumped = SourceSettings(uri="line:", **values).model_dump(mode="json")
    assert {key: dumped[key] for key in values} == values
    assert SourceSettings.model_validate(dumped).input_area == options(**values)
    assert options() is None


def test_area_around_a_region_outside_the_image_is_empty():
    # A received header may hold anything.
    left, top, right, bottom = InputArea.around(((50, 50), (60, 50), (60, 60)), (), 20, 20).cut
    assert left <= right <= 20
    assert top <= bottom <= 20


class Resizing(Source):
    """A camera whose frames change their size."""

    uri = "fake:"

    def __init__(self, sizes, area):
        self.camera, self.sizes, self.input_area = "yard", sizes, area
        self.health = Health("live", reconnects=3)

    def frames(self, stop):
        for index, (width, height) in enumerate(self.sizes):
            yield Frame(np.zeros((height, width, 3), np.uint8), self.camera, index, 0.0)


def test_source_worker_places_fractions_in_frames_of_every_size():
    source = Resizing([(40, 20), (40, 20), (81, 33)], InputAreaOptions((0.5, 0.0, 0.5, 0.5)))
    with SourceWorker(source, overflow="wait") as worker:
        areas = [frame.area for frame in worker]
    assert [area.cut for area in areas] == [(20, 0, 40, 10), (20, 0, 40, 10), (41, 0, 81, 17)]
    assert areas[0] is areas[1]
    assert worker.error is None


def test_source_worker_ends_when_frames_no_longer_hold_the_region():
    source = Resizing([(40, 20), (30, 20), (40, 20)], InputAreaOptions((10, 0, 25, 20)))
    with SourceWorker(source, overflow="wait") as worker:
        assert [frame.index for frame in worker] == [0]
    assert str(worker.error).startswith("yard: roi [10, 0, 25, 20]: ends at x 35 and y 20, outside frames of 30x20")
    assert (worker.health.state, worker.health.reconnects) == ("failed", 3)
    assert worker.health.reason.startswith("roi [10, 0, 25, 20]")


def test_source_worker_leaves_frames_without_an_area_as_they_are():
    with SourceWorker(Resizing([(40, 20)], None), overflow="wait") as worker:
        assert [frame.area for frame in worker] == [None]
