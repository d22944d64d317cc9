"""The language of conditions; errors name the character."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.frames import Explanation, Finding, Frame
from pipeline.guards.parser import MAX_DEPTH, parse_condition

HEAT = np.zeros((1, 1), np.float32)


def frame_of(*findings, camera="door"):
    frame = Frame(np.zeros((2, 2, 3), np.uint8), camera, 0, 0.0)
    return Explanation(frame, tuple(Finding(label, score, HEAT) for label, score in findings), "m", "l")


SCRATCH = frame_of(("scratch", 0.9), ("dent", 0.3))


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("label=scratch and score>0.8", True),
        ("label=dent and score>0.8", False),
        ("label == 'scratch'", True),
        ('label!="scratch"', True),
        ("score>=0.9", True),
        ("score<0.3", False),
        ("score<=.3", True),
        ("not score>0.2", False),
        ("not (label=scratch or label=dent)", False),
        ("camera=yard or label=dent and score<0.5", True),
        ("(camera=yard or label=dent) and score>0.5", False),
        ("NOT camera=yard AND Label=scratch", True),
        ("((camera=door))", True),
        ("label=Scratch", False),
    ],
)
def test_condition_holds_when_it_holds_for_one_finding(text, held):
    assert parse_condition(text)(SCRATCH) is held


def test_condition_accepts_quoted_names_with_any_character():
    assert parse_condition("label='coffee mug'")(frame_of(("coffee mug", 1.0)))
    assert parse_condition('label="and (>=)"')(frame_of(("and (>=)", 1.0)))
    assert parse_condition("camera=hall/door-2.x")(frame_of(("a", 1.0), camera="hall/door-2.x"))


def test_condition_of_a_frame_without_findings_sees_no_label_and_no_score():
    assert parse_condition("camera=door and not score>0")(frame_of())
    assert not parse_condition("label=scratch")(frame_of())


@pytest.mark.parametrize(
    ("text", "position", "message"),
    [
        ("", 1, "expected label, score, camera"),
        ("lable=scratch", 1, "Did you mean 'label'"),
        ("label=scratch an score>0.8", 15, "Did you mean 'and'"),
        ("label=coffee mug", 14, "label='coffee mug'"),
        ("label=scratch and", 18, "expected label, score, camera"),
        ("label", 6, "expected = !="),
        ("label=", 7, "expected a value for 'label'"),
        ("label=and", 7, "quote a value that is a keyword"),
        ("label>scratch", 6, "compare it with = or !="),
        ("score>80", 7, "from 0 to 1"),
        ("score>nan", 7, "from 0 to 1"),
        ("score='0.8'", 7, "from 0 to 1"),
        ("score 0.8", 7, "expected = !="),
        ("(label=a", 9, "for the '(' at character 1"),
        ("label=a)", 8, "expected 'and', 'or' or the end"),
        ("score>0.5 when label=a", 11, "only the rules of guards have 'when'"),
        ("label='a", 7, "the quote is not closed"),
        ("!label=a", 1, "write '!=' or 'not'"),
        ("score>0.8 and __import__('os')", 15, "expected label, score, camera"),
    ],
)
def test_condition_error_names_the_character(text, position, message):
    with pytest.raises(ConfigError) as refused:
        parse_condition(text)
    assert f"character {position}, " in str(refused.value)
    assert message in str(refused.value)


def test_condition_depth_and_length_are_limited():
    assert parse_condition("(" * (MAX_DEPTH - 1) + "score>0" + ")" * (MAX_DEPTH - 1))(SCRATCH)
    for text in ("(" * 900 + "score>0", "not " * 200 + "score>0"):
        with pytest.raises(ConfigError, match="levels deep"):
            parse_condition(text)
    with pytest.raises(ConfigError, match="make it shorter"):
        parse_condition("score>0 and " * 1000)


@pytest.mark.slow
@given(st.text(alphabet="labescorm and tn=<>!()'\".08", max_size=40) | st.text(max_size=30))
def test_parse_condition_accepts_or_refuses_any_text(text):
    try:
        condition = parse_condition(text)
    except ConfigError:
        return
    assert condition(SCRATCH) in {True, False}
