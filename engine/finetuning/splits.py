"""Groups labelled images by the part they show, and splits them into train, validation and test.

Two images of the same part, in other light or a second apart, are not independent samples: a network trained on one of
them knows the other. So each group of images is in one split only. This module reads no files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.errors import ConfigError

TRAIN, VALIDATION, TEST = "train", "validation", "test"
"""The splits: for training, for the decision when to stop, and for the final evaluation."""

_MAX_NAMED = 3
"""Maximum number of pairs of images in a message."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A labelled image."""

    path: str
    label: str
    group: str
    """Name of the part in the image; images of one group stay in one split."""
    digest: str = ""
    """Digest of the pixels, equal for copies of an image; empty if unknown."""
    split: str = ""
    """The split, if the data set is already split; else empty."""


def group_ids(names: Sequence[str], pattern: str | None = None, gap: int | None = None) -> list[str]:
    """Return the group of each image.

    Args:
        names: paths of the images.
        pattern: regular expression searched in each path. The group is its capturing groups, or the whole match if it
            has none. None: each image is a group.
        gap: maximum distance of successive frame numbers in one group; the pattern must match the number. None: each
            value is a group.

    Raises:
        ConfigError: the pattern is no regular expression, is not found in a path, or matches no number for ``gap``.
    """
    if pattern is None:
        return list(names)
    try:
        expression = re.compile(pattern)
    except re.error as reason:
        raise ConfigError(
            f"--group-pattern {pattern!r}: is not a regular expression ({reason}); see the documentation of Python's "
            "module re"
        ) from None
    groups = []
    for name in names:
        match = expression.search(name)
        if match is None:
            raise ConfigError(
                f"--group-pattern {pattern!r}: matches no part of {name!r}; use a pattern that matches every path, "
                "such as "
                r"'(part\d+)_' for part17_left.jpg"
            )
        groups.append("/".join(part or "" for part in match.groups()) if match.groups() else match.group())
    return groups if gap is None else _join_successive(groups, pattern, gap)


def _join_successive(numbers: Sequence[str], pattern: str, gap: int) -> list[str]:
    """Return, for each frame number, the first number of its run of successive numbers."""
    wrong = next((text for text in numbers if not text.isdecimal()), None)
    if wrong is not None:
        raise ConfigError(
            f"--group-gap: {pattern!r} matches {wrong!r}, which is not a number; enclose only the digits in parentheses"
        )
    first_of: dict[int, int] = {}
    previous = None
    for number in sorted({int(text) for text in numbers}):
        first_of[number] = number if previous is None or number - previous > gap else first_of[previous]
        previous = number
    return [str(first_of[int(text)]) for text in numbers]


def merge_duplicates(samples: Sequence[Sample]) -> tuple[list[Sample], int]:
    """Merge groups that share an image; return the samples and the number of copies.

    Raises:
        ConfigError: two copies of an image have different labels.
    """
    first_of: dict[str, Sample] = {}
    conflicts: list[tuple[Sample, Sample]] = []
    parent_of: dict[str, str] = {}

    def root(group: str) -> str:
        while (parent := parent_of.get(group, group)) != group:
            group = parent
        return group

    copies = 0
    for sample in samples:
        original = first_of.setdefault(sample.digest, sample) if sample.digest else sample
        if original is sample:
            continue
        copies += 1
        if original.label != sample.label:
            conflicts.append((original, sample))
        parent_of[root(sample.group)] = root(original.group)
    if conflicts:
        pairs = "; ".join(
            f"{first.path} ({first.label}) and {second.path} ({second.label})"
            for first, second in conflicts[:_MAX_NAMED]
        )
        more = f"; and {len(conflicts) - _MAX_NAMED} more" if len(conflicts) > _MAX_NAMED else ""
        raise ConfigError(f"the same image has two labels: {pairs}{more}; remove the wrong copy")
    return [replace(sample, group=root(sample.group)) for sample in samples], copies


def stratified_group_split(
    samples: Sequence[Sample], fractions: Mapping[str, float], seed: int, seen: Collection[str] = ()
) -> dict[str, list[Sample]]:
    """Split samples by group, so that each class has about the given fraction in every split.

    Args:
        samples: all samples; their order has no effect.
        fractions: split -> fraction of each class; their sum is 1.
        seed: seed of the random order; equal seeds produce equal splits.
        seen: digests of the images of earlier training runs; their groups are not in the test split.

    Raises:
        ConfigError: a class has too few groups to be in every split.
    """
    used = {split: fraction for split, fraction in fractions.items() if fraction > 0}
    check_groups(samples, list(used))
    seen_groups = {sample.group for sample in samples if sample.digest in seen}
    if seen_groups:
        _check_unseen(samples, seen_groups)
    members: dict[str, list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: sample.path):
        members.setdefault(sample.group, []).append(sample)
    allocation = _Allocation(members, used, seen_groups)
    rng = np.random.default_rng((seed, 3))
    names = sorted(members)
    order = sorted(
        rng.permutation(len(names)).tolist(),
        key=lambda number: (names[number] not in seen_groups, -float(allocation.counts[names[number]].sum())),
    )
    for number in order:
        allocation.add(names[number])
    allocation.fill_empty_classes()
    return {
        split: [sample for group in sorted(allocation.groups.get(split, ())) for sample in members[group]]
        for split in fractions
    }


class _Allocation:
    """The groups of each split, and the number of images per class."""

    def __init__(
        self, members: Mapping[str, Sequence[Sample]], fractions: Mapping[str, float], seen_groups: Collection[str]
    ) -> None:
        self._labels = sorted({sample.label for group in members.values() for sample in group})
        self._fractions, self._seen_groups = fractions, seen_groups
        self.counts = {
            name: np.array([sum(sample.label == label for sample in group) for label in self._labels], float)
            for name, group in members.items()
        }
        self._total = np.asarray(sum(self.counts.values()))
        self._counts_of_split = {split: np.zeros(len(self._labels)) for split in fractions}
        self.groups: dict[str, list[str]] = {split: [] for split in fractions}

    def add(self, group: str) -> None:
        """Add a group to the split that needs it most."""
        splits = [split for split in self.groups if self._is_allowed(group, split)]
        split = min(splits, key=lambda split: self._cost(group, split))
        self._counts_of_split[split] += self.counts[group]
        self.groups[split].append(group)

    def fill_empty_classes(self) -> None:
        """Move a small group into each split that lacks a class.

        Raises:
            ConfigError: no split can spare a group of the class.
        """
        for split in self.groups:
            for number, label in enumerate(self._labels):
                if self._counts_of_split[split][number] == 0:
                    self._move_group(split, number, label)

    def _move_group(self, split: str, number: int, label: str) -> None:
        candidates = [
            (float(self.counts[group].sum()), other, group)
            for other in self.groups
            for group in self.groups[other]
            if self.counts[group][number] > 0 and self._is_allowed(group, split) and self._can_spare(group, other)
        ]
        if not candidates:
            raise ConfigError(
                f"class {label!r}: no group of its images can be moved to the {split} split; add images of more "
                "groups, or use smaller groups"
            )
        _, other, group = min(candidates)
        self.groups[other].remove(group)
        self.groups[split].append(group)
        self._counts_of_split[other] -= self.counts[group]
        self._counts_of_split[split] += self.counts[group]

    def _is_allowed(self, group: str, split: str) -> bool:
        return split != TEST or group not in self._seen_groups

    def _can_spare(self, group: str, split: str) -> bool:
        """Return whether all classes of the group remain in the split without the group."""
        present = np.nonzero(self.counts[group])[0]
        return bool((self._counts_of_split[split][present] > self.counts[group][present]).all())

    def _cost(self, group: str, split: str) -> float:
        """Return how much adding the group increases the squared error of the split's class counts."""
        target_counts = self._total * self._fractions[split]
        before = (self._counts_of_split[split] - target_counts) / target_counts
        after = (self._counts_of_split[split] + self.counts[group] - target_counts) / target_counts
        return float((self._fractions[split] * self._total * (after**2 - before**2) / self._total).sum())


def _check_unseen(samples: Sequence[Sample], seen_groups: Collection[str]) -> None:
    unseen = {sample.label for sample in samples if sample.group not in seen_groups}
    for label in sorted({sample.label for sample in samples} - unseen):
        raise ConfigError(
            f"class {label!r}: the network was trained on all of its images, so none is left for the test split; add "
            "new images, or start with --model NAME"
        )


def check_groups(samples: Sequence[Sample], splits: Sequence[str]) -> None:
    """Check that each class has at least as many groups as there are splits.

    Raises:
        ConfigError: a class has fewer groups.
    """
    group_counts = Counter(label for label, _ in {(sample.label, sample.group) for sample in samples})
    for label, count in sorted(group_counts.items()):
        if count < len(splits):
            raise ConfigError(
                f"class {label!r}: has {count} group{'s' * (count != 1)} for {len(splits)} splits "
                f"({', '.join(splits)}); add images of other parts, or remove the class"
            )
