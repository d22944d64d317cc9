"""Prints and logs the messages of a training."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from commands.console import print_line

if TYPE_CHECKING:
    from engine.finetuning.near_duplicates import NearDuplicate
    from engine.finetuning.splits import Sample
    from engine.finetuning.trainer import EpochStats

log = logging.getLogger("recipro-stream")

UNGROUPED: Final = (
    r"it is not known which images show the same part. If several do, the test accuracy is too high, and it does not "
    r"hold for other parts. Give the part by the images' names, --group-pattern 'part(\d+)', or by the column 'group' "
    r"of a CSV; where every image shows another part, give --group-pattern '.+'"
)
CROSSING: Final = "shows a part that training images show (a copy, or another image of the same group)"
MAX_PAIRS: Final = 3
"""Maximum number of image pairs in a message."""


def print_splits(parts: Mapping[str, Sequence[Sample]], unreadable: int, copies: int, trained_before: int) -> None:
    """Print the sizes of the splits, and the numbers of unreadable, copied and previously trained images.

    Args:
        parts: the samples by split.
        unreadable: number of images that cannot be decoded.
        copies: number of images with the same pixels as another image.
        trained_before: number of images of an earlier training.
    """
    for part, samples in parts.items():
        groups = len({sample.group for sample in samples})
        print_line(f"{part:9} {len(samples):5} images of {groups} groups")
    if unreadable:
        print_line(f"left out  {unreadable:5} images that cannot be decoded")
    if copies:
        print_line(f"copies    {copies:5} images have the same pixels as another one, and belong to its group")
    if trained_before:
        print_line(f"seen      {trained_before:5} images of an earlier training; none of them is in the test split")


def print_split(crossing: Sequence[Sample], *, divided: bool) -> None:
    """Print that the user's split is kept; log a warning about images that are left out.

    Args:
        crossing: samples that were left out because training images show the same part.
        divided: whether the data set has its own split.
    """
    if divided:
        print_line("The folders are split already: the split is kept, and --test-fraction has no effect.")
    if crossing:
        first = crossing[0].path
        log.warning("%d images are left out of the test split, such as %s: %s", len(crossing), first, CROSSING)


def warn_of_near_duplicates(similar: Sequence[NearDuplicate]) -> None:
    """Log a warning about images that are near duplicates of an image in the training split."""
    if not similar:
        return
    in_test = sum(pair.split == "test" for pair in similar)
    pairs = "; ".join(f"{pair.path} and {pair.learned}" for pair in similar[:MAX_PAIRS])
    log.warning(
        "%d test images and %d validation images are near duplicates of a training image: %s%s. If they show the same "
        "part, "
        "the test accuracy is too high: give the images of a part one group, by --group-pattern or by the column "
        "'group' of a CSV", in_test, len(similar) - in_test, pairs,
        f"; and {len(similar) - MAX_PAIRS} more, in the report" if len(similar) > MAX_PAIRS else "",
    )  # fmt: skip


def warn_of_label_conflicts(similar: Sequence[NearDuplicate]) -> None:
    """Log a warning about near duplicates with different labels."""
    conflicts = [pair for pair in similar if pair.labels[0] != pair.labels[1]]
    if conflicts:
        pairs = "; ".join(
            f"{pair.path} ({pair.labels[0]}) and {pair.learned} ({pair.labels[1]})" for pair in conflicts[:MAX_PAIRS]
        )
        log.warning(
            "%d of these images are near duplicates of an image of another class: %s%s; check the labels of both",
            len(conflicts), pairs,
            f"; and {len(conflicts) - MAX_PAIRS} more, in the report" if len(conflicts) > MAX_PAIRS else "",
        )  # fmt: skip


def print_features(done: int, total: int) -> None:
    """Print the progress of the feature computation, about every 160 images and at the end."""
    if done % 160 < 16 or done == total:
        print_line(f"features: {done} of {total} images")


def print_epoch(stats: EpochStats) -> None:
    """Print the results of an epoch; if there are more than 24 epochs, print every tenth."""
    if stats.epochs <= 24 or stats.epoch % 10 == 0:
        print_line(
            f"{stats.stage + ', ' if stats.stage else ''}epoch {stats.epoch} of {stats.epochs}: loss {stats.loss:.3f}, "
            f"validation loss {stats.validation_loss:.3f}, validation {stats.measure} {stats.validation_score:.1%}"
            f"{' (best)' if stats.best else ''}, {stats.seconds:.0f} s"
        )


def command_line() -> str:
    """Return the command line of this process."""
    return shlex.join(["uv", "run", "run.py", *sys.argv[1:]])
