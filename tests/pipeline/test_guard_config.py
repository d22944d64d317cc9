"""The configuration under ``guards:`` and the language of rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config_loader import validate_config
from pipeline.errors import ConfigError
from pipeline.guards.config import GuardConfig, RegionConfig, check_cameras, check_labels
from pipeline.guards.parser import parse_condition, parse_rule

SQUARE = [[0.1, 0.1], [0.9, 0.1], [0.9, 0.9], [0.1, 0.9]]
RULE = "heat_inside(part) >= 0.6 when label=scratch and score>0.5"


def guards(**more):
    options = {"regions": [{"name": "part", "polygon": SQUARE}], "rules": [{"name": "grounded", "rule": RULE}]} | more
    return validate_config({"guards": options}, "run.yaml").guards


def refusal(**more):
    with pytest.raises(ConfigError) as refused:
        guards(**more)
    return str(refused.value)


def test_region_scales_fractions_and_keeps_pixels():
    assert RegionConfig(name="a", polygon=SQUARE).placed(200, 100).polygon[2] == pytest.approx((180, 90))
    assert RegionConfig(name="a", polygon=[(0, 0), (50, 0), (50, 40)]).placed(200, 100).polygon[2] == (50, 40)


@pytest.mark.parametrize(
    ("rule", "position", "message"),
    [
        ("heat_insid(part) >= 0.6", 1, "Did you mean 'heat_inside'"),
        ("heat_inside >= 0.6", 13, "expected '(' and the name of a region"),
        ("heat_inside(part >= 0.6", 18, "for the '(' at character 12"),
        ("heat_inside(part) 0.6", 19, "expected = !="),
        ("heat_inside(part) >= 60", 22, "from 0 to 1"),
        ("stability >= -1.5", 14, "from -1 to 1"),
        ("focus_area <= 0.5 when", 23, "expected label, score"),
        ("focus_area <= 0.5 whenn score>0.5", 19, "'and', 'or', 'when' or the end"),
        ("focus_area <= 0.5 when label=a b", 32, "label='a b'"),
        ("guard = x", 1, "expected label, score"),
        ("__import__('os')", 1, "expected label, score"),
    ],
)
def test_rule_error_names_the_character(rule, position, message):
    with pytest.raises(ConfigError) as refused:
        parse_rule(rule)
    assert f"character {position}, " in str(refused.value)
    assert message in str(refused.value)
    result = refusal(rules=[{"name": "grounded", "rule": rule}])
    assert result.startswith(f"run.yaml: guards.rules[0].rule: {rule!r}: character {position}, ")


def test_rule_lists_its_numbers_and_regions():
    rule = parse_rule("heat_inside('left part') >= 0.6 or score_drop_when_masked > .2 when heat_inside(b) < 1")
    assert [number.name for number in rule.numbers] == ["heat_inside(left part)", "score_drop_when_masked"]
    assert rule.regions == {"left part", "b"}
    assert rule.needs_deletion
    assert rule.text == "heat_inside('left part') >= 0.6 or score_drop_when_masked > .2"
    assert not parse_rule(RULE).needs_deletion


def test_guards_refuse_a_rule_with_an_unknown_region():
    result = refusal(rules=[{"name": "grounded", "rule": "heat_inside(prat) >= 0.6"}])
    assert "rules[0].rule: 'heat_inside(prat) >= 0.6': character 13" in result
    assert "Did you mean 'part'" in result


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"regoins": []}, "Did you mean 'regions'"),
        ({"regions": [{"name": "part", "polygon": SQUARE, "camera": "a"}]}, "Did you mean 'cameras'"),
        ({"regions": [{"name": "part", "polygon": SQUARE[:2]}]}, "should have at least 3 entries"),
        ({"regions": [{"name": "part", "polygon": [[0, 0], [0.5, 0.5], [1, 1]]}]}, "no area"),
        ({"regions": [{"name": "part", "polygon": [[0.2, 0.1], [1.2, 0.1], [1.2, 0.9]]}]}, "less than a pixel"),
        ({"regions": [{"name": "part", "polygon": [SQUARE[k] for k in (0, 2, 1, 3)]}]}, "cross each other"),
        ({"regions": [{"name": "box", "polygon": SQUARE}]}, "'box' is reserved for a detector's box; give"),
        ({"regions": [{"name": "a part", "polygon": SQUARE}]}, "contains a space, quote, bracket"),
        ({"regions": [{"name": "part", "polygon": SQUARE}] * 2}, "'part' is given twice"),
        ({"rules": [{"name": "grounded", "rule": RULE}] * 2}, "'grounded' is given twice"),
        ({"rules": [{"name": "grounded", "rule": RULE, "hold_second": 1}]}, "Did you mean 'hold_seconds'"),
        ({"rules": [{"name": "grounded", "rule": RULE, "hold_seconds": -1}]}, "greater than or equal to 0"),
        ({"rules": [{"name": "grounded", "rule": RULE, "cameras": []}]}, "is empty; name a camera"),
        ({"regions": [{"name": "part", "polygon": SQUARE, "cameras": []}]}, "is empty; name a camera"),
        ({"deletion": {"budget": 2}}, "less than or equal to 0.5"),
        ({"draw": "sometimes"}, "'always', 'firing' or 'never'"),
    ],
)
def test_guards_refuse_invalid_options(more, message):
    assert message in refusal(**more)


def test_regions_of_different_cameras_may_share_a_name():
    regions = [{"name": "part", "polygon": SQUARE, "cameras": [name]} for name in ("a", "b")]
    check_cameras(guards(regions=regions), ["a", "b"])
    with pytest.raises(ConfigError, match="'c' has no region 'part'"):
        check_cameras(guards(regions=regions), ["a", "b", "c"])
    only = [{"name": "grounded", "rule": RULE, "cameras": ["a"]}]
    check_cameras(guards(regions=regions, rules=only), ["a", "b", "c"])


def test_check_cameras_refuses_an_unknown_camera():
    with pytest.raises(
        ConfigError,
        match=r"guards.rules\[0\].cameras: 'dor': the run has no such camera, only 'door'. Did you mean 'door'",
    ):
        check_cameras(guards(rules=[{"name": "grounded", "rule": RULE, "cameras": ["dor"]}]), ["door"])


def test_guards_refuse_a_rule_with_an_unknown_class_or_camera():
    rules = [{"name": "grounded", "rule": "focus_area <= 0.5 when label=schratch and camera != dor"}]
    with pytest.raises(ConfigError, match=r"'schratch': unknown class; .*Did you mean 'scratch'"):
        check_labels(guards(rules=rules), ["ok", "scratch"])
    with pytest.raises(ConfigError, match=r"'dor': unknown camera; .*Did you mean 'door'"):
        check_cameras(guards(rules=rules), ["door"])
    empty = [{"name": "grounded", "rule": "focus_area <= 0.5 when label != ''"}]
    check_labels(guards(rules=empty), ["ok", "scratch"])


def test_rule_refuses_the_deletion_check_in_its_condition():
    assert parse_rule("score_drop_when_masked >= 0.2 when score > 0.5").needs_deletion
    with pytest.raises(ConfigError, match=r"character 24, .*write it before 'when'"):
        parse_rule("focus_area <= 0.1 when score_drop_when_masked < 0.2")


def test_guards_are_equal_after_printing_and_reading():
    from pipeline.config_loader import read_yaml, to_yaml

    config = validate_config({"guards": guards().model_dump()}, "run.yaml")
    assert validate_config(read_yaml(to_yaml(config), "printed"), "printed") == config


def test_condition_accepts_known_guards_and_names_alone():
    with pytest.raises(ConfigError, match=r"known: grounded\. Did you mean 'grounded'"):
        parse_condition("guard=groundet", {"guard": {"grounded"}})
    with pytest.raises(ConfigError, match="known: none"):
        parse_condition("guard=any", {"guard": set()})
    for text, known in [
        ("score>0.5 and heat_inside(prat)>0.5", {"region": {"part"}}),
        ("label=prat", {"label": {"part"}}),
        ("score>0 and not camera='prat'", {"camera": {"part"}}),
    ]:
        with pytest.raises(ConfigError, match=r"character \d+, .*prat.*unknown .*; known: part\. Did you mean 'part'"):
            parse_condition(text, known)
        parse_condition(text, {})
    parse_condition("label=''", {"label": {"part"}})


def test_condition_accepts_the_deletion_check_only_where_a_rule_uses_it():
    text = "score>0.5 and score_drop_when_masked < 0.1"
    with pytest.raises(ConfigError, match=r"character 15, .*only if a guard's rule uses it; add"):
        parse_condition(text, {"check": set()})
    parse_condition(text, {"check": {"score_drop_when_masked"}})
    parse_condition(text)


@given(st.text(alphabet="heat_inside(part) >=0.6 when label='x' and or not focus_area", max_size=60))
def test_parse_rule_accepts_or_refuses_any_text(text):
    try:
        rule = parse_rule(text)
    except ConfigError:
        return
    assert rule.text


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("score > 1", "'score > 1' is never true"),
        ("score >= 0", "always true"),
        ("stability < -1 or focus_area < 0", "is never true"),
        ("label!=ok when label=scratch", "always true if the rule applies"),
        ("score>0.5 when label=a and label=b", "after 'when' is never true"),
        ("score>0.5 when not (label=a or label!=a)", "after 'when' is never true"),
        ("focus_area<0.5 when score>0.8 and score<0.3", "after 'when' is never true"),
        ("heat_inside(part)>0.9 and heat_inside(part)<0.2", "is never true"),
        ("centre_x>0.5 when centre_y>=0.6 and not centre_y>0.5", "after 'when' is never true"),
    ],
)
def test_rule_that_can_never_or_always_fire_is_refused(rule, message):
    assert message in refusal(rules=[{"name": "never", "rule": rule}])


@pytest.mark.parametrize(
    "rule",
    [
        "label!=scratch",
        "label=ok when score>0.5",
        "score > 0.99",
        "score < 1",
        "score>=0.5 when label=a or label=b",
        "stability >= 0 when score > 0.3 and score < 0.31",
        "score_drop_when_masked >= 0.2 when label=a and not camera=b",
    ],
)
def test_rule_that_can_be_met_and_violated_is_accepted(rule):
    assert guards(rules=[{"name": "sound", "rule": rule}]).rules[0].rule == rule


def test_rule_about_a_camera_that_its_guard_does_not_watch_is_refused():
    options = guards(rules=[{"name": "yard", "rule": "score>0.5 when camera=yard", "cameras": ["door"]}])
    with pytest.raises(ConfigError, match="for camera door: the condition after 'when' is never true"):
        check_cameras(options, ["door", "yard"])


@pytest.mark.parametrize("text", ["label=a and label=b", "score>1", "guard=a and not guard", "camera=x and camera!=x"])
def test_condition_that_can_never_be_true_is_refused(text):
    with pytest.raises(ConfigError, match="is never true"):
        parse_condition(text)


def test_rule_is_parsed_once():
    rule = "score>0.5 and entropy>0.5"
    assert GuardConfig(name="a", rule=rule).parsed is GuardConfig(name="b", rule=rule).parsed
