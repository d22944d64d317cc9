"""Warnings at the start of a run about valid but probably wrong settings."""

import pytest

from commands.plausibility import doubts_of_guards, doubts_of_labels
from commands.wiring.kinds import load_config


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["ok"], "one class, 'ok'"),
        (["ok", "crane", "crane"], "'crane' stands for more than one class"),
        (["\ufeffscratch", "ok"], "has invisible characters"),
        (["scratch ", "ok"], "plain UTF-8"),
        (["", "ok"], "is empty"),
    ],
)
def test_suspicious_labels_are_reported_with_the_remedy(labels, message):
    (doubt,) = doubts_of_labels(labels)
    assert message in doubt


def test_normal_labels_are_not_reported():
    assert list(doubts_of_labels(["ok", "Kratzer", "Übermaß", "sports car"])) == []
    assert list(doubts_of_labels(["car", "N/A", "truck", "N/A"])) == []


def test_unused_region_is_reported():
    region = {"name": "part", "polygon": [[0, 0], [1, 0], [1, 1]]}
    assert "'part'" in next(doubts_of_guards(load_config({"guards": {"regions": [region], "draw": "never"}}, "t")))
    rule = {"name": "g", "rule": "heat_inside(part) >= 0.6"}
    for guards in ({"regions": [region]}, {"regions": [region], "rules": [rule], "draw": "never"}):
        assert list(doubts_of_guards(load_config({"guards": guards}, "t"))) == []
