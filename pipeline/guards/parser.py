"""What is said of a frame in words: which frames to keep, what a guard wants. Read, never executed.

    rule     = any [ "when" any ]
    any      = all { "or" all }
    all      = not { "and" not }
    not      = "not" not | "(" any ")" | test
    test     = ("label" | "camera") ("=" | "!=") words
             | number ("=" | "!=" | "<" | "<=" | ">" | ">=") value
             | "guard" [ ("=" | "!=") words ]
    number   = "score" | "focus_area" | "entropy" | "stability" | "centre_x" | "centre_y"
             | "score_drop_when_masked" | "heat_inside" "(" words ")"
    words    = a bare word, or anything in single or double quotes

A test of a number that is not known (a flat map has no centre) is neither true nor false, and so is what depends on it
(Kleene's three values). Pure.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

from pipeline.errors import ConfigError, did_you_mean, unknown_name_message
from pipeline.frames import Explanation
from pipeline.guards.lexer import Token, TokenStream
from pipeline.guards.satisfiability import Domain
from pipeline.guards.variables import DROP, HEAT_INSIDE, NUMBERS, BoundVariable, RuleContext, heat_inside

Condition = Callable[[Explanation], bool]
"""Says whether a frame is worth keeping."""

MAX_DEPTH: Final = 50

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
_BINDING_POWER: Final = MappingProxyType({"<": -1.0, "<=": -1.0, ">": 1.0, ">=": 1.0})
"""Which way a bound moves to become harder to keep."""
_FIELDS: Final = ("label", "score", "camera", "guard", *(name for name in NUMBERS if name != "score"), HEAT_INSIDE)


Predicate = Callable[[RuleContext, float], bool | None]
"""Says whether something holds, with every bound made harder by so much; None: not known."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What must hold, and when."""

    requirement: Predicate
    condition: Predicate
    """Always true where none is given."""
    text: str
    """The claim, as written."""
    numbers: tuple[BoundVariable, ...]
    """What the claim goes by."""
    regions: frozenset[str]
    """Which regions are named anywhere in it."""
    labels: frozenset[str] = frozenset()
    """Which classes are named anywhere in it."""
    cameras: frozenset[str] = frozenset()
    """Which cameras are named anywhere in it."""
    domain: Domain = field(default_factory=Domain)
    """Every case that it tells apart."""

    @property
    def needs_deletion(self) -> bool:
        """Whether it goes by the deletion check."""
        return any(one.name == DROP for one in self.numbers)

    def impossible(self, cameras: Collection[str] | None = None) -> str:
        """Say why it can never do what a rule is for, whatever comes; empty where it can.

        Args:
            cameras: those it is asked of; None: any may come.
        """
        cases = self.domain.cases(cameras)
        if cases is None:
            return ""
        held = [(self.condition(facts, 0.0) is True, self.requirement(facts, 0.0)) for facts in cases]
        if not any(applies for applies, _ in held):
            return "what stands behind 'when' can never be true, so it would never fire; write what can be true there"
        if not any(claimed for _, claimed in held):
            return f"{self.text!r} can never be true, so it would always fire; write what can be true"
        if not any(applies and claimed is False for applies, claimed in held):
            return f"{self.text!r} is always true where it is asked, so it would never fire; write what can be false"
        return ""


def parse_condition(text: str, known: Mapping[str, Collection[str]] = MappingProxyType({})) -> Condition:
    """Return the condition that a text states.

    It holds for a frame when it holds for one of its findings: label and numbers are the same finding's. A frame
    without findings has the label "" and the score 0.

    Args:
        text: such as ``label=scratch and score>0.8``.
        known: the names there are of a ``guard``, ``region``, ``label`` or ``camera``, and under ``check`` whether
            ``score_drop_when_masked`` is; of a kind that is not told any may come.

    Raises:
        ConfigError: it cannot be read; the message names the place.
    """
    holds = _Parser(text, f"record_when: {text!r}: ", "label=scratch and score>0.8", known).condition()

    def condition(explanation: Explanation) -> bool:
        findings = explanation.findings or (None,)
        return any(holds(RuleContext(explanation, finding, explanation.deletion), 0.0) for finding in findings)

    return condition


def parse_rule(text: str) -> Rule:
    """Return the rule that a text states.

    Raises:
        ConfigError: it cannot be read; the message names the place in the text, not the text.
    """
    return _Parser(text, "", "heat_inside(part) >= 0.6 when label=scratch and score>0.5", None).rule()


class _Parser:
    """Reads a text by the grammar above."""

    def __init__(self, text: str, where: str, example: str, known: Mapping[str, Collection[str]] | None) -> None:
        """Take a text; ``known`` is None where it is a guard's own, and may not speak of guards."""
        self._text = text
        self._known = known or {}
        self._fields = tuple(name for name in _FIELDS if name != "guard" or known is not None)
        self._seen: list[BoundVariable] = []
        self._regions: set[str] = set()
        self._named: dict[str, set[str]] = {"label": set(), "camera": set()}
        self._guards: set[str] = set()
        self._asks_guards = False
        self._tokens = TokenStream(text, where, example)
        self._depth = 0

    def condition(self) -> Predicate:
        """Read all of it as a condition."""
        begun = self._tokens.peek
        holds = self._any()
        self._end("'and', 'or' or the end")
        cases = self._domain().cases(self._known.get("camera"))
        if cases is not None and not any(holds(facts, 0.0) for facts in cases):
            self._tokens.fail(begun, "this can never be true, so nothing would ever be recorded; write what can be")
        return holds

    def _domain(self) -> Domain:
        guards = frozenset(self._guards) if self._asks_guards else None
        return Domain(tuple(self._seen), frozenset(self._named["label"]), frozenset(self._named["camera"]), guards)

    def rule(self) -> Rule:
        """Read all of it as a rule."""
        claim = self._any()
        numbers, ended = tuple(self._seen), self._tokens.peek
        when: Predicate = lambda _facts, _slack: True  # noqa: E731 - a test like the others
        if self._tokens.accept("when"):
            begun = self._tokens.peek
            when = self._any()
            if any(one.name == DROP for one in self._seen[len(numbers) :]):
                # It is measured on frames of which the condition is true: here it would wait for itself.
                self._tokens.fail(begun, f"{DROP} is a claim's; write it before 'when', as what must hold")
            self._end("'and', 'or' or the end")
        else:
            self._end("'and', 'or', 'when' or the end")
        said = self._text[: ended.position if ended.kind != "end" else None].strip()
        domain = self._domain()
        rule = Rule(claim, when, said, numbers, frozenset(self._regions), domain.labels, domain.cameras, domain)
        if why := rule.impossible():
            raise ConfigError(why)
        return rule

    def _end(self, expected: str) -> None:
        if (token := self._tokens.peek).kind != "end":
            self._tokens.fail(token, f"expected {expected}.{self._joint(token)}")

    def _any(self) -> Predicate:
        tests = [self._all()]
        while self._tokens.accept("or"):
            tests.append(self._all())
        return tests[0] if len(tests) == 1 else _combined(tests, decides=True)

    def _all(self) -> Predicate:
        tests = [self._not()]
        while self._tokens.accept("and"):
            tests.append(self._not())
        return tests[0] if len(tests) == 1 else _combined(tests, decides=False)

    def _not(self) -> Predicate:
        token = self._tokens.peek
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._tokens.fail(token, f"more than {MAX_DEPTH} levels deep; make it simpler")
        try:
            if self._tokens.accept("not"):
                return _denied(self._not())
            if self._tokens.accept("("):
                inner = self._any()
                self._close(token)
                return inner
            return self._test()
        finally:
            self._depth -= 1

    def _test(self) -> Predicate:
        name = self._tokens.next()
        field = name.text.lower()
        if name.kind != "word" or field not in self._fields:
            known = ", ".join(self._fields[:-1]) + f" or {self._fields[-1]}(REGION)"
            self._tokens.fail(name, f"expected {known}.{did_you_mean(name.text, self._fields)}")
        if field == "guard":
            return self._guard()
        if field in {"label", "camera"}:
            return self._words(field)
        return self._number(field)

    def _guard(self) -> Predicate:
        self._asks_guards = True
        if self._tokens.peek.text not in {"=", "==", "!="}:
            return lambda facts, _slack: bool(facts.explanation.firing)
        sign, value = self._tokens.next(), self._value("guard")
        name = value.unquoted
        self._check("guard", value)
        self._guards.add(name)
        wanted = sign.text != "!="
        return lambda facts, _slack: wanted == any(one.name == name for one in facts.explanation.firing)

    def _check(self, kind: str, value: Token) -> None:
        """Refuse a name that nothing of its kind has: such a test would never hold, or always."""
        name, there = value.unquoted, self._known.get(kind)
        if there is not None and name and name not in there:
            self._tokens.fail(value, unknown_name_message(kind, name, there))

    def _words(self, field: str) -> Predicate:
        sign = self._sign(field)
        value = self._value(field)
        if sign.text not in {"=", "==", "!="}:
            self._tokens.fail(sign, f"{field!r} is text: compare it by = or !=")
        text, after = value.unquoted, self._tokens.peek
        if value.kind == "word" and after.kind == "word" and after.text.lower() not in {"and", "or", "when"}:
            hint = self._joint(after) or f" A name of several words goes in quotes: {field}='{text} {after.text}'"
            self._tokens.fail(
                after, f"expected 'and', 'or' or the end.{'' if after.text.lower() in self._fields else hint}"
            )
        compare = _COMPARE[sign.text]
        self._check(field, value)
        self._named[field].add(text)
        if field == "camera":
            return lambda facts, _slack: compare(facts.explanation.frame.camera, text)
        return lambda facts, _slack: compare("" if facts.finding is None else facts.finding.label, text)

    def _number(self, field: str) -> Predicate:
        if field == DROP and DROP not in self._known.get("check", {DROP}):
            hint = f"is measured where a rule of guards asks for it, and none does; add one, such as '{DROP} >= 0.2'"
            self._tokens.fail(self._tokens.previous, hint)
        seen = self._heat_inside() if field == HEAT_INSIDE else BoundVariable(field, NUMBERS[field].read)
        least = 0.0 if field == HEAT_INSIDE else NUMBERS[field].minimum
        sign = self._sign(seen.name)
        bound = self._bound(field, self._value(field), least)
        self._seen.append(replace(seen, bound=bound))
        compare, harder, read = _COMPARE[sign.text], _BINDING_POWER.get(sign.text, 0.0), seen.read

        def test(facts: RuleContext, slack: float) -> bool | None:
            value = read(facts)
            return None if value is None else compare(value, bound + harder * slack)

        return test

    def _heat_inside(self) -> BoundVariable:
        opened = self._tokens.next()
        if opened.text != "(" or opened.kind != "mark":
            self._tokens.fail(opened, "expected '(' and the name of a region, such as heat_inside(part)")
        value = self._value("heat_inside(")
        region = value.unquoted
        self._check("region", value)
        self._close(opened)
        self._regions.add(region)
        return heat_inside(region)

    def _close(self, opened: Token) -> None:
        if not self._tokens.accept(")"):
            self._tokens.fail(self._tokens.peek, f"expected ')' for the '(' at character {opened.position + 1}")

    def _sign(self, field: str) -> Token:
        sign = self._tokens.next()
        if sign.text not in _COMPARE or sign.kind != "mark":
            self._tokens.fail(sign, f"expected = != < <= > or >= behind {field!r}")
        return sign

    def _value(self, field: str) -> Token:
        value = self._tokens.next()
        word = value.kind == "word"
        if value.kind not in {"word", "quoted"} or (word and value.text.lower() in {"and", "or", "not"}):
            self._tokens.fail(value, f"expected what {field!r} is compared with; a word of the language goes in quotes")
        return value

    def _bound(self, field: str, value: Token, least: float) -> float:
        try:
            number = float(value.text) if value.kind == "word" else float("nan")
        except ValueError:
            number = float("nan")
        if not least <= number <= 1.0:
            self._tokens.fail(value, f"a {field} is a number from {least:g} to 1")
        return number

    def _joint(self, token: Token) -> str:
        return "" if token.text.lower() in self._fields else did_you_mean(token.text, ("and", "or"))


def _denied(test: Predicate) -> Predicate:
    def denied(facts: RuleContext, slack: float) -> bool | None:
        held = test(facts, -slack)
        return None if held is None else not held

    return denied


def _combined(tests: Sequence[Predicate], *, decides: bool) -> Predicate:
    """Return Kleene's or (one that is true decides) or and (one that is false decides)."""

    def combined(facts: RuleContext, slack: float) -> bool | None:
        held = [test(facts, slack) for test in tests]
        if decides in held:
            return decides
        return None if None in held else not decides

    return combined
