"""`run.py train`: bring your own parts."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, cast

import typer

from commands import options
from commands.console import print_line
from commands.dataset import drop_unreadable, list_samples
from commands.images import open_images
from commands.options import NETWORK, RUN, drop_none, option
from commands.signals import shutdown_on_signal
from commands.train_report import Trained, files_beside, write_checked, write_report
from commands.wiring.run import bundled_weights
from pipeline.config_loader import validate_config
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from engine.finetuning.near_duplicates import NearDuplicate
    from engine.finetuning.setup import FinetuneModel, Precision
    from engine.finetuning.splits import Sample
    from engine.finetuning.trainer import Balance, EpochStats

log = logging.getLogger("recipro-stream")

LESSONS, DIVISION = "Training", "Data split"
BALANCES = ("sampler", "weights", "none")
PRECISIONS = ("fp32", "bf16")

UNGROUPED: Final = (
    r"which pictures show one part is not known: if several do, what held-out ones measure is too good, and "
    r"nothing is concluded for other parts. Name the part in the pictures' names, --group-pattern 'part(\d+)', or in "
    r"a CSV's column 'group'; where every picture shows a part of its own, --group-pattern '.+' says so"
)
CROSSING: Final = "shows what is learned from, too (a copy, or another picture of its source)"
_NAMED = 3
"""How many pairs of pictures a message names."""


def train(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="A folder of pictures for each class, or a CSV: path,label[,group]."),
    ],
    model: Annotated[
        str, option(NETWORK, "A name of `run.py models`, any torchvision or timm CNN, or what `train` wrote, to go on.")
    ],
    output: Annotated[Path, option(RUN, "The file to write: NAME.safetensors.")],
    weights: Annotated[
        str | None, option(NETWORK, "Where it starts: a state dict (.pth, .safetensors). Default: pretrained ones.")
    ] = None,
    input_size: options.InputSize = None,
    fit: options.Fit = None,
    layer: Annotated[str | None, option(NETWORK, "Where it will be explained. Default: the last grid.")] = None,
    truncate_at: Annotated[
        str | None, option(NETWORK, "The network ends with this layer: a finer grid for small things, and faster.")
    ] = None,
    linear_probe: Annotated[
        bool, option(LESSONS, "Only the last layer learns: fast, less able.", "--linear-probe")
    ] = False,
    freeze_until: Annotated[str | None, option(LESSONS, "This layer, and all before it, stay as they are.")] = None,
    augment: Annotated[
        str, option(LESSONS, "Of hflip, vflip, rotate, crop, colour, blur; or none. [default: hflip,crop,colour]")
    ] = "hflip,crop,colour",
    balance: Annotated[
        str, option(LESSONS, "Rare classes: sampler (drawn more often, default), weights (count more), none.")
    ] = "sampler",
    epochs: Annotated[int | None, option(LESSONS, "At the most. [default: 24; frozen: 120]", min=1)] = None,
    patience: Annotated[
        int | None, option(LESSONS, "Epochs without improvement. [default: 8; frozen: 25]", min=1)
    ] = None,
    batch: Annotated[int | None, option(LESSONS, "Pictures a step. [default: 24; frozen: 64]", min=2)] = None,
    learning_rate: Annotated[
        float | None, option(LESSONS, "The highest. [default: 1e-4; frozen: 3e-3]", min=1e-7)
    ] = None,
    precision: Annotated[str, option(LESSONS, "fp32 (default), or bf16: faster where the CPU has it.")] = "fp32",
    pictures: Annotated[
        str | None, option(DIVISION, "Which files of a class's folder, such as '*.jpg'. Default: every picture.")
    ] = None,
    group_pattern: Annotated[
        str | None,
        option(
            DIVISION, r"What pictures of one part have in common in their names: a regular expression, 'part(\d+)'."
        ),
    ] = None,
    group_gap: Annotated[
        int | None, option(DIVISION, "... a frame number, and one part's follow each other this closely.", min=0)
    ] = None,
    test_fraction: Annotated[
        float, option(DIVISION, "Share that only examines. [default: 0.2]", min=0.02, max=0.8)
    ] = 0.2,
    val_fraction: Annotated[
        float, option(DIVISION, "Share that tells when to stop. [default: 0.15]", min=0.02, max=0.8)
    ] = 0.15,
    seed: Annotated[int, option(RUN, "Of division, order and changes. [default: 0]", min=0)] = 0,
    threads: options.Threads = None,
) -> None:
    """Teach a network your own classes; leaves one file that stream, evaluate and export run, and a report."""
    from engine.finetuning.finetune import Callbacks, finetune
    from engine.finetuning.given_split import keep_split
    from engine.finetuning.near_duplicates import near_duplicates
    from engine.finetuning.setup import FinetuneConfig, build_model
    from engine.finetuning.splits import TEST, TRAIN, VALIDATION, check_groups, merge_duplicates, stratified_group_split

    _check_words(output, model, balance, precision)
    engine = validate_config({}, "command line", {"engine": drop_none({
        "model": model, "input_size": input_size, "fit": fit, "layer": layer, "threads": threads,
    })}).engine  # fmt: skip
    _check_fractions(test_fraction, val_fraction)
    config = FinetuneConfig(
        engine.model, weights or bundled_weights(engine.model), engine.input_size, engine.fit if fit else None,
        engine.layer, truncate_at, linear_probe=linear_probe, freeze_until=freeze_until, augment=_words(augment),
        balance=cast("Balance", balance), epochs=epochs, batch=batch, learning_rate=learning_rate, patience=patience,
        threads=engine.threads, precision=cast("Precision", precision), seed=seed,
    )  # fmt: skip
    fractions = {TRAIN: 1.0 - test_fraction - val_fraction, VALIDATION: val_fraction, TEST: test_fraction}
    place, read, options_given = open_images(str(folder))
    listing = list_samples(Path(place), pictures, group_pattern, group_gap)
    named = listing.samples
    if not listing.divided:
        check_groups(named, list(fractions))
    pupil = build_model(config, sorted({one.label for one in named}))
    _print_start(pupil)
    decoded, spectra, unread = drop_unreadable(named, read)
    for line in (*listing.left_out, *unread):
        log.warning("left out: %s", line)
    samples, copies = merge_duplicates(decoded)
    if listing.divided:
        parts, crossing = keep_split(samples, val_fraction, seed, pupil.trained_digests)
    else:
        parts, crossing = stratified_group_split(samples, fractions, seed, pupil.trained_digests), []
    _print_splits(parts, len(unread), copies, sum(one.digest in pupil.trained_digests for one in samples))
    _tell_split(crossing, divided=listing.divided)
    similar, known = near_duplicates(parts, spectra, pupil.trained_hashes)
    _tell_similar(similar)
    _tell_mixed(similar)
    if not listing.grouped:
        log.warning("%s", UNGROUPED)
    begun = threading.Event()
    begun.set()
    with shutdown_on_signal(begun) as stop:
        callbacks = Callbacks(_print_features, _print_epoch, stop.is_set)
        result = finetune(
            pupil, parts, lambda path: read(Path(path)), callbacks,
            grouped=listing.grouped, look_alikes={one.path for one in similar},
        )  # fmt: skip
        if stop.is_set() and result.epochs:
            log.warning("ended early: the best of %d epochs is written", len(result.epochs))
    if not result.epochs:
        raise ConfigError("ended before the first epoch: nothing was learned, nothing is written")
    made = {"command": _command(), "date": datetime.now().astimezone().date().isoformat()}
    file = replace(
        result.checkpoint, provenance={**result.checkpoint.provenance, **made}, looks=(*pupil.trained_hashes, known)
    )
    result = replace(result, checkpoint=file)
    explainer = write_checked(output, file, pupil, parts[TEST][0].path, read)
    left_out = [*listing.left_out, *unread, *(f"{one.path}: {CROSSING}" for one in crossing)]
    trained = Trained(place, options_given, result, parts, left_out, similar, grouped=listing.grouped)
    write_report(output, trained, explainer, read)


def _check_words(output: Path, model: str, balance: str, precision: str) -> None:
    if output.suffix != ".safetensors":
        raise ConfigError(f"--output {str(output)!r}: must end in .safetensors, such as part.safetensors")
    if Path(model).exists() and output.absolute().resolve() == Path(model).resolve():
        raise ConfigError(f"--output {str(output)!r}: is what it begins with, which would be lost; give another name")
    home = next(p for p in output.absolute().parents if p.exists())
    own = (output, *files_beside(output).values())
    if any(one.is_dir() for one in own) or not home.is_dir() or not os.access(home, os.W_OK):
        raise ConfigError(f"--output {str(output)!r}: cannot be written; name a file in a folder of yours")
    for name, word, words in (("--balance", balance, BALANCES), ("--precision", precision, PRECISIONS)):
        if word not in words:
            raise ConfigError(f"{name} {word!r}: choose of {', '.join(words)}")


def _check_fractions(held_out: float, stopping: float) -> None:
    if held_out + stopping > 0.9:
        raise ConfigError(
            f"--test-fraction {held_out:g} and --val-fraction {stopping:g} leave "
            f"{max(0.0, 1 - held_out - stopping):.0%} to "
            "learn from; take less for them"
        )


def _words(text: str) -> tuple[str, ...]:
    return () if text.strip() == "none" else tuple(word.strip() for word in text.split(",") if word.strip())


def _print_start(model: FinetuneModel) -> None:
    if not model.parent_checkpoint:
        return
    fresh = [label for label in model.labels if label not in model.known_labels]
    print_line(
        f"goes on from {model.config.model} ({model.name}{f' until {model.truncate_at}' if model.truncate_at else ''})"
    )
    print_line(f"  knows already: {', '.join(model.known_labels) or 'none of these classes'}")
    if fresh:
        print_line(f"  new: {', '.join(fresh)}")
    if not model.trained_digests:
        log.warning(
            "%s does not say which pictures it learned from: if some of them are here, what is measured on held-out "
            "ones may be too good", model.config.model,
        )  # fmt: skip


def _print_splits(parts: Mapping[str, Sequence[Sample]], unread: int, copies: int, seen: int) -> None:
    for part, several in parts.items():
        sources = len({one.group for one in several})
        print_line(f"{part.replace('_', '-'):9} {len(several):5} pictures of {sources} sources")
    if unread:
        print_line(f"left out  {unread:5} that do not decode")
    if copies:
        print_line(
            f"copies    {copies:5} are another picture once more, pixel by pixel; they count as one source with it"
        )
    if seen:
        print_line(f"seen      {seen:5} it learned from before; none of them examines it")


def _tell_split(crossing: Sequence[Sample], *, divided: bool) -> None:
    if divided:
        print_line("The folders are a split already: it is kept, and --test-fraction counts for nothing.")
    if crossing:
        first = crossing[0].path
        log.warning("%d pictures are left out of the examination, %s for one: %s", len(crossing), first, CROSSING)


def _tell_similar(similar: Sequence[NearDuplicate]) -> None:
    """Name pictures that look nearly like one in another part."""
    if not similar:
        return
    examining = sum(one.split == "test" for one in similar)
    pairs = "; ".join(f"{one.path} and {one.learned}" for one in similar[:_NAMED])
    log.warning(
        "%d of the held-out and %d of the stopping pictures look nearly like one that is learned from: %s%s. If they "
        "show the same part, what is measured is too good: say which pictures belong together, by --group-pattern or "
        "by a CSV's column 'group'", examining, len(similar) - examining, pairs,
        f"; and {len(similar) - _NAMED} more, in the report" if len(similar) > _NAMED else "",
    )  # fmt: skip


def _tell_mixed(similar: Sequence[NearDuplicate]) -> None:
    """Name pictures that look nearly alike and are of two classes."""
    mixed = [one for one in similar if one.labels[0] != one.labels[1]]
    if mixed:
        pairs = "; ".join(f"{one.path} ({one.labels[0]}) and {one.learned} ({one.labels[1]})" for one in mixed[:_NAMED])
        log.warning(
            "%d of these look nearly like one of another class: %s%s; look whether both are filed right",
            len(mixed), pairs, f"; and {len(mixed) - _NAMED} more, in the report" if len(mixed) > _NAMED else "",
        )  # fmt: skip


def _print_features(done: int, todo: int) -> None:
    if done % 160 < 16 or done == todo:
        print_line(f"features: {done} of {todo} pictures")


def _print_epoch(at: EpochStats) -> None:
    if at.epochs <= 24 or at.epoch % 10 == 0:
        print_line(
            f"{at.stage + ', ' if at.stage else ''}epoch {at.epoch} of {at.epochs}: loss {at.loss:.3f}, "
            f"on stopping pictures {at.validation_loss:.3f}, their mean recall {at.validation_recall:.1%}"
            f"{' (best)' if at.best else ''}, {at.seconds:.0f} s"
        )


def _command() -> str:
    return shlex.join(["uv", "run", "run.py", *sys.argv[1:]])
