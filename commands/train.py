"""`run.py train`: fine-tunes a classifier on labelled images, or a detector on images with boxes."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from commands import options
from commands.console import check_writable, print_line
from commands.dataset import drop_unreadable, list_samples
from commands.images import open_images
from commands.options import NETWORK, RUN, drop_none, option
from commands.train_detector import SplitOptions, is_trainable_detector, train_detector
from commands.train_messages import (
    CROSSING,
    UNGROUPED,
    print_split,
    print_splits,
    warn_of_label_conflicts,
    warn_of_near_duplicates,
)
from commands.train_report import Trained, files_beside, write_checked, write_report
from commands.train_run import TrainingRun, run_metadata
from commands.wiring.run import bundled_weights
from pipeline.config_loader import validate_config
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.finetuning.setup import FinetuneModel, Precision
    from engine.finetuning.trainer import Balance

log = logging.getLogger("recipro-stream")

TRAINING, SPLIT = "Training", "Data split"
BALANCES = ("sampler", "weights", "none")
PRECISIONS = ("fp32", "bf16")


def train(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="A folder with one folder of images for each class, or a CSV: path,label[,group]. For a detector: "
            "a data.yaml (YOLO), a COCO JSON, or a folder with one of them or with Pascal VOC files.",
        ),
    ],
    model: Annotated[
        str,
        option(
            NETWORK,
            "A name of `run.py models`, any torchvision or timm CNN, a detector (yolox_nano, yolox_tiny, yolox_s, "
            "line_detector), or a file of `train` to continue from.",
        ),
    ],
    output: Annotated[Path, option(RUN, "The file to write: NAME.safetensors.")],
    weights: Annotated[
        str | None,
        option(
            NETWORK,
            "Initial weights: a state dict (.pth, .safetensors), or 'random': from scratch. Default: pretrained.",
        ),
    ] = None,
    input_size: options.InputSize = None,
    fit: options.Fit = None,
    layer: Annotated[str | None, option(NETWORK, "The layer to explain. Default: the last one with a grid.")] = None,
    truncate_at: Annotated[
        str | None, option(NETWORK, "Cut the network after this layer: a finer grid for small objects, and faster.")
    ] = None,
    linear_probe: Annotated[
        bool, option(TRAINING, "Train only the last layer: faster, less accurate.", "--linear-probe")
    ] = False,
    freeze_until: Annotated[str | None, option(TRAINING, "Freeze this layer and all layers before it.")] = None,
    augment: Annotated[
        str | None,
        option(
            TRAINING,
            "Some of hflip, vflip, rotate, crop, colour, blur; or none. [default: hflip,crop,colour] "
            "For a detector: hflip, vflip, colour, blur, scale, mosaic. [default: hflip,colour,scale,mosaic]",
        ),
    ] = None,
    balance: Annotated[
        str, option(TRAINING, "Rare classes: sampler (drawn more often, default), weights (higher loss weight), none.")
    ] = "sampler",
    epochs: Annotated[
        int | None,
        option(TRAINING, "Maximum number of epochs. [default: 24; from scratch: 100; linear probe: 120]", min=1),
    ] = None,
    patience: Annotated[
        int | None,
        option(
            TRAINING,
            "Stop after this number of epochs without improvement. [default: 8; from scratch: 20; linear probe: 25]",
            min=1,
        ),
    ] = None,
    batch: Annotated[int | None, option(TRAINING, "Batch size. [default: 24; linear probe: 64]", min=2)] = None,
    learning_rate: Annotated[
        float | None,
        option(TRAINING, "Peak learning rate. [default: 1e-4; from scratch: 1e-3; linear probe: 3e-3]", min=1e-7),
    ] = None,
    precision: Annotated[str, option(TRAINING, "fp32 (default), or bf16: faster where the CPU supports it.")] = "fp32",
    pictures: Annotated[
        str | None, option(SPLIT, "Glob for the files of a class's folder, such as '*.jpg'. Default: all images.")
    ] = None,
    group_pattern: Annotated[
        str | None,
        option(SPLIT, r"Regular expression for the part in an image's path, such as 'part(\d+)'."),
    ] = None,
    group_gap: Annotated[
        int | None,
        option(SPLIT, "The pattern gives a frame number; frames at most this far apart show the same part.", min=0),
    ] = None,
    test_fraction: Annotated[
        float, option(SPLIT, "Fraction of the groups for the test split. [default: 0.2]", min=0.02, max=0.8)
    ] = 0.2,
    val_fraction: Annotated[
        float, option(SPLIT, "Fraction of the groups for the validation split. [default: 0.15]", min=0.02, max=0.8)
    ] = 0.15,
    seed: Annotated[int, option(RUN, "Seed of the split, the order and the augmentation. [default: 0]", min=0)] = 0,
    threads: options.Threads = None,
    resume: Annotated[
        bool,
        option(RUN, "Continue an interrupted training with the same options.", "--resume/--no-resume"),
    ] = True,
) -> None:
    """Fine-tune a network on your own classes; writes one file for stream, evaluate and export, and a report."""
    from engine.finetuning.finetune import finetune
    from engine.finetuning.given_split import keep_split
    from engine.finetuning.near_duplicates import near_duplicates
    from engine.finetuning.setup import FinetuneConfig, build_model
    from engine.finetuning.splits import TEST, TRAIN, VALIDATION, check_groups, merge_duplicates, stratified_group_split

    _check_options(output, {"--model": model, "--weights": weights or ""}, balance, precision)
    engine = validate_config({}, "command line", {"engine": drop_none({
        "model": model, "input_size": input_size, "fit": fit, "layer": layer, "threads": threads,
    })}).engine  # fmt: skip
    _check_fractions(test_fraction, val_fraction)
    config = FinetuneConfig(
        engine.model, weights or bundled_weights(engine.model), engine.input_size, engine.fit if fit else None,
        engine.layer, truncate_at, linear_probe=linear_probe, freeze_until=freeze_until,
        augment=_words(augment, model),
        balance=cast("Balance", balance), epochs=epochs, batch=batch, learning_rate=learning_rate, patience=patience,
        threads=engine.threads, precision=cast("Precision", precision), seed=seed,
    )  # fmt: skip
    fractions = {TRAIN: 1.0 - test_fraction - val_fraction, VALIDATION: val_fraction, TEST: test_fraction}
    if is_trainable_detector(model):
        options_of_split = SplitOptions(fractions, group_pattern, group_gap)
        train_detector(folder, output, config, options_of_split, resume=resume)
        return
    data, read, uri_options = open_images(str(folder))
    listing = list_samples(Path(data), pictures, group_pattern, group_gap)
    if not listing.divided:
        check_groups(listing.samples, list(fractions))
    network = build_model(config, sorted({sample.label for sample in listing.samples}))
    _print_start(network)
    readable, spectra, unreadable = drop_unreadable(listing.samples, read)
    for line in (*listing.left_out, *unreadable):
        log.warning("left out: %s", line)
    samples, copies = merge_duplicates(readable)
    if listing.divided:
        parts, crossing = keep_split(samples, val_fraction, seed, network.trained_digests)
    else:
        parts, crossing = stratified_group_split(samples, fractions, seed, network.trained_digests), []
    trained_before = sum(sample.digest in network.trained_digests for sample in samples)
    print_splits(parts, len(unreadable), copies, trained_before)
    print_split(crossing, divided=listing.divided)
    similar, hashes = near_duplicates(parts, spectra, network.trained_hashes)
    warn_of_near_duplicates(similar)
    warn_of_label_conflicts(similar)
    if not listing.grouped:
        log.warning("%s", UNGROUPED)
    run = TrainingRun(
        output, asdict(config) | {"labels": network.labels}, parts, network.net.state_dict(), resume=resume
    )
    result = run.train(
        lambda callbacks, progress: finetune(
            network, parts, lambda path: read(Path(path)), callbacks,
            grouped=listing.grouped, look_alikes={pair.path for pair in similar}, progress=progress,
        )
    )  # fmt: skip
    file = replace(
        result.checkpoint,
        provenance={**result.checkpoint.provenance, **run_metadata()},
        perceptual_hashes=(*network.trained_hashes, hashes),
    )
    result = replace(result, checkpoint=file)
    explainer = write_checked(output, file, network, parts[TEST][0].path, read)
    left_out = [*listing.left_out, *unreadable, *(f"{sample.path}: {CROSSING}" for sample in crossing)]
    trained = Trained(data, uri_options, result, parts, left_out, similar, grouped=listing.grouped)
    write_report(output, trained, explainer, read)
    run.finish()


def _check_options(output: Path, inputs: Mapping[str, str], balance: str, precision: str) -> None:
    if output.suffix != ".safetensors":
        raise ConfigError(f"--output {str(output)!r}: must end in .safetensors, such as part.safetensors")
    for option_name, value in inputs.items():
        if Path(value).is_file() and output.absolute().resolve() == Path(value).resolve():
            raise ConfigError(
                f"--output {str(output)!r}: is the file of {option_name}, which would be overwritten; give another name"
            )
    check_writable(output, *files_beside(output).values())
    for name, value, values in (("--balance", balance, BALANCES), ("--precision", precision, PRECISIONS)):
        if value not in values:
            raise ConfigError(f"{name} {value!r}: choose one of {', '.join(values)}")


def _check_fractions(test: float, validation: float) -> None:
    if test + validation > 0.9:
        raise ConfigError(
            f"--test-fraction {test:g} and --val-fraction {validation:g} leave "
            f"{max(0.0, 1 - test - validation):.0%} for training, less than 10%; give smaller fractions"
        )


def _words(text: str | None, model: str) -> tuple[str, ...]:
    from engine.finetuning.dataset import DEFAULT_AUGMENTATIONS
    from engine.finetuning.detection.augmentation import DEFAULT_AUGMENTATIONS as DETECTOR_AUGMENTATIONS

    if text is None:
        return DETECTOR_AUGMENTATIONS if is_trainable_detector(model) else DEFAULT_AUGMENTATIONS
    return () if text.strip() == "none" else tuple(word.strip() for word in text.split(",") if word.strip())


def _print_start(model: FinetuneModel) -> None:
    if not model.parent_checkpoint:
        return
    new_labels = [label for label in model.labels if label not in model.known_labels]
    network = f"{model.name} up to {model.truncate_at}" if model.truncate_at else model.name
    print_line(f"continues from {model.config.model} ({network})")
    print_line(f"  known classes: {', '.join(model.known_labels) or 'none of these classes'}")
    if new_labels:
        print_line(f"  new classes: {', '.join(new_labels)}")
    if not model.trained_digests:
        log.warning(
            "%s does not list its training images: if some of them are in this data set, the test accuracy may be too "
            "high", model.config.model,
        )  # fmt: skip
