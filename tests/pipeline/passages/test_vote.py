"""The vote of the frames of a part."""

import pytest

from pipeline.passages.vote import Ballot, Vote, parse_vote


def _decided(vote, frames, ok=("ok",)):
    ballot = Ballot(parse_vote(vote), ok)
    for label, score in frames:
        ballot.add(label, len(label), score)
    return ballot.decide()


@pytest.mark.parametrize(
    ("text", "vote"),
    [
        ("mean", Vote("mean")),
        (" Best ", Vote("best")),
        ("worst", Vote("worst")),
        ("3 of  5", Vote("n of m", 3, 5)),
        ("1 of 1", Vote("n of m", 1, 1)),
    ],
)
def test_parse_vote_reads_each_kind(text, vote):
    assert parse_vote(text) == vote


@pytest.mark.parametrize("text", ["", "median", "3of5", "0 of 5", "6 of 5", "3 of 1001", "-1 of 5", "3 of"])
def test_parse_vote_refuses_other_texts(text):
    with pytest.raises(ValueError, match="3 of 5"):
        parse_vote(text)


def test_mean_takes_the_class_with_the_largest_sum_of_scores():
    assert _decided("mean", [("dent", 0.9), ("ok", 0.5), ("ok", 0.6)]) == ("ok", 2, pytest.approx(0.55))


def test_best_takes_the_class_of_the_most_certain_frame():
    assert _decided("best", [("dent", 0.9), ("ok", 0.5), ("ok", 0.6)])[0] == "dent"


def test_worst_takes_any_class_that_is_not_ok():
    assert _decided("worst", [("ok", 0.99)] * 20 + [("dent", 0.3)])[0] == "dent"
    assert _decided("worst", [("ok", 0.99), ("good", 0.3)], ok=("ok", "good"))[0] == "ok"


def test_n_of_m_needs_n_frames_within_m_consecutive_frames():
    close = [("ok", 0.9), ("dent", 0.9), ("ok", 0.9), ("dent", 0.9), ("dent", 0.9), ("ok", 0.9)]
    apart = [("dent", 0.9), ("ok", 0.9), ("ok", 0.9), ("dent", 0.9), ("ok", 0.9), ("ok", 0.9), ("dent", 0.9)]
    assert _decided("3 of 5", close)[0] == "dent"
    assert _decided("3 of 5", apart)[0] == "ok"


def test_n_of_m_does_not_add_classes_up():
    mixed = [("dent", 0.9), ("stain", 0.9), ("dent", 0.9), ("ok", 0.5)]
    assert _decided("3 of 5", mixed)[0] == "ok"


def test_shares_are_the_fractions_of_frames():
    ballot = Ballot(Vote())
    for label in ("ok", "ok", "ok", "dent"):
        ballot.add(label, 0, 0.5)
    assert ballot.shares() == {"ok": 0.75, "dent": 0.25}
