"""`run.py explain-archive`: explains large archives of photos and videos and writes Parquet partitions."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from commands import options
from commands.archive.inputs import NOT_ENTERED_REMEDY, ArchiveFile, Found, divided, find_files, shards_of
from commands.archive.stores import is_address, local_path
from commands.console import EXIT_INTERRUPTED, print_line
from commands.evaluation_inputs import file_digests
from commands.json_input import read_json
from commands.options import NETWORK, RUN, drop_none, option
from pipeline.config import Config
from pipeline.config_loader import validate_config
from pipeline.errors import ConfigError, DataLossError

if TYPE_CHECKING:
    from commands.archive.folders import OutputFolder
    from commands.archive.run import RunCounts

log = logging.getLogger("recipro-stream")

SETTINGS: Final = "settings.json"
SUMMARY: Final = "summary.json"
PART_SECONDS: Final = 60.0
MAX_LISTED: Final = 1000
"""Maximum number of failures in the summary; the partitions contain all failures."""


def explain_archive(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT...", help="Folders, globs, @FILE lists, photos, videos; s3://BUCKET/... too."),
    ],
    output: Annotated[
        str,
        option(RUN, "A folder or s3://BUCKET/PATH. A run with the same settings continues there."),
    ],
    model: options.Model,
    weights: options.Weights = None,
    labels: options.Labels = None,
    layer: options.Layer = None,
    kernel: options.Kernel = None,
    input_size: options.InputSize = None,
    fit: options.Fit = None,
    backend: Annotated[str | None, option(NETWORK, "auto (default) or a name of `run.py doctor`.")] = None,
    device: Annotated[str | None, option(NETWORK, "auto (default), cpu, cuda or cuda:N.")] = None,
    threads: options.Threads = None,
    every: Annotated[int, option(RUN, "Explain every Nth frame of a video. [default: 1]", min=1)] = 1,
    photos: Annotated[
        int, option(RUN, "Maximum number of photos per partition. [default: 256]", min=1, max=100_000)
    ] = 256,
    part_seconds: Annotated[
        float,
        option(RUN, f"Length of the parts of long videos; 0: undivided. [default: {PART_SECONDS:g}]", min=0),
    ] = PART_SECONDS,
    overlays: Annotated[
        bool, option(RUN, "Also draw each photo and video, into the folder overlays/ of the output.", "--overlays")
    ] = False,
    workers: options.Workers = 1,
) -> None:
    """Explain photos and videos; writes Parquet partitions with the columns of a log."""
    from commands.archive.folders import open_folder
    from commands.archive.run import ArchiveRun
    from commands.archive.worker import ArchiveSettings
    from commands.ray_settings import require_ray
    from stream.paths import shown

    if workers > 1:
        require_ray("--workers", "omit --workers")
    engine = {
        "model": model, "weights": weights, "labels": labels, "layer": layer, "kernel": kernel, "fit": fit,
        "input_size": input_size, "backend": backend, "device": device, "threads": threads,
    }  # fmt: skip
    config = validate_config({}, "command line", {"engine": drop_none(engine)})
    found = find_files(inputs)
    if found.others:
        kinds = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in found.others.most_common(5))
        log.warning("left out: %d files that are neither photos nor videos: %s", found.others.total(), kinds)
    if found.not_entered:
        log.warning(
            "left out: %d folders, such as %s; %s",
            len(found.not_entered), shown(found.not_entered[0]), NOT_ENTERED_REMEDY,
        )  # fmt: skip
    settings = _settings(config, every, draws=overlays)
    output = (
        output if is_address(output) else str(Path(local_path(output)).absolute())
    )  # workers have another working directory
    folder, identity = open_folder(output), json.dumps(settings, sort_keys=True)
    with folder.locked():
        _keep_settings(folder, settings)
        waiting, partial = _waiting(found, folder)
        folder.remove(SUMMARY)
        run = ArchiveRun(folder, ArchiveSettings(config, output, identity, every, part_seconds, overlays), partial)
        _finish(folder, run.explain(shards_of(waiting, identity, photos), workers))


def _settings(config: Config, every: int, *, draws: bool) -> dict[str, Any]:
    """Return all settings that change the explanations of a file."""
    engine = config.engine.model_dump(mode="json", exclude={"threads", "cache", "batch", "device"}, exclude_none=True)
    return {
        "engine": engine,
        "every": every,
        "files": file_digests(config.engine.model, config.engine.weights, config.engine.labels),
        **({"overlays": True} if draws else {}),
    }


def _keep_settings(folder: OutputFolder, settings: Mapping[str, Any]) -> None:
    """Write the settings to a new folder; raise ``ConfigError`` if the folder has other settings."""
    text = folder.read_text(SETTINGS)
    if text is None:
        folder.write_text(SETTINGS, json.dumps(settings, indent=1) + "\n")
        return
    earlier = read_json(text, f"{folder.shown}/{SETTINGS}")
    if earlier != json.loads(json.dumps(settings)):
        changed = ", ".join(sorted(_differences(earlier, settings)))
        raise ConfigError(
            f"--output {folder.shown}: holds explanations with other settings ({changed}); give another "
            "folder, or the same settings"
        )


def _differences(earlier: Any, settings: Mapping[str, Any]) -> set[str]:  # noqa: ANN401 - JSON of a file
    flat = [
        {**value.get("engine", {}), **{key: value.get(key) for key in ("every", "files", "overlays")}}
        for value in (earlier if isinstance(earlier, dict) else {}, settings)
    ]
    return {key for key in flat[0] | flat[1] if flat[0].get(key) != flat[1].get(key)}


def _waiting(found: Found, folder: OutputFolder) -> tuple[list[ArchiveFile], dict[str, list[str]]]:
    """Return the unexplained files, and the names of existing partitions of incomplete videos, by path."""
    from commands.archive.overlays import remove_unfinished_overlays
    from commands.archive.partitions import SUFFIX, complete_partitions, read_partitions
    from stream.paths import shown

    complete, incomplete = complete_partitions(read_partitions(folder))
    explained = dict.fromkeys(file for partition in complete for file in partition.files)
    for path in {file.path for file in explained} & incomplete.keys():
        for superfluous in incomplete.pop(path):  # the run was killed after it had explained the whole video
            folder.remove(superfluous.name + SUFFIX)
    left = {each.name for parts in (complete, *incomplete.values()) for each in parts}
    remove_unfinished_overlays(folder, left)
    waiting, changed = divided(found.files, explained)
    if len(waiting) < len(found.files):
        print_line(f"{len(found.files) - len(waiting)} of {len(found.files)} files were explained before; continuing.")
    if changed:
        log.warning(
            "%d files have changed since they were explained, such as %s: their rows show the earlier content; give "
            "another --output to explain them again", len(changed), shown(changed[0].path),
        )  # fmt: skip
    return waiting, {path: [each.name for each in parts] for path, parts in incomplete.items()}


def _finish(folder: OutputFolder, summary: RunCounts) -> None:
    """Print the summary; write it to a file if all files were tried.

    Raises:
        typer.Exit: the run was interrupted.
        DataLossError: the workers of a shard ended repeatedly; its files have no rows.
    """
    from commands.archive.partitions import read_partitions
    from overlays.wire.text import escaped
    from stream.paths import shown

    rate = summary.explained / summary.wall_seconds if summary.wall_seconds else 0.0
    print_line(
        f"{summary.files} files with {summary.explained} images explained, {rate:.1f} images/s; "
        f"{summary.failed} files could not be read to their end"
    )
    for lost in summary.lost:
        path, others = shown(lost.shard.files[0].path), len(lost.shard.files) - 1
        log.warning("not explained: %s and %d other files: %s", path, others, lost.reason)
    if summary.done < summary.shards:
        print_line(f"interrupted after {summary.done} of {summary.shards} partitions; the same command continues")
        raise typer.Exit(EXIT_INTERRUPTED)
    if summary.lost:
        files = sum(len(lost.shard.files) for lost in summary.lost)
        raise DataLossError(
            f"{folder.shown}: {files} files of {len(summary.lost)} partitions were not explained, because "
            "their worker ended; look for a lack of memory or a damaged file, and give the same command again"
        )
    partitions = read_partitions(folder)
    failures = [failure for partition in partitions for failure in partition.failures]
    content = {
        "partitions": len(partitions),
        "files": len({file.path for partition in partitions for file in partition.files}),
        "images": sum(partition.images for partition in partitions),
        "failed": len(failures),
        "failures": [{"file": escaped(path), "reason": reason} for path, reason in failures[:MAX_LISTED]],
        "last_run": {
            "files": summary.files,
            "images": summary.explained,
            "images_per_second": round(rate, 2),
            "seconds": round(summary.wall_seconds, 3),
            "worker_seconds": round(summary.busy_seconds, 3),
            "worker_cpu_seconds": round(summary.cpu_seconds, 3),
        },
    }
    folder.write_text(SUMMARY, json.dumps(content, indent=1) + "\n")
    query = f"FROM '{folder.shown}/*.parquet' SELECT source, label, score"
    print_line(f'read them: duckdb -c "{query}"')
