"""When a frame is worth keeping: ``label=scratch and score>0.8``, read by a small parser. Nothing is ever executed.

    any      = all { "or" all }
    all      = not { "and" not }
    not      = "not" not | "(" any ")" | test
    test     = ("label" | "camera") ("=" | "!=") words
             | "score" ("=" | "!=" | "<" | "<=" | ">" | ">=") number in [0, 1]
    words    = a bare word, or anything in single or double quotes

A condition holds for a frame when it holds for one of its findings: label and score are the same finding's. A frame
without findings has the label "" and the score 0. Pure.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple, NoReturn

from pipeline.errors import ConfigError, nearest
from pipeline.frames import Explanation

Condition = Callable[[Explanation], bool]
"""Says whether a frame is worth keeping."""

MAX_CHARACTERS: Final = 1000
MAX_DEPTH: Final = 50

_TOKEN: Final = re.compile(
    r"""\s*(?:(?P<quoted>"[^"]*"|'[^']*')|(?P<mark>==|!=|<=|>=|[=<>()])|(?P<word>[^\s=<>!()"']+))""", re.UNICODE
)
_COMPARE: Final[Mapping[str, Callable[[Any, Any], bool]]] = MappingProxyType(
    {
        "=": operator.eq,
        "==": operator.eq,
        "!=": operator.ne,
        "<": operator.lt,
        "<=": operator.le,
        ">": operator.gt,
        ">=": operator.ge,
    }
)
_FIELDS: Final = ("label", "score", "camera")
_EXAMPLE: Final = "such as: label=scratch and score>0.8"


class _Token(NamedTuple):
    kind: str
    """``quoted``, ``mark``, ``word`` or ``end``."""
    text: str
    place: int
    """Characters before it."""


class _Facts(NamedTuple):
    """What one finding of a frame says."""

    label: str
    score: float
    camera: str


_Test = Callable[[_Facts], bool]


def parse_condition(text: str) -> Condition:
    """Return the condition a text states.

    Raises:
        ConfigError: it cannot be read; the message names the place.
    """
    holds = _Parser(text).whole()

    def condition(explanation: Explanation) -> bool:
        camera = explanation.frame.camera
        facts = [_Facts(found.label, found.score, camera) for found in explanation.findings]
        return any(map(holds, facts or [_Facts("", 0.0, camera)]))

    return condition


class _Parser:
    """Reads a text from left to right, one token ahead."""

    def __init__(self, text: str) -> None:
        self._text = text
        if len(text) > MAX_CHARACTERS:
            raise ConfigError(f"record_when: {len(text)} characters, more than {MAX_CHARACTERS}; make it shorter")
        self._tokens = self._split()
        self._next = 0
        self._depth = 0

    def whole(self) -> _Test:
        """Read all of it."""
        holds = self._any()
        if (token := self._ahead()).kind != "end":
            self._fail(token, f"expected 'and', 'or' or the end.{_joint(token)}")
        return holds

    def _split(self) -> list[_Token]:
        tokens, place = [], 0
        rest = len(self._text.rstrip())
        while place < rest:
            match = _TOKEN.match(self._text, place)
            if match is None:
                place += len(self._text[place:]) - len(self._text[place:].lstrip())
                character = self._text[place]
                cure = (
                    "a quote that is not closed"
                    if character in "\"'"
                    else "no sign of a condition; '!=' is 'not equal'"
                )
                self._fail(_Token("", character, place), cure)
            kind = str(match.lastgroup)
            tokens.append(_Token(kind, match[kind], match.start(kind)))
            place = match.end()
        return [*tokens, _Token("end", "the end", len(self._text))]

    def _any(self) -> _Test:
        tests = [self._all()]
        while self._took("or"):
            tests.append(self._all())
        return tests[0] if len(tests) == 1 else lambda facts: any(test(facts) for test in tests)

    def _all(self) -> _Test:
        tests = [self._not()]
        while self._took("and"):
            tests.append(self._not())
        return tests[0] if len(tests) == 1 else lambda facts: all(test(facts) for test in tests)

    def _not(self) -> _Test:
        token = self._ahead()
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._fail(token, f"more than {MAX_DEPTH} levels deep; make it simpler")
        try:
            if self._took("not"):
                denied = self._not()
                return lambda facts: not denied(facts)
            if self._took("("):
                inner = self._any()
                if not self._took(")"):
                    self._fail(self._ahead(), f"expected ')' for the '(' at character {token.place + 1}")
                return inner
            return self._test()
        finally:
            self._depth -= 1

    def _test(self) -> _Test:
        name = self._take()
        if name.kind != "word" or name.text.lower() not in _FIELDS:
            self._fail(name, f"expected label, score or camera.{nearest(name.text, _FIELDS)}")
        field = name.text.lower()
        sign = self._take()
        if sign.text not in _COMPARE or sign.kind != "mark":
            self._fail(sign, f"expected = != < <= > or >= behind {field!r}")
        value = self._take()
        if value.kind not in {"word", "quoted"} or (
            value.kind == "word" and value.text.lower() in {"and", "or", "not"}
        ):
            self._fail(value, f"expected what {field!r} is compared with; a word of the language goes in quotes")
        compare = _COMPARE[sign.text]
        if field == "score":
            number = self._share(value)
            return lambda facts: compare(facts.score, number)
        if sign.text not in {"=", "==", "!="}:
            self._fail(sign, f"{field!r} is text: compare it by = or !=")
        text = value.text[1:-1] if value.kind == "quoted" else value.text
        after = self._ahead()
        if value.kind == "word" and after.kind == "word" and after.text.lower() not in {"and", "or", *_FIELDS}:
            cure = _joint(after) or f" A name of several words goes in quotes: {field}='{text} {after.text}'"
            self._fail(after, f"expected 'and', 'or' or the end.{cure}")
        return lambda facts: compare(facts.label if field == "label" else facts.camera, text)

    def _share(self, value: _Token) -> float:
        try:
            number = float(value.text) if value.kind == "word" else float("nan")
        except ValueError:
            number = float("nan")
        if not 0.0 <= number <= 1.0:
            self._fail(value, "a score is a number from 0 to 1")
        return number

    def _ahead(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._tokens[self._next]
        self._next = min(self._next + 1, len(self._tokens) - 1)
        return token

    def _took(self, word: str) -> bool:
        token = self._ahead()
        if token.kind not in {"word", "mark"} or token.text.lower() != word:
            return False
        self._next += 1
        return True

    def _fail(self, token: _Token, why: str) -> NoReturn:
        found = "the end" if token.kind == "end" else repr(token.text)
        raise ConfigError(f"record_when: {self._text!r}: character {token.place + 1}, {found}: {why} ({_EXAMPLE})")


def _joint(token: _Token) -> str:
    return "" if token.text.lower() in _FIELDS else nearest(token.text, ("and", "or"))
