"""Parses conditions (which frames to record) and the rules of guards. Their text is never executed as code.

    rule     = any [ "when" any ]
    any      = all { "or" all }
    all      = not { "and" not }
    not      = "not" not | "(" any ")" | test
    test     = ("label" | "camera") ("=" | "!=") words
             | number ("=" | "!=" | "<" | "<=" | ">" | ">=") value
             | "guard" [ ("=" | "!=") words ]
             | ("part" | "crossing") [ ("=" | "!=") words ]
             | "disagree"
    number   = "score" | "focus_area" | "entropy" | "stability" | "centre_x" | "centre_y"
             | "score_drop_when_masked" | "evidence_outside_box" | "track" | "boxes"
             | "heat_inside" "(" words ")"
    words    = a bare word, or anything in single or double quotes

A test of an unknown number (a flat map has no centre) has the value *unknown*, and terms are combined by Kleene's
three-valued logic.

No parser generator is used. A version with lark 1.3 passes the same tests with equal errors, but is as long, takes as
long to import as pydantic, and must read lark's undocumented value stack to name the field or bracket in an error.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

from pipeline.errors import ConfigError, did_you_mean, unknown_name_message
from pipeline.frames import Explanation
from pipeline.guards.box_stats import BOX
from pipeline.guards.lexer import Token, TokenStream
from pipeline.guards.satisfiability import Domain
from pipeline.guards.variables import (
    DROP,
    HEAT_INSIDE,
    NUMBERS,
    BoundVariable,
    Predicate,
    RuleContext,
    Variable,
    combined,
    heat_inside,
    negated,
)

Condition = Callable[[Explanation], bool]
"""Returns whether a condition holds for a frame, for example whether to record the frame."""

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
_STRICTER: Final = MappingProxyType({"<": -1.0, "<=": -1.0, ">": 1.0, ">=": 1.0})
"""Sign of the change that makes a bound stricter."""
_PASSAGES: Final = ("part", "crossing")
DISAGREE: Final = "disagree"
_NOT_IN_RULES: Final = frozenset({"guard", DISAGREE, *_PASSAGES})
_STATISTICS: Final = tuple(name for name in NUMBERS if name != "score")
_FIELDS: Final = ("label", "score", "camera", "guard", *_PASSAGES, DISAGREE, *_STATISTICS, HEAT_INSIDE)
_RULE_FIELDS: Final = tuple(name for name in _FIELDS if name not in _NOT_IN_RULES)


@dataclass(frozen=True, slots=True)
class Rule:
    """A parsed rule: a requirement, and the condition under which it must hold."""

    requirement: Predicate
    condition: Predicate
    """The condition after ``when``; always true if the rule has none."""
    text: str
    """The text of the requirement."""
    numbers: tuple[BoundVariable, ...]
    """The numbers in the requirement."""
    regions: frozenset[str]
    """All regions that the rule names, except ``box``."""
    labels: frozenset[str] = frozenset()
    """All classes that the rule names."""
    cameras: frozenset[str] = frozenset()
    """All cameras that the rule names."""
    domain: Domain = field(default_factory=Domain)
    """All cases that the rule distinguishes."""

    @property
    def needs_deletion(self) -> bool:
        """True if the requirement uses the deletion check."""
        return any(number.name == DROP for number in self.numbers)

    @property
    def needs_boxes(self) -> tuple[str, ...]:
        """Names of the numbers in the rule that only the boxes of a detector have."""
        return tuple(dict.fromkeys(each.name for each in self.domain.numbers if each.variable.of_boxes))

    def impossible(self, cameras: Collection[str] | None = None) -> str:
        """Return a message if the rule can never fire, or would always fire; else an empty text.

        Args:
            cameras: the cameras that the rule is evaluated for; None for any camera.
        """
        cases = self.domain.cases(cameras)
        if cases is None:
            return ""
        results = [(self.condition(context, 0.0) is True, self.requirement(context, 0.0)) for context in cases]
        if not any(applies for applies, _ in results):
            return "the condition after 'when' is never true, so the rule would never fire; change the condition"
        if not any(holds for _, holds in results):
            return f"{self.text!r} is never true, so the rule would always fire; change it"
        if not any(applies and holds is False for applies, holds in results):
            return f"{self.text!r} is always true if the rule applies, so the rule would never fire; change it"
        return ""


def parse_condition(
    text: str,
    known: Mapping[str, Collection[str]] = MappingProxyType({}),
    *,
    option: str = "record_when",
    fields: tuple[str, ...] = _FIELDS,
) -> Condition:
    """Parse a condition on frames.

    The condition holds for a frame if it holds for at least one finding of the frame. A frame without findings is
    tested with the label "" and the score 0. A condition with ``part`` or ``crossing`` also holds for a frame if it
    holds for a part or crossing that was finished at the frame, tested with its class, its score and its deciding box.

    Args:
        text: the condition, such as ``label=scratch and score>0.8``.
        known: the known names by kind: ``guard``, ``region``, ``label``, ``camera``; ``check`` has
            ``score_drop_when_masked`` if it is measured, ``box`` any name if the network is a detector, and ``trial``
            the name of a network on trial. Names of a missing kind are not checked.
        option: name of the option that has the text, for messages.
        fields: the fields that the condition may test.

    Raises:
        ConfigError: the text cannot be parsed, or can never be true; the message has the position.
    """
    parser = _Parser(text, f"{option}: {text!r}: ", "label=scratch and score>0.8", known, fields)
    holds = parser.condition()

    def condition(explanation: Explanation) -> bool:
        findings = explanation.findings or (None,)
        trial = explanation.trial
        differs = trial is not None and bool(trial.difference)
        contexts = [RuleContext(explanation, each, explanation.deletion, disagrees=differs) for each in findings]
        for passage in explanation.passages if parser.places is not None else ():
            decided = replace(passage.finding, score=passage.score)
            contexts.append(RuleContext(explanation, decided, None, (passage.kind, passage.place), passage.disagrees))
        return any(holds(context, 0.0) for context in contexts)

    return condition


def parse_rule(text: str) -> Rule:
    """Parse the rule of a guard.

    Raises:
        ConfigError: the text cannot be parsed, or would never or always fire; the message has only the position.
    """
    return _Parser(text, "", "heat_inside(part) >= 0.6 when label=scratch and score>0.5", {}, _RULE_FIELDS).rule()


class _Parser:
    """Recursive-descent parser of the grammar above."""

    def __init__(
        self, text: str, where: str, example: str, known: Mapping[str, Collection[str]], fields: tuple[str, ...]
    ) -> None:
        self._text, self._known, self._fields = text, known, fields
        self._seen: list[BoundVariable] = []
        self._regions: set[str] = set()
        self._named: dict[str, set[str]] = {"label": set(), "camera": set()}
        self._guards: set[str] = set()
        self._asks_guards = self._asks_trial = False
        self.places: set[str] | None = None
        """The zones and lines in tests of parts and crossings; None without a test of this kind."""
        self._tokens = TokenStream(text, where, example)
        self._depth = 0

    def condition(self) -> Predicate:
        """Parse the text as a condition."""
        start = self._tokens.peek
        holds = self._any()
        is_rule = self._tokens.peek.text.lower() == "when"
        self._end("'and', 'or' or the end" + (": only the rules of guards have 'when'" if is_rule else ""))
        cases = self._domain().cases(self._known.get("camera"))
        if cases is not None and not any(holds(context, 0.0) for context in cases):
            self._tokens.fail(start, "the condition is never true, so no frame would be recorded; change it")
        return holds

    def _domain(self) -> Domain:
        guards = frozenset(self._guards) if self._asks_guards else None
        places = None if self.places is None else frozenset(self.places)
        labels, cameras = frozenset(self._named["label"]), frozenset(self._named["camera"])
        return Domain(tuple(self._seen), labels, cameras, guards, places, asks_trial=self._asks_trial)

    def rule(self) -> Rule:
        """Parse the text as a rule."""
        requirement = self._any()
        numbers, end = tuple(self._seen), self._tokens.peek
        condition: Predicate = lambda _context, _margin: True  # noqa: E731 - a predicate like the others
        if self._tokens.accept("when"):
            start = self._tokens.peek
            condition = self._any()
            if any(number.name == DROP for number in self._seen[len(numbers) :]):
                # The drop is measured only on frames for which the condition is true: it cannot depend on the drop.
                self._tokens.fail(start, f"{DROP} belongs to the requirement; write it before 'when'")
            self._end("'and', 'or' or the end")
        else:
            self._end("'and', 'or', 'when' or the end")
        text = self._text[: end.position if end.kind != "end" else None].strip()
        domain = self._domain()
        rule = Rule(
            requirement, condition, text, numbers, frozenset(self._regions), domain.labels, domain.cameras, domain
        )
        if why := rule.impossible():
            raise ConfigError(why)
        return rule

    def _end(self, expected: str) -> None:
        if (token := self._tokens.peek).kind != "end":
            self._tokens.fail(token, f"expected {expected}.{self._suggest_joint(token)}")

    def _any(self) -> Predicate:
        tests = [self._all()]
        while self._tokens.accept("or"):
            tests.append(self._all())
        return tests[0] if len(tests) == 1 else combined(tests, decides=True)

    def _all(self) -> Predicate:
        tests = [self._not()]
        while self._tokens.accept("and"):
            tests.append(self._not())
        return tests[0] if len(tests) == 1 else combined(tests, decides=False)

    def _not(self) -> Predicate:
        token = self._tokens.peek
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._tokens.fail(token, f"nested more than {MAX_DEPTH} levels deep; use fewer brackets")
        try:
            if self._tokens.accept("not"):
                return negated(self._not())
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
            *others, last = (f"{each}(REGION)" if each == HEAT_INSIDE else each for each in self._fields)
            self._tokens.fail(name, f"expected {', '.join(others)} or {last}.{did_you_mean(name.text, self._fields)}")
        if field == "guard":
            return self._guard()
        if field in _PASSAGES:
            return self._passage(field)
        if field == DISAGREE:
            return self._disagree(name)
        if field in {"label", "camera"}:
            return self._words(field)
        return self._number(field)

    def _guard(self) -> Predicate:
        self._asks_guards = True
        if self._tokens.peek.text not in {"=", "==", "!="}:
            return lambda context, _margin: bool(context.explanation.firing)
        sign, value = self._tokens.next(), self._value("guard")
        name = value.unquoted
        self._check("guard", value)
        self._guards.add(name)
        expected = sign.text != "!="
        return lambda context, _margin: expected == any(guard.name == name for guard in context.explanation.firing)

    def _passage(self, kind: str) -> Predicate:
        self.places = self.places or set()
        if self._tokens.peek.text not in {"=", "==", "!="}:
            return lambda context, _margin: context.passage is not None and context.passage[0] == kind
        sign, value = self._tokens.next(), self._value(kind)
        place = value.unquoted
        self._check("place", value)
        self.places.add(place)
        compare = _COMPARE[sign.text]
        return lambda context, _margin: (
            context.passage is not None and context.passage[0] == kind and compare(context.passage[1], place)
        )

    def _disagree(self, name: Token) -> Predicate:
        if not self._known.get("trial", {DISAGREE}):
            self._tokens.fail(name, "no network is on trial; name one under 'models', or by --trial")
        self._asks_trial = True
        return lambda context, _margin: context.disagrees

    def _check(self, kind: str, value: Token) -> None:
        """Raise ``ConditionError`` for an unknown name: its test would be always true or always false."""
        name, known = value.unquoted, self._known.get(kind)
        if known is not None and name and name not in known:
            self._tokens.fail(value, unknown_name_message(kind, name, known))

    def _words(self, field: str) -> Predicate:
        sign = self._sign(field)
        value = self._value(field)
        if sign.text not in {"=", "==", "!="}:
            self._tokens.fail(sign, f"{field!r} is text: compare it with = or !=")
        text, after = value.unquoted, self._tokens.peek
        if value.kind == "word" and after.kind == "word" and after.text.lower() not in {"and", "or", "when"}:
            hint = self._suggest_joint(after) or f" Quote a name of several words: {field}='{text} {after.text}'"
            self._tokens.fail(
                after, f"expected 'and', 'or' or the end.{'' if after.text.lower() in self._fields else hint}"
            )
        compare = _COMPARE[sign.text]
        self._check(field, value)
        self._named[field].add(text)
        if field == "camera":
            return lambda context, _margin: compare(context.explanation.frame.camera, text)
        return lambda context, _margin: compare("" if context.finding is None else context.finding.label, text)

    def _number(self, field: str) -> Predicate:
        name = self._tokens.previous
        if field == DROP and DROP not in self._known.get("check", {DROP}):
            hint = f"is measured only if a guard's rule uses it; add a guard with a rule such as '{DROP} >= 0.2'"
            if self._known.get("box"):
                hint = "is unknown for boxes in mode keep; set engine.boxes.mode: drop"
            self._tokens.fail(name, hint)
        seen = self._heat_inside() if field == HEAT_INSIDE else BoundVariable(field, NUMBERS[field].read)
        if seen.variable.of_boxes and not self._known.get("box", {BOX}):
            self._tokens.fail(
                name, "exists only for the boxes of a detector; this network is a classifier: remove the test"
            )
        sign = self._sign(seen.name)
        bound = self._bound(field, self._value(field), seen.variable)
        self._seen.append(replace(seen, bound=bound))
        compare, direction, read = _COMPARE[sign.text], _STRICTER.get(sign.text, 0.0), seen.read

        def test(context: RuleContext, margin: float) -> bool | None:
            value = read(context)
            return None if value is None else compare(value, bound + direction * margin)

        return test

    def _heat_inside(self) -> BoundVariable:
        opened = self._tokens.next()
        if opened.text != "(" or opened.kind != "mark":
            self._tokens.fail(opened, "expected '(' and the name of a region, such as heat_inside(part)")
        value = self._value("heat_inside(")
        region = value.unquoted
        if region != BOX:
            self._check("region", value)
            self._regions.add(region)
        self._close(opened)
        return heat_inside(region)

    def _close(self, opened: Token) -> None:
        if not self._tokens.accept(")"):
            self._tokens.fail(self._tokens.peek, f"expected ')' for the '(' at character {opened.position + 1}")

    def _sign(self, field: str) -> Token:
        sign = self._tokens.next()
        if sign.text not in _COMPARE or sign.kind != "mark":
            self._tokens.fail(sign, f"expected = != < <= > or >= after {field!r}")
        return sign

    def _value(self, field: str) -> Token:
        value = self._tokens.next()
        is_word = value.kind == "word"
        if value.kind not in {"word", "quoted"} or (is_word and value.text.lower() in {"and", "or", "not"}):
            quoted = f"; quote a value that is a keyword: '{value.text}'" if is_word else ""
            self._tokens.fail(value, f"expected a value for {field!r}{quoted}")
        return value

    def _bound(self, field: str, value: Token, variable: Variable) -> float:
        try:
            number = float(value.text) if value.kind == "word" else float("nan")
        except ValueError:
            number = float("nan")
        if not variable.minimum <= number <= variable.maximum:
            limits = f"from {variable.minimum:g} to {variable.maximum:.10g}"
            self._tokens.fail(value, f"{field} should be a number {limits}")
        return number

    def _suggest_joint(self, token: Token) -> str:
        return "" if token.text.lower() in self._fields else did_you_mean(token.text, ("and", "or"))
