"""The time of checks stays within its budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.guards.overhead import OverheadBudget


def test_budget_allows_a_check_once_its_cost_is_saved():
    budget = OverheadBudget(0.02)
    assert not budget.can_run
    frames = 0
    while not budget.can_run:
        budget.record_work(0.010)
        frames += 1
    # Twice two frames' worth at first, at 0.02 / 0.98 of each frame's time.
    assert frames == 196


def test_budget_allows_no_burst_after_a_pause():
    budget = OverheadBudget(0.1)
    for _ in range(10_000):
        budget.record_work(0.01)
    checks = 0
    while budget.can_run:
        budget.record_overhead(0.02)
        checks += 1
    assert checks == 1


def test_budget_delays_the_next_check_after_a_costly_one():
    budget = OverheadBudget(0.5)
    for _ in range(4):
        budget.record_work(1.0)
    assert budget.can_run
    budget.record_overhead(10.0)
    earned = 0
    while not budget.can_run:
        budget.record_work(1.0)
        earned += 1
    assert earned >= 18


@given(st.floats(0.005, 0.5), st.lists(st.floats(1.0, 2.0), min_size=10, max_size=300))
def test_budget_is_kept_with_costs_that_vary_twofold(fraction, costs):
    budget = OverheadBudget(fraction)
    for cost in costs:
        budget.record_work(1.0)
        if budget.can_run:
            budget.record_overhead(cost)
        assert budget.fraction <= fraction


@given(
    st.floats(0.005, 0.5),
    st.lists(st.tuples(st.floats(1e-4, 0.1), st.floats(1e-4, 0.3)), min_size=1, max_size=300),
)
def test_budget_keeps_its_fraction_with_any_costs(fraction, story):
    budget, dearest = OverheadBudget(fraction), 0.0
    for work, cost in story:
        budget.record_work(work)
        if budget.can_run:
            budget.record_overhead(cost)
            dearest = max(dearest, cost)
    total = budget.work_seconds + budget.spent_seconds
    assert budget.spent_seconds <= fraction * total + dearest + 1e-9
