"""Keeps the split of a data set that is already split, without images that are in two splits."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from engine.finetuning.splits import TEST, TRAIN, VALIDATION, Sample, check_groups, stratified_group_split
from pipeline.errors import ConfigError

_SPLITS = (TRAIN, VALIDATION, TEST)
_NAMES = {TRAIN: "training", VALIDATION: "validation", TEST: "test"}


def check_given(samples: Sequence[Sample]) -> None:
    """Check that all splits have the same classes.

    Raises:
        ConfigError: a split lacks a class; the message names both.
    """
    labels = {split: {sample.label for sample in samples if sample.split == split} for split in _SPLITS}
    for split in (VALIDATION, TEST):
        if not labels[split]:
            continue
        for label in sorted(labels[split] - labels[TRAIN]):
            raise ConfigError(
                f"class {label!r}: has images in the {_NAMES[split]} split, but none in the training "
                "split; add images there, or remove the class"
            )
        for label in sorted(labels[TRAIN] - labels[split]):
            raise ConfigError(
                f"class {label!r}: has no images in the {_NAMES[split]} split; add some, or use only the "
                "training folder, to split its images automatically"
            )
    if not labels[VALIDATION]:
        check_groups([sample for sample in samples if sample.split == TRAIN], [TRAIN, VALIDATION])


def keep_split(
    samples: Sequence[Sample], validation_fraction: float, seed: int, seen: Collection[str] = (), *,
    every_class: bool = True,
) -> tuple[dict[str, list[Sample]], list[Sample]]:  # fmt: skip
    """Return the user's splits, and the samples that are left out.

    Validation and test samples whose group is in the training split are left out, and test samples whose group was used
    in an earlier training. Without a validation split, a fraction of the training split is used for it.

    Args:
        samples: all samples, each with its split; copies share a group.
        validation_fraction: fraction of each class of the training split, 0 to 1, if there is no validation split.
        seed: seed of the division of the training split.
        seen: digests of the images of earlier training runs.
        every_class: True: each class must keep samples in each of its splits. False: for images with boxes, whose label
            is only one of their classes.

    Raises:
        ConfigError: a class has no samples left in a split.
    """
    by_split: dict[str, list[Sample]] = {
        split: [sample for sample in samples if sample.split == split] for split in _SPLITS
    }

    def without(split: str, groups: Collection[str]) -> list[Sample]:
        remaining = [sample for sample in by_split[split] if sample.group not in groups]
        if every_class:
            _check_remaining(by_split[split], remaining, split)
        return remaining

    seen_groups = {sample.group for sample in samples if sample.digest and sample.digest in seen}
    train_groups = {sample.group for sample in by_split[TRAIN]}
    if by_split[VALIDATION]:
        splits = {TRAIN: by_split[TRAIN], VALIDATION: without(VALIDATION, train_groups)}
    else:
        fractions = {TRAIN: 1.0 - validation_fraction, VALIDATION: validation_fraction}
        splits = stratified_group_split(by_split[TRAIN], fractions, seed)
    used_groups = seen_groups | train_groups | {sample.group for sample in splits[VALIDATION]}
    splits[TEST] = without(TEST, used_groups)
    used_paths = {sample.path for split in splits.values() for sample in split}
    return splits, [sample for sample in samples if sample.path not in used_paths]


def _check_remaining(samples: Sequence[Sample], remaining: Sequence[Sample], split: str) -> None:
    """Raise ConfigError for a class that has no samples left in a split."""
    for label in sorted({sample.label for sample in samples} - {sample.label for sample in remaining}):
        raise ConfigError(
            f"class {label!r}: all of its images in the {_NAMES[split]} split are in groups of the training "
            "split; add images of other groups"
        )
