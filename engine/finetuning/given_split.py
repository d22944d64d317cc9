"""Data sets with a split of their own: keeps the split and removes images that are in two parts of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from engine.finetuning.splits import TEST, TRAIN, VALIDATION, Sample, check_groups, stratified_group_split
from pipeline.errors import ConfigError

_ORDER = (TRAIN, VALIDATION, TEST)


def check_given(samples: Sequence[Sample]) -> None:
    """Check that all parts of a split have the same classes.

    Raises:
        ConfigError: a part lacks a class; the message names both.
    """
    labels = {part: {one.label for one in samples if one.split == part} for part in _ORDER}
    for part in (VALIDATION, TEST):
        if not labels[part]:
            continue
        for label in sorted(labels[part] - labels[TRAIN]):
            raise ConfigError(
                f"class {label!r}: has images in the {_in_words(part)} part of the split and none in the training "
                "part; add images there, or remove the class"
            )
        for label in sorted(labels[TRAIN] - labels[part]):
            raise ConfigError(
                f"class {label!r}: has no images in the {_in_words(part)} part of the split; add some, or give the "
                "training folder alone to split its images"
            )
    if not labels[VALIDATION]:
        check_groups([one for one in samples if one.split == TRAIN], [TRAIN, VALIDATION])


def keep_split(
    samples: Sequence[Sample], stopping: float, seed: int, seen: Collection[str] = ()
) -> tuple[dict[str, list[Sample]], list[Sample]]:
    """Return the splits as the user gave them, and the samples that are left out.

    Validation and test samples of a group in the training split are left out, and test samples of a group that the
    network was trained on before. Without a validation split, a fraction of the training split is taken.

    Args:
        samples: all samples, each with its split; copies share a group.
        stopping: fraction of each class for validation, 0 to 1.
        seed: seed of the division of the training split.
        seen: digests of the images of earlier trainings.

    Raises:
        ConfigError: a class has no samples left in a split.
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
    """Return the samples of other groups than these; refuse a class without any."""
    kept = [one for one in samples if one.group not in sources]
    for label in sorted({one.label for one in samples} - {one.label for one in kept}):
        raise ConfigError(
            f"class {label!r}: every image of it in the {_in_words(part)} part belongs to a group of the training "
            "part; add images of other groups"
        )
    return kept


def _in_words(part: str) -> str:
    return {TRAIN: "training", VALIDATION: "validation", TEST: "test"}[part]
