"""Who is taught and who examines: labelled pictures, which of them show the same thing, and how they are divided.

Two pictures of one part, under two lights or a second apart, are no two witnesses: a network that has learned from one
knows the other. So pictures are divided by *source*, and never a source between learning and examination. Pure: names
and labels in, names out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.errors import ConfigError

TRAIN, VALIDATION, TEST = "train", "validation", "test"
"""What the network learns from, what tells it when to stop, and what examines it at the end and is never used."""
_NAMED = 3
"""How many pairs of pictures a message names."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled picture."""

    path: str
    label: str
    group: str
    """What it shows, whatever it is called: pictures of one source stay together."""
    digest: str = ""
    """Of its pixels: two pictures of one digest are one picture. Empty: not known."""
    split: str = ""
    """The part the user has put it into; empty: to be divided."""


def group_ids(names: Sequence[str], pattern: str | None = None, gap: int | None = None) -> list[str]:
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
            f"--group-pattern {pattern!r}: is no regular expression ({reason}); see Python's re"
        ) from None
    found = []
    for name in names:
        match = rule.search(name)
        if match is None:
            raise ConfigError(
                f"--group-pattern {pattern!r}: is not found in {name!r}; give one that every name has, such as "
                r"'(part\d+)_' for part17_left.jpg"
            )
        found.append("/".join(part or "" for part in match.groups()) if match.groups() else match.group())
    return found if gap is None else _runs(found, pattern, gap)


def _runs(found: Sequence[str], pattern: str, gap: int) -> list[str]:
    """Name each number by the first of the run it belongs to."""
    wrong = next((word for word in found if not word.isdecimal()), None)
    if wrong is not None:
        raise ConfigError(f"--group-gap: {pattern!r} gives {wrong!r}, no number; put one group around the digits")
    first: dict[int, int] = {}
    before = None
    for number in sorted({int(word) for word in found}):
        first[number] = number if before is None or number - before > gap else first[before]
        before = number
    return [str(first[int(word)]) for word in found]


def merge_duplicates(samples: Sequence[Sample]) -> tuple[list[Sample], int]:
    """Return the samples with copies of one picture as one source, and how many are copies of another.

    Sources that share a picture become one, whatever they are called.

    Raises:
        ConfigError: one picture has two labels; both places are named.
    """
    first: dict[str, Sample] = {}
    clashes: list[tuple[Sample, Sample]] = []
    home: dict[str, str] = {}

    def root(source: str) -> str:
        while (above := home.get(source, source)) != source:
            source = above
        return source

    copies = 0
    for one in samples:
        twin = first.setdefault(one.digest, one) if one.digest else one
        if twin is one:
            continue
        copies += 1
        if twin.label != one.label:
            clashes.append((twin, one))
        home[root(one.group)] = root(twin.group)
    if clashes:
        named = "; ".join(
            f"{one.path} ({one.label}) and {other.path} ({other.label})" for one, other in clashes[:_NAMED]
        )
        more = f"; and {len(clashes) - _NAMED} more" if len(clashes) > _NAMED else ""
        raise ConfigError(f"one picture under two labels: {named}{more}; leave it where it belongs")
    return [replace(one, group=root(one.group)) for one in samples], copies


def stratified_group_split(
    samples: Sequence[Sample], fractions: Mapping[str, float], seed: int, seen: Collection[str] = ()
) -> dict[str, list[Sample]]:
    """Divide samples into parts, sources whole, each class in about its share: the same for the same seed.

    Args:
        samples: all of them; their order does not matter.
        fractions: part -> share of each class; they add up to 1.
        seed: which of many divisions.
        seen: digests of pictures that the network has learned from before; their sources are never held out.

    Raises:
        ConfigError: a class has too few sources to stand in every part.
    """
    taught = {one.group for one in samples if one.digest in seen}
    labels = sorted({one.label for one in samples})
    members: dict[str, list[Sample]] = {}
    for one in sorted(samples, key=lambda one: one.path):
        members.setdefault(one.group, []).append(one)
    counts = {
        source: np.array([sum(one.label == label for one in several) for label in labels], float)
        for source, several in members.items()
    }
    total = np.asarray(sum(counts.values()))
    check_groups(samples, [part for part, fraction in fractions.items() if fraction > 0])
    if taught:
        _check_fresh(samples, taught)
    rng = np.random.default_rng((seed, 3))
    names = sorted(members)
    order = sorted(
        rng.permutation(len(names)).tolist(),
        key=lambda place: (names[place] not in taught, -float(counts[names[place]].sum())),
    )
    given = {part: np.zeros(len(labels)) for part, fraction in fractions.items() if fraction > 0}
    chosen: dict[str, list[str]] = {part: [] for part in given}
    for source in (names[place] for place in order):
        open_to = [part for part in given if part != TEST or source not in taught]
        part = min(open_to, key=lambda part: _cost(given[part], counts[source], total, fractions[part]))
        given[part] += counts[source]
        chosen[part].append(source)
    _lend(chosen, given, counts, labels, taught)
    return {part: [one for source in sorted(chosen.get(part, ())) for one in members[source]] for part in fractions}


def _cost(given: np.ndarray, more: np.ndarray, total: np.ndarray, fraction: float) -> float:
    """Return how much farther from its share a part would be, in shares of each class it would get."""
    wanted = total * fraction
    after, before = (given + more - wanted) / wanted, (given - wanted) / wanted
    return float((fraction * total * (after**2 - before**2) / total).sum())


def _lend(
    chosen: dict[str, list[str]], given: dict[str, np.ndarray], counts: Mapping[str, np.ndarray],
    labels: Sequence[str], taught: Collection[str],
) -> None:  # fmt: skip
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
                and (part != TEST or source not in taught)
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


def _check_fresh(samples: Sequence[Sample], taught: Collection[str]) -> None:
    fresh = {one.label for one in samples if one.group not in taught}
    for label in sorted({one.label for one in samples} - fresh):
        raise ConfigError(
            f"class {label!r}: the network has learned from all of its pictures before, and none is left to examine "
            "it; add new ones, or begin anew with --model NAME"
        )


def check_groups(samples: Sequence[Sample], parts: Sequence[str]) -> None:
    """Refuse a class with fewer sources than there are parts.

    Raises:
        ConfigError: it names the class.
    """
    sources = Counter(label for label, _ in {(one.label, one.group) for one in samples})
    for label, count in sorted(sources.items()):
        if count < len(parts):
            raise ConfigError(
                f"class {label!r}: {count} source{'s' * (count != 1)} for {len(parts)} parts ({', '.join(parts)}); "
                "add pictures of other parts, or leave the class out"
            )
