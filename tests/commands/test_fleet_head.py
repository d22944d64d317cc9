"""A head that came back without its data is told from one that is gone or restarted with its data."""

import pytest

from commands.fleet.head import HeadWatch


@pytest.mark.parametrize(
    ("answers", "is_replaced"),
    [
        ((b"a", b"a"), [False, False]),
        ((b"a", None, b"", b"a"), [False] * 4),
        ((b"a", None, b"b", None, b"b"), [False, False, True, False, True]),
        ((None, b"b", b"b"), [False] * 3),
    ],
)
def test_head_is_replaced_only_if_another_identity_answers(answers, is_replaced):
    given = iter(answers)
    watch = HeadWatch(lambda: next(given))
    assert [watch.is_replaced() for _ in answers] == is_replaced
