"""Parts of a data set that its maker has divided already: kept as they are, and checked for pictures in two parts."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from engine.finetuning.splits import TEST, TRAIN, VALIDATION, Sample, check_groups, stratified_group_split
from pipeline.errors import ConfigError

_ORDER = (TRAIN, VALIDATION, TEST)


def check_given(samples: Sequence[Sample]) -> None:
    """Refuse a split in which a part lacks a class, or has one that is not learned.

    Raises:
        ConfigError: it names the class and the part.
    """
    labels = {part: {one.label for one in samples if one.split == part} for part in _ORDER}
    for part in (VALIDATION, TEST):
        if not labels[part]:
            continue
        for label in sorted(labels[part] - labels[TRAIN]):
            raise ConfigError(
                f"class {label!r}: has pictures in the {_in_words(part)} part of the split and none in the training "
                "part, so nothing can be learned about it; add pictures there, or leave the class out"
            )
        for label in sorted(labels[TRAIN] - labels[part]):
            raise ConfigError(
                f"class {label!r}: has no pictures in the {_in_words(part)} part of the split; add some, or give the "
                "training folder alone: then its pictures are divided anew"
            )
    if not labels[VALIDATION]:
        check_groups([one for one in samples if one.split == TRAIN], [TRAIN, VALIDATION])


def keep_split(
    samples: Sequence[Sample], stopping: float, seed: int, seen: Collection[str] = ()
) -> tuple[dict[str, list[Sample]], list[Sample]]:
    """Return the parts as they were given, and the pictures that are left out of them.

    A picture of a source that the network learns from, or has learned from before, does not examine it, and does not
    tell when to stop: it is left out. Where no stopping part was given, a share of the training part is taken.

    Args:
        samples: all of them, each with its part; copies share a source.
        stopping: the share of each class.
        seed: of the division of the training part.
        seen: digests of pictures that the network has learned from before.

    Raises:
        ConfigError: a class has nothing left in a part.
    """
    given: dict[str, list[Sample]] = {part: [one for one in samples if one.split == part] for part in _ORDER}
    seen_before = {one.group for one in samples if one.digest and one.digest in seen}
    learned = {one.group for one in given[TRAIN]}
    if given[VALIDATION]:
        parts = {TRAIN: given[TRAIN], VALIDATION: _without(given[VALIDATION], learned, VALIDATION)}
    else:
        parts = stratified_group_split(given[TRAIN], {TRAIN: 1.0 - stopping, VALIDATION: stopping}, seed)
    used = seen_before | learned | {one.group for one in parts[VALIDATION]}
    parts[TEST] = _without(given[TEST], used, TEST)
    kept = {one.path for several in parts.values() for one in several}
    return parts, [one for one in samples if one.path not in kept]


def _without(samples: Sequence[Sample], sources: Collection[str], part: str) -> list[Sample]:
    """Return the samples of other sources than these; refuse where a class has none left."""
    kept = [one for one in samples if one.group not in sources]
    for label in sorted({one.label for one in samples} - {one.label for one in kept}):
        raise ConfigError(
            f"class {label!r}: every picture of it in the {_in_words(part)} part shows what is learned from, too; add "
            "pictures of other parts"
        )
    return kept


def _in_words(part: str) -> str:
    return {TRAIN: "training", VALIDATION: "validation", TEST: "test"}[part]
