"""Runs the shards of an archive: counts the results, divides long videos, and records lost shards."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from commands.archive.folders import OutputFolder
from commands.archive.inputs import Shard
from commands.archive.overlays import OVERLAYS
from commands.archive.partitions import SUFFIX
from commands.archive.pool import LostShard, Outcome, explain_by_ray, explain_here
from commands.archive.worker import ArchiveSettings, Division, ShardResult
from commands.console import progress_bar
from commands.signals import shutdown_on_signal


@dataclass(slots=True)
class RunCounts:
    """Counts and times of a run."""

    shards: int = 0
    """Number of shards to explain; it grows when videos are divided."""
    done: int = 0
    files: int = 0
    explained: int = 0
    """Number of explained photos and frames."""
    failed: int = 0
    busy_seconds: float = 0.0
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    lost: list[LostShard] = field(default_factory=list)


class ArchiveRun:
    """Explains shards. Divides long videos into parts; explains a video as a whole if its parts are not exact."""

    def __init__(self, folder: OutputFolder, settings: ArchiveSettings, partial: Mapping[str, Sequence[str]]) -> None:
        """Store the folder, the settings, and the partitions of earlier runs.

        Args:
            folder: the output folder.
            settings: settings of the workers.
            partial: names of existing partitions of incomplete videos, by the path of the video.
        """
        self._folder, self._settings = folder, settings
        self._partitions = {path: set(names) for path, names in partial.items()}
        """Names of the existing partitions of each divided video, by its path."""
        self._pending: dict[str, set[str]] = {}
        """Names of the unfinished shards of each divided video, by its path."""
        self._whole: set[str] = set()
        """Paths of the videos whose parts were not exact."""
        self._waiting: deque[Shard] = deque()
        self.counts = RunCounts()

    def explain(self, shards: Sequence[Shard], workers: int) -> RunCounts:
        """Explain shards until all are done or the user stops the run, and return the counts."""
        self._waiting.extend(shards)
        self.counts.shards = len(shards)
        started = threading.Event()
        started.set()
        began = time.perf_counter()
        with shutdown_on_signal(started) as stop, progress_bar() as progress:
            bar = progress.add_task("files", total=sum(len(shard.files) for shard in shards))
            for outcome in self._outcomes(workers, stop):
                self.add(outcome)
                progress.update(bar, completed=self.counts.files)
        self.counts.wall_seconds = time.perf_counter() - began
        return self.counts

    def _outcomes(self, workers: int, stop: threading.Event) -> Iterator[Outcome]:
        if not self._waiting:
            return iter(())
        if workers == 1:
            return explain_here(self._settings, self._waiting, stop)
        return explain_by_ray(self._settings, self._waiting, stop, workers=workers)

    def add(self, outcome: Outcome) -> None:
        """Count the outcome of a shard; if a video was divided, add the shards of its parts."""
        self.counts.done += 1
        if isinstance(outcome, LostShard):
            self.counts.lost.append(outcome)
        elif isinstance(outcome, ShardResult):
            self._count(outcome)
        elif outcome.is_whole:
            self._join(outcome)
        else:
            self._divide(outcome)

    def _count(self, result: ShardResult) -> None:
        if result.part_of in self._whole:  # this part was in progress when another part of its video was not exact
            self._remove([result.name])
            return
        self.counts.explained += result.explained
        self.counts.busy_seconds += result.seconds
        self.counts.cpu_seconds += result.cpu_seconds
        self.counts.failed += result.failed
        if not result.part_of:
            self.counts.files += result.files
            return
        self._partitions[result.part_of].add(result.name)
        self._pending[result.part_of].discard(result.name)
        self.counts.files += not self._pending[result.part_of]

    def _divide(self, division: Division) -> None:
        path = division.file.path
        names = {shard.name for shard in division.shards}
        existing = self._partitions.setdefault(path, set())
        self._remove(existing - names)  # parts of a run with another part length
        existing &= names
        missing = [shard for shard in division.shards if shard.name not in existing]
        self._pending[path] = {shard.name for shard in missing}
        self._waiting.extendleft(reversed(missing))
        self.counts.shards += len(missing)

    def _join(self, division: Division) -> None:
        path = division.file.path
        if path in self._whole:
            return
        self._whole.add(path)
        self._remove(self._partitions.pop(path, set()))
        others = [shard for shard in self._waiting if shard.part is None or shard.files[0].path != path]
        self.counts.shards += len(others) - len(self._waiting) + len(division.shards)
        self._waiting.clear()
        self._waiting.extend([*division.shards, *others])

    def _remove(self, names: Sequence[str] | set[str]) -> None:
        for name in names:
            self._folder.remove(name + SUFFIX)
            if self._settings.draws:
                self._folder.remove_folder(f"{OVERLAYS}/{name}")
