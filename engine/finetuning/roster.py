"""Who is taught and who examines: labelled pictures, which of them show the same thing, and how they are divided.

Two pictures of one part, under two lights or a second apart, are no two witnesses: a network that has learned from one
knows the other. So pictures are divided by *source*, and never a source between learning and examination. Pure: names
and labels in, names out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import ConfigError

LEARNING, STOPPING, HELD_OUT = "learning", "stopping", "held_out"
"""What the network learns from, what tells it when to stop, and what examines it at the end and is never used."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled picture."""

    path: str
    label: str
    source: str
    """What it shows, whatever it is called: pictures of one source stay together."""


def sources_of(names: Sequence[str], pattern: str | None = None, gap: int | None = None) -> list[str]:
    """Return each picture's source.

    Args:
        names: paths.
        pattern: a regular expression found in the path; its groups (all of it without groups) name the source.
            None = every picture is a source of its own.
        gap: the pattern gives one whole number, a frame's; pictures whose numbers follow each other with no more than
            this between them are one source.

    Raises:
        ConfigError: the pattern is no regular expression, is not found in a name, or gives no number for ``gap``.
    """
    if pattern is None:
        return list(names)
    try:
        rule = re.compile(pattern)
    except re.error as reason:
        raise ConfigError(
            f"--source-pattern {pattern!r}: is no regular expression ({reason}); see Python's re"
        ) from None
    found = []
    for name in names:
        match = rule.search(name)
        if match is None:
            raise ConfigError(
                f"--source-pattern {pattern!r}: is not found in {name!r}; give one that every name has, such as "
                r"'(part\d+)_' for part17_left.jpg"
            )
        found.append("/".join(part or "" for part in match.groups()) if match.groups() else match.group())
    return found if gap is None else _runs(found, pattern, gap)


def _runs(found: Sequence[str], pattern: str, gap: int) -> list[str]:
    """Name each number by the first of the run it belongs to."""
    wrong = next((word for word in found if not word.isdecimal()), None)
    if wrong is not None:
        raise ConfigError(f"--source-gap: {pattern!r} gives {wrong!r}, no number; put one group around the digits")
    first: dict[int, int] = {}
    before = None
    for number in sorted({int(word) for word in found}):
        first[number] = number if before is None or number - before > gap else first[before]
        before = number
    return [str(first[int(word)]) for word in found]


def divide(samples: Sequence[Sample], shares: Mapping[str, float], seed: int) -> dict[str, list[Sample]]:
    """Divide samples into parts, sources whole, each class in about its share: the same for the same seed.

    Args:
        samples: all of them; their order does not matter.
        shares: part -> share of each class; they add up to 1.
        seed: which of many divisions.

    Raises:
        ConfigError: a class has too few sources to stand in every part.
    """
    labels = sorted({one.label for one in samples})
    members: dict[str, list[Sample]] = {}
    for one in sorted(samples, key=lambda one: one.path):
        members.setdefault(one.source, []).append(one)
    counts = {
        source: np.array([sum(one.label == label for one in several) for label in labels], float)
        for source, several in members.items()
    }
    total = np.asarray(sum(counts.values()))
    _check_sources(samples, [part for part, share in shares.items() if share > 0])
    rng = np.random.default_rng((seed, 3))
    names = sorted(members)
    order = sorted(rng.permutation(len(names)).tolist(), key=lambda place: -float(counts[names[place]].sum()))
    given = {part: np.zeros(len(labels)) for part, share in shares.items() if share > 0}
    chosen: dict[str, list[str]] = {part: [] for part in given}
    for source in (names[place] for place in order):
        part = min(given, key=lambda part: _cost(given[part], counts[source], total, shares[part]))
        given[part] += counts[source]
        chosen[part].append(source)
    _lend(chosen, given, counts, labels)
    return {part: [one for source in sorted(chosen.get(part, ())) for one in members[source]] for part in shares}


def _cost(given: np.ndarray, more: np.ndarray, total: np.ndarray, share: float) -> float:
    """Return how much farther from its share a part would be, in shares of each class it would get."""
    wanted = total * share
    after, before = (given + more - wanted) / wanted, (given - wanted) / wanted
    return float((share * total * (after**2 - before**2) / total).sum())


def _lend(
    chosen: dict[str, list[str]], given: dict[str, np.ndarray], counts: Mapping[str, np.ndarray], labels: Sequence[str]
) -> None:
    """Move a small source into a part that has none of a class, from the part that has most of them."""
    for part in given:
        for place, label in enumerate(labels):
            if given[part][place] > 0:
                continue
            lenders = [
                (float(counts[source].sum()), other, source)
                for other in given
                for source in chosen[other]
                if counts[source][place] > 0
                and all(given[other][k] > counts[source][k] for k in np.nonzero(counts[source])[0])
            ]
            if not lenders:
                raise ConfigError(
                    f"class {label!r}: its pictures cannot be divided so that {part} has some; add pictures of more "
                    "sources, or group fewer of them together"
                )
            _, other, source = min(lenders)
            chosen[other].remove(source)
            chosen[part].append(source)
            given[other] -= counts[source]
            given[part] += counts[source]


def _check_sources(samples: Sequence[Sample], parts: Sequence[str]) -> None:
    sources = Counter(label for label, _ in {(one.label, one.source) for one in samples})
    for label, count in sorted(sources.items()):
        if count < len(parts):
            raise ConfigError(
                f"class {label!r}: {count} source{'s' * (count != 1)} for {len(parts)} parts ({', '.join(parts)}); "
                "add pictures of other parts, or leave the class out"
            )
