"""Points, zones and lines."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.frames import Box
from pipeline.passages.geometry import anchor_point, crosses, depth_inside, signed_distance

SQUARE = ((0.0, 0.0), (10.0, 0.0), (10.0, 10.0), (0.0, 10.0))
HOOK = ((0.0, 0.0), (30.0, 0.0), (30.0, 10.0), (10.0, 10.0), (10.0, 30.0), (0.0, 30.0))
coordinate = st.floats(-50, 50)


@pytest.mark.parametrize(
    ("point", "depth"),
    [((5.0, 5.0), 5.0), ((1.0, 5.0), 1.0), ((-3.0, 5.0), -3.0), ((13.0, 14.0), -5.0), ((5.0, 9.5), 0.5)],
)
def test_depth_is_the_distance_from_the_border(point, depth):
    assert depth_inside(point, SQUARE) == pytest.approx(depth)


def test_depth_knows_the_notch_of_a_polygon_that_is_not_convex():
    assert depth_inside((5.0, 25.0), HOOK) > 0
    assert depth_inside((25.0, 5.0), HOOK) > 0
    assert depth_inside((15.0, 15.0), HOOK) == pytest.approx(-5.0)


@given(coordinate, coordinate)
def test_depth_does_not_depend_on_the_order_of_corners(x, y):
    turned = (*HOOK[3:], *HOOK[:3])
    depth = depth_inside((x, y), HOOK)
    assert abs(depth_inside((x, y), turned)) == pytest.approx(abs(depth))
    if abs(depth) > 1e-6:
        assert math.copysign(1, depth_inside((x, y), turned)) == math.copysign(1, depth)
        assert math.copysign(1, depth_inside((x, y), HOOK[::-1])) == math.copysign(1, depth)


def test_signed_distance_is_positive_on_the_right_of_the_line():
    upwards = ((50.0, 100.0), (50.0, 0.0))
    assert signed_distance((60.0, 50.0), upwards) == pytest.approx(10.0)
    assert signed_distance((45.0, 500.0), upwards) == pytest.approx(-5.0)


def test_crosses_ends_with_the_line():
    line = ((0.0, 50.0), (100.0, 50.0))
    assert crosses((30.0, 40.0), (30.0, 60.0), line)
    assert crosses((100.0, 40.0), (100.0, 60.0), line)
    assert not crosses((101.0, 40.0), (101.0, 60.0), line)
    assert not crosses((90.0, 40.0), (130.0, 60.0), line)


def test_anchor_of_road_users_is_the_middle_of_the_lower_edge():
    box = Box(10.0, 20.0, 30.0, 60.0)
    assert anchor_point(box, "centre") == (20.0, 40.0)
    assert anchor_point(box, "bottom") == (20.0, 60.0)
