"""Parts and crossings in conditions, such as ``record_when``."""

from dataclasses import replace

import pytest

from pipeline.errors import ConfigError
from pipeline.guards.parser import parse_condition, parse_rule
from pipeline.trial import Trial
from tests.support.detections import detection, detection_frame, detections
from tests.support.passages import BOX, part, with_passages


def _holds(text, *passages, findings=()):
    return parse_condition(text)(with_passages(detections(detection_frame(0), findings), *passages))


DENT = part(label="dent", score=0.7, is_ok=False, finding=detection(BOX, label="dent", score=0.9))
CROSSING = part(kind="crossing", place="gate", label="car", finding=detection(BOX, label="car"))


def test_part_holds_at_the_frame_that_finishes_a_part():
    assert not _holds("part", findings=[detection(BOX, label="dent")])
    assert _holds("part", part())
    assert not _holds("part", CROSSING)
    assert _holds("crossing", CROSSING)


def test_label_and_score_beside_part_are_those_of_the_part():
    assert _holds("part and label != ok", DENT)
    assert not _holds("part and label != ok", part(), findings=[detection(BOX, label="dent")])
    assert _holds("part and label=dent and score<0.8", DENT)
    assert not _holds("part and score>0.8", DENT)


def test_part_may_name_its_zone():
    assert _holds("part=station and label=dent", DENT)
    assert not _holds("part=other", DENT)
    assert _holds("part != other", DENT)
    assert not _holds("crossing = station", DENT)


def test_condition_without_part_does_not_see_parts():
    assert not _holds("label=dent", DENT)


def test_unknown_zone_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="Did you mean 'station'"):
        parse_condition("part=staton", {"place": {"station"}})


def test_condition_on_parts_that_can_never_hold_is_refused():
    with pytest.raises(ConfigError, match="is never true"):
        parse_condition("part and crossing")
    with pytest.raises(ConfigError, match="is never true"):
        parse_condition("part=a and part=b")


def test_rule_of_a_guard_has_no_parts():
    with pytest.raises(ConfigError, match="expected label, score"):
        parse_rule("part when label=ok")


def test_disagree_holds_where_the_network_on_trial_differs():
    differing = replace(detections(detection_frame(0)), trial=Trial("new", (), "adds 1 ok"))
    condition = parse_condition("disagree")
    assert condition(differing)
    assert not condition(replace(differing, trial=Trial("new", ())))
    assert not condition(detections(detection_frame(0)))


def test_disagree_beside_part_is_about_the_part():
    condition = parse_condition("part and disagree")
    agreeing = replace(detections(detection_frame(0)), trial=Trial("new", ()))
    differing = replace(agreeing, trial=Trial("new", (), "adds 1 ok"))
    assert condition(with_passages(agreeing, part(trial_label="dent")))
    assert not condition(with_passages(differing, part(trial_label="ok")))


@pytest.mark.parametrize(
    ("text", "known", "message"),
    [
        ("disagree", {"trial": ()}, "no network is on trial"),
        ("disagree and not disagree", {}, "is never true"),
    ],
)
def test_disagree_that_can_never_hold_is_refused(text, known, message):
    with pytest.raises(ConfigError, match=message):
        parse_condition(text, known)


def test_rule_of_a_guard_cannot_depend_on_a_trial():
    with pytest.raises(ConfigError, match="expected label"):
        parse_rule("disagree")
