"""`run.py explain-archive`: explains photos and videos by the hundred thousand into Parquet partitions."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from commands import options
from commands.archive.inputs import ArchiveFile, Found, Shard, divided, find_files, shards_of
from commands.console import print_line, progress_bar, relative_path, write_text
from commands.evaluation_inputs import file_digests
from commands.json_input import read_json
from commands.options import NETWORK, RUN, drop_none, option
from commands.signals import shutdown_on_signal
from pipeline.atomic import remove_unfinished
from pipeline.config import Config
from pipeline.config_loader import validate_config
from pipeline.errors import ConfigError, DataLossError

if TYPE_CHECKING:
    from commands.archive.pool import LostShard
    from commands.archive.worker import ShardResult

log = logging.getLogger("recipro-stream")

SETTINGS: Final = "settings.json"
SUMMARY: Final = "summary.json"
MAX_LISTED: Final = 1000
"""Maximum number of failures that the summary names; all are in the partitions."""


def explain_archive(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Folders, globs, .txt lists, photos and videos.")
    ],
    output: Annotated[Path, option(RUN, "A folder for the partitions. A run with the same settings continues there.")],
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
    every: Annotated[int, option(RUN, "Explain one of so many frames of a video. [default: 1]", min=1)] = 1,
    photos: Annotated[int, option(RUN, "Photos of one partition. [default: 256]", min=1, max=100_000)] = 256,
    workers: Annotated[
        int, option(RUN, "Processes of this machine; above 1 they are started by Ray. [default: 1]", min=1)
    ] = 1,
) -> None:
    """Explain photos and videos; writes Parquet partitions with the columns of a log."""
    from commands.archive.partitions import locked
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
            "left out: %d folders, such as %s; name linked folders as inputs of their own",
            len(found.not_entered), shown(found.not_entered[0]),
        )  # fmt: skip
    settings = _settings(config, every)
    output = output.absolute()  # workers may have another working directory
    output.mkdir(parents=True, exist_ok=True)
    with locked(output):
        _keep_settings(output / SETTINGS, settings)
        remove_unfinished(output)
        waiting = _waiting(found, output)
        shards = shards_of(waiting, json.dumps(settings, sort_keys=True), photos)
        (output / SUMMARY).unlink(missing_ok=True)
        summary = _run(config, output, every, shards, workers)
        _finish(output, summary)


def _settings(config: Config, every: int) -> dict[str, Any]:
    """Return all that the explanations of a file depend on."""
    engine = config.engine.model_dump(mode="json", exclude={"threads", "cache", "batch", "device"}, exclude_none=True)
    return {
        "engine": engine,
        "every": every,
        "files": file_digests(config.engine.model, config.engine.weights, config.engine.labels),
    }


def _keep_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of a new folder; refuse a folder with other ones."""
    if not path.exists():
        write_text(path, json.dumps(settings, indent=1) + "\n")
        return
    earlier = read_json(path.read_text("utf-8"), str(path))
    if earlier != json.loads(json.dumps(settings)):
        changed = ", ".join(sorted(_differences(earlier, settings)))
        raise ConfigError(
            f"--output {relative_path(path.parent)}: holds explanations with other settings ({changed}); give another "
            "folder, or the same settings"
        )


def _differences(earlier: Any, settings: Mapping[str, Any]) -> set[str]:  # noqa: ANN401 - JSON of a file
    flat = [
        {**value.get("engine", {}), "every": value.get("every"), "files": value.get("files")}
        for value in (earlier if isinstance(earlier, dict) else {}, settings)
    ]
    return {key for key in flat[0] | flat[1] if flat[0].get(key) != flat[1].get(key)}


def _waiting(found: Found, output: Path) -> list[ArchiveFile]:
    from commands.archive.partitions import read_partitions
    from stream.paths import shown

    explained = [file for partition in read_partitions(output) for file in partition.files]
    waiting, changed = divided(found.files, explained)
    if len(waiting) < len(found.files):
        print_line(f"{len(found.files) - len(waiting)} of {len(found.files)} files were explained before; continuing.")
    if changed:
        log.warning(
            "%d files have changed since they were explained, such as %s: their rows show the earlier content; give "
            "another --output to explain them again", len(changed), shown(changed[0].path),
        )  # fmt: skip
    return waiting


@dataclass(slots=True)
class _Summary:
    """Counts of a run."""

    shards: int
    done: int = 0
    files: int = 0
    explained: int = 0
    busy_seconds: float = 0.0
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    failed: int = 0
    lost: list[LostShard] = field(default_factory=list)

    def add(self, result: ShardResult | LostShard) -> None:
        from commands.archive.pool import LostShard

        self.done += 1
        if isinstance(result, LostShard):
            self.lost.append(result)
            return
        self.files += result.files
        self.explained += result.explained
        self.busy_seconds += result.seconds
        self.cpu_seconds += result.cpu_seconds
        self.failed += result.failed


def _run(config: Config, output: Path, every: int, shards: Sequence[Shard], workers: int) -> _Summary:
    from commands.archive.worker import ShardResult

    summary = _Summary(len(shards))
    started = threading.Event()
    started.set()
    began = time.perf_counter()
    with shutdown_on_signal(started) as stop, progress_bar() as progress:
        bar = progress.add_task("files", total=sum(len(shard.files) for shard in shards))
        for result in _results(config, output, every, shards, workers, stop):
            summary.add(result)
            progress.advance(bar, result.files if isinstance(result, ShardResult) else len(result.shard.files))
    summary.wall_seconds = time.perf_counter() - began
    return summary


def _results(
    config: Config, output: Path, every: int, shards: Sequence[Shard], workers: int, stop: threading.Event
) -> Iterator[ShardResult | LostShard]:
    from commands.archive.pool import explain_by_ray, explain_here

    if not shards:
        return iter(())
    if workers == 1:
        return explain_here(config, output, every, shards, stop)
    return explain_by_ray(config, output, every, shards, stop, workers=workers)


def _finish(output: Path, summary: _Summary) -> None:
    """Print and write the summary; a file of it says that all files were tried.

    Raises:
        DataLossError: workers were lost again and again; the files of their shards have no rows.
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
        log.warning("%s and %d more: %s", shown(lost.shard.files[0].path), len(lost.shard.files) - 1, lost.reason)
    if summary.done < summary.shards:
        print_line(f"interrupted after {summary.done} of {summary.shards} partitions; the same command continues")
        return
    if summary.lost:
        files = sum(len(lost.shard.files) for lost in summary.lost)
        raise DataLossError(
            f"{relative_path(output)}: {files} files of {len(summary.lost)} partitions were not explained, because "
            "their worker ended; look for a lack of memory or a damaged file, and give the same command again"
        )
    partitions = read_partitions(output)
    failures = [failure for partition in partitions for failure in partition.failures]
    content = {
        "partitions": len(partitions),
        "files": sum(len(partition.files) for partition in partitions),
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
    write_text(output / SUMMARY, json.dumps(content, indent=1) + "\n")
    query = f"FROM '{relative_path(output)}/*.parquet' SELECT source, label, score"
    print_line(f'read them: duckdb -c "{query}"')
