"""Each measure of an explanation on cases worked by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from engine.evaluation import metrics as m
from pipeline.frames import Box

SHARE = st.floats(0, 1)


@pytest.mark.parametrize(
    ("plain", "masked", "lost", "rose"),
    [(0.8, 0.6, 0.25, False), (0.5, 0.75, 0.0, True), (0.5, 0.5, 0.0, False), (0.4, 0.0, 1.0, False), (0, 0, 0, False)],
)
def test_drop_is_the_lost_share_of_the_score_and_never_negative(plain, masked, lost, rose):
    assert m.drop(plain, masked) == pytest.approx(lost)
    assert m.increase(plain, masked) is rose


def test_coherency_is_1_for_equal_half_for_unrelated_0_for_opposite_maps():
    first = np.array([[0.0, 1.0], [0.0, 1.0]])
    assert m.coherency(first, first) == pytest.approx(1.0)
    assert m.coherency(first, 0.5 * first + 0.1) == pytest.approx(1.0)
    assert m.coherency(first, first.T) == pytest.approx(0.5)
    assert m.coherency(first, 1.0 - first) == pytest.approx(0.0)
    # r = 3 / sqrt(5 * 4): deviations (-1.5 -.5 .5 1.5) and (-1 1 -1 1) / sqrt, by hand 2 / sqrt(20)
    assert m.correlation(np.array([[0.0, 1.0, 2.0, 3.0]]), np.array([[0.0, 2.0, 0.0, 2.0]])) == pytest.approx(
        2 / math.sqrt(20)
    )


def test_coherency_of_a_flat_map_is_0():
    flat, result = np.full((2, 2), 0.3, np.float32), np.array([[0.0, 1.0], [0.0, 0.0]])
    assert m.coherency(flat, result) == m.coherency(result, flat) == m.coherency(flat, flat) == 0.0
    assert m.correlation(np.zeros((2, 2)), result) == 0.0


def test_complexity_is_the_mean_of_the_map():
    assert m.complexity(np.array([[0.0, 1.0], [0.5, 0.1]])) == pytest.approx(0.4)


def test_adcc_is_the_harmonic_mean_of_the_published_figures():
    # Recipro-CAM's table 1, ResNet-50: Average Drop 15.69, Coherency 96.68, Complexity 32.90, ADCC 80.84
    assert m.adcc(0.1569, 0.9668, 0.3290) == pytest.approx(0.8084, abs=2e-3)
    assert m.adcc(0.0, 1.0, 0.5) == pytest.approx(3 / (1 + 2 + 1))


@pytest.mark.parametrize("parts", [(1.0, 1.0, 0.0), (0.0, 0.0, 0.0), (0.0, 1.0, 1.0)])
def test_adcc_is_nothing_where_one_of_its_parts_is_nothing(parts):
    assert m.adcc(*parts) == 0.0


def test_adcc_conventions_differ():
    drops, coherencies, complexities = [0.0, 1.0], [1.0, 1.0], [0.5, 0.5]
    assert m.adcc_of_means(drops, coherencies, complexities) == pytest.approx(3 / (1 + 2 + 2))
    assert m.adcc_per_image(drops, coherencies, complexities) == pytest.approx((0.75 + 0.0) / 2)
    assert math.isnan(m.adcc_of_means([], [], []))
    assert math.isnan(m.adcc_per_image([], [], []))


@given(SHARE, SHARE, SHARE)
def test_adcc_lies_between_its_least_and_greatest_part(lost, coherent, needed):
    parts = (1 - lost, coherent, 1 - needed)
    assert min(parts) - 1e-12 <= m.adcc(lost, coherent, needed) <= max(parts) + 1e-12


def test_area_follows_the_trapezoid_rule():
    assert m.area_under([1.0, 1.0]) == 1.0
    assert m.area_under([1.0, 0.0]) == 0.5
    assert m.area_under([1.0, 0.5, 0.0, 0.0]) == pytest.approx((0.75 + 0.25 + 0.0) / 3)
    with pytest.raises(ValueError, match="1 scores"):
        m.area_under([1.0])


def test_pixels_go_hottest_first_and_equals_in_order():
    assert m.hottest_first(np.array([[0.1, 0.9], [0.5, 0.9]])).tolist() == [1, 3, 2, 0]


BOXES = [Box(10, 10, 20, 20), Box(50, 50, 60, 60)]


@pytest.mark.parametrize(
    ("peak", "strict", "tolerant"),
    [((15, 15), True, True), ((5, 15), False, True), ((55, 59), True, True), ((23, 24), False, True),
     ((20, 35), False, True), ((20, 35.1), False, False), ((35, 35), False, False), ((31, 31), False, False)],
)  # fmt: skip
def test_points_at_measures_the_distance_to_the_nearest_box(peak, strict, tolerant):
    assert m.points_at(peak, BOXES) is strict
    assert m.points_at(peak, BOXES, m.TOLERANCE_PIXELS) is tolerant
    assert not m.points_at(peak, [], m.TOLERANCE_PIXELS)


def test_energy_inside_is_a_fraction_of_the_sum():
    heat, inside = np.array([[1.0, 0.5], [0.5, 0.0]]), np.array([[True, False], [True, True]])
    assert m.energy_inside(heat, inside) == pytest.approx(0.75)
    assert m.energy_inside(np.zeros((2, 2)), inside) == 0.0


def test_rank_correlation_uses_order_only_and_mean_ranks_of_ties():
    first = np.array([[0.0, 0.1, 0.2, 1.0]])
    assert m.rank_correlation(first, first**3) == pytest.approx(1.0)
    assert m.rank_correlation(first, -first) == pytest.approx(-1.0)
    # ranks 1 2 3 4 against 1.5 1.5 3 4: 4.5 / sqrt(5 * 4.5)
    assert m.rank_correlation(first, np.array([[0.0, 0.0, 0.5, 0.9]])) == pytest.approx(4.5 / math.sqrt(22.5))
    assert m.rank_correlation(first, np.zeros((1, 4))) == 0.0


def test_unrest_is_the_change_of_maps_over_that_of_pictures():
    # maps change by 0.2 + 0.0, pictures by 0.1 + 0.3
    assert m.temporal_instability([0.8, 1.0], [0.9, 0.7]) == pytest.approx(0.5)
    assert m.temporal_instability([1.0, 1.0], [0.9, 0.7]) == 0.0
    assert math.isnan(m.temporal_instability([0.5, 0.5], [1.0, 1.0]))
    assert math.isnan(m.temporal_instability([], []))


def test_maps_follow_when_they_change_most_where_pictures_do():
    assert m.temporal_correlation([0.9, 0.5, 0.7], [0.99, 0.2, 0.8]) == pytest.approx(1.0)
    assert m.temporal_correlation([0.9, 0.5, 0.7], [0.2, 0.99, 0.8]) == pytest.approx(-1.0)
    # ranks of changes 1 2 3 and 1 3 2: r = 0.5
    assert m.temporal_correlation([0.9, 0.8, 0.7], [0.9, 0.7, 0.8]) == pytest.approx(0.5)
    assert m.temporal_correlation([1.0, 1.0, 1.0], [0.9, 0.7, 0.8]) == 0.0
    assert math.isnan(m.temporal_correlation([0.9, 0.8], [0.9, 0.7]))


@given(arrays(np.float32, (4, 4), elements=st.floats(0, 1, width=32)))
def test_metrics_of_any_map_are_finite_and_in_range(heat):
    other = np.linspace(0, 1, 16).reshape(4, 4)
    assert -1.0 <= m.correlation(heat, other) <= 1.0
    assert 0.0 <= m.coherency(heat, other) <= 1.0
    assert -1.0 <= m.rank_correlation(heat, other) <= 1.0
