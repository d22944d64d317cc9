"""Trains a detector for `run.py train`: reads images with boxes, and writes a verified file and a report."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commands.box_dataset import BoxListing, check_copies, find_boxes, list_boxes, with_common_labels
from commands.console import print_line
from commands.dataset import drop_unreadable
from commands.images import ReadImage, open_images
from commands.train_detector_report import TrainedDetector, write_detector_report
from commands.train_messages import (
    CROSSING,
    UNGROUPED,
    print_split,
    print_splits,
    warn_of_near_duplicates,
)
from commands.train_report import move_checked, unchecked_file
from commands.train_run import TrainingRun, run_metadata
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from engine.detectors.checkpoint import DetectorCheckpoint
    from engine.finetuning.detection.setup import DetectorModel
    from engine.finetuning.near_duplicates import NearDuplicate
    from engine.finetuning.setup import FinetuneConfig
    from engine.finetuning.splits import Sample
    from pipeline.frames import Image

log = logging.getLogger("recipro-stream")


@dataclass(frozen=True, slots=True)
class SplitOptions:
    """Options for splitting a data set."""

    fractions: dict[str, float]
    """Fraction of each split by its name; the sum is 1."""
    group_pattern: str | None
    group_gap: int | None


@dataclass(frozen=True, slots=True, eq=False)
class _Data:
    """A data set that is divided into splits."""

    listing: BoxListing
    parts: dict[str, list[Sample]]
    left_out: list[str]
    similar: list[NearDuplicate]

    def boxes(self) -> dict[str, list[Any]]:
        """Return the boxes of each image as JSON values, by the image's path."""
        return {
            sample.path: [asdict(truth) for truth in self.listing.truths_of(sample.path, (1, 1))]
            for samples in self.parts.values()
            for sample in samples
        }


def is_trainable_detector(model: str) -> bool:
    """Return whether a model is a detector: a known name or a file of `train`."""
    from engine.detectors.checkpoint import is_detector_file
    from engine.detectors.loader import DETECTORS

    return model in DETECTORS or is_detector_file(model)


def train_detector(folder: Path, output: Path, config: FinetuneConfig, options: SplitOptions, *, resume: bool) -> None:
    """Train a detector on images with boxes, and write its file and a report.

    Args:
        folder: the data set, images with boxes.
        output: the file to write.
        config: settings of the network and the training.
        options: options for splitting the data set.
        resume: whether to continue an interrupted training.

    Raises:
        ConfigError: the data set has no boxes, or cannot be read or split.
        ModelError: the network cannot be built, the training diverged, or the verification of the file failed.
    """
    from engine.finetuning.detection.finetune import finetune_detector
    from engine.finetuning.detection.setup import build_detector
    from engine.finetuning.splits import TEST

    location, read, uri_options = open_images(str(folder))
    found = find_boxes(Path(location))
    if found is None:
        raise ConfigError(
            f"{location}: has no boxes to train the detector {config.model} on; give a folder with a data.yaml (YOLO), "
            "a COCO JSON, or Pascal VOC files, or choose a classifier for a folder of classes"
        )
    listing = list_boxes(*found, options.group_pattern, options.group_gap)
    network = build_detector(config, listing.labels)
    count = len(listing.labels)
    print_line(f"{found[0].upper()} annotations, {count} class{'es' * (count > 1)}: {', '.join(listing.labels)}")
    data, hashes = _divide(listing, network, options, read, config.seed)
    settings = asdict(config) | {"labels": listing.labels, "boxes": data.boxes()}
    run = TrainingRun(output, settings, data.parts, network.net.state_dict(), resume=resume)
    result = run.train(
        lambda callbacks, progress: finetune_detector(
            network, data.parts, lambda path: read(Path(path)), listing.truths_of, callbacks,
            grouped=listing.grouped, look_alikes={pair.path for pair in data.similar}, progress=progress,
        )
    )  # fmt: skip
    file = replace(
        result.checkpoint,
        provenance={**result.checkpoint.provenance, **run_metadata()},
        perceptual_hashes=(*network.trained_hashes, hashes),
    )
    write_checked_detector(output, file, network, read(Path(data.parts[TEST][0].path)))
    test = {sample.path: read(Path(sample.path)).shape for sample in data.parts[TEST]}
    truths = {
        path: truths
        for path, (height, width, _) in test.items()
        if (truths := listing.truths_of(path, (height, width)))
    }
    trained = TrainedDetector(
        location + uri_options, replace(result, checkpoint=file), data.parts, truths, data.left_out, data.similar,
        grouped=listing.grouped,
    )  # fmt: skip
    write_detector_report(output, trained, read)
    run.finish()


def _divide(
    listing: BoxListing, network: DetectorModel, options: SplitOptions, read: ReadImage, seed: int
) -> tuple[_Data, Any]:
    """Split the readable images; return the splits and the perceptual hashes of the training images."""
    from engine.finetuning.given_split import keep_split
    from engine.finetuning.near_duplicates import near_duplicates
    from engine.finetuning.splits import VALIDATION, merge_duplicates, stratified_group_split

    readable, spectra, unreadable = drop_unreadable(listing.samples, read)
    for line in (*listing.left_out, *unreadable):
        log.warning("left out: %s", line)
    check_copies(readable, listing.truths_of)
    samples, copies = merge_duplicates(readable)
    samples = with_common_labels(samples, len(options.fractions))
    if listing.divided:
        fraction = options.fractions[VALIDATION]
        parts, crossing = keep_split(samples, fraction, seed, network.trained_digests, every_class=False)
    else:
        parts, crossing = stratified_group_split(samples, options.fractions, seed, network.trained_digests), []
    _check_parts(parts, listing, crossing)
    trained_before = sum(sample.digest in network.trained_digests for sample in samples)
    print_splits(parts, len(unreadable), copies, trained_before)
    print_split(crossing, divided=listing.divided)
    similar, hashes = near_duplicates(parts, spectra, network.trained_hashes)
    warn_of_near_duplicates(similar)
    if not listing.grouped:
        log.warning("%s", UNGROUPED)
    left_out = [*listing.left_out, *unreadable, *(f"{sample.path}: {CROSSING}" for sample in crossing)]
    return _Data(listing, parts, left_out, similar), hashes


def _check_parts(parts: dict[str, list[Sample]], listing: BoxListing, crossing: Sequence[Sample]) -> None:
    """Check that each class has boxes in the training split; log a warning for the other splits.

    Args:
        parts: the samples by split.
        listing: the data set.
        crossing: samples that were left out because training images show the same part.

    Raises:
        ConfigError: a split is empty, or a class has no box in the training split.
    """
    from engine.finetuning.splits import TRAIN

    for part, samples in parts.items():
        if not samples:
            why = f": each of {len(crossing)} {CROSSING}" if crossing else ""
            raise ConfigError(f"the {part} split has no images{why}; add images of other parts")
        shown = {truth.label for sample in samples for truth in listing.truths_of(sample.path, (1, 1))}
        for label in listing.labels:
            if label in shown:
                continue
            if part == TRAIN:
                raise ConfigError(f"class {label!r}: none of its boxes is in the training split; annotate more images")
            log.warning(
                "class %r: has no box in the %s split, so the figures of this split exclude the class", label, part
            )


def write_checked_detector(output: Path, file: DetectorCheckpoint, model: DetectorModel, image: Image) -> None:
    """Write a detector to a temporary file, verify it against the network in memory, and rename the file.

    Args:
        output: path of the file; an existing file stays until the verification has passed.
        file: content of the file.
        model: the trained network in memory.
        image: test image on which both networks run; uint8 RGB, shape (height, width, 3).

    Raises:
        ModelError: the verification failed; the weights stay in ``unchecked_file(output)``.
        ConfigError: the file cannot be renamed.
    """
    from engine.detectors.checkpoint import save_detector
    from engine.finetuning.detection.verification import check_detector_file

    save_detector(unchecked_file(output), file)
    move_checked(output, "detector", model.name, lambda unchecked: check_detector_file(unchecked, model, image))
