"""The source of a watched folder: reads each new image as soon as it is complete."""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Self

from pipeline.errors import SourceError
from pipeline.frames import Frame
from pipeline.ports import Health, Overflow, Source
from stream.image_file import ImageReader
from stream.images import files_of, folder_of, is_pattern, name_below, natural
from stream.paths import kind_of, shown

log = logging.getLogger(__name__)

_SCAN_SECONDS: Final = 0.5
"""Interval between two scans of the folder; longer if a scan of many files takes long."""
_UNFINISHED_SECONDS: Final = 10.0
"""An unchanged file that does not decode is given up after this time; before, it may be unfinished."""

_MAX_REMOVED: Final = 1_000_000
"""Maximum number of removed files whose state is stored, in case they return."""


class _FileState(NamedTuple):
    """Attributes that change when a file is written or replaced."""

    modified_ns: int
    size: int
    inode: int


@dataclass(slots=True)
class _Pending:
    """An image that was found and not read yet."""

    state: _FileState
    scan: int
    """Number of the first scan that found the file; defines the order of reading."""
    since: float
    """``time.monotonic()`` of the first scan that found the file in this state."""


class NewFileTracker:
    """Finds new files that are complete: unchanged between two scans.

    A replaced or rewritten file counts as new. A file that disappears and returns unchanged does not: a
    network drive may be unavailable for a moment.
    """

    def __init__(self, existing: Iterable[str]) -> None:
        """Create a tracker; the files at the ``existing`` paths are not new."""
        self._done: dict[str, _FileState] = {path: state for path in existing if (state := _file_state(path))}
        self._removed: dict[str, _FileState] = {}
        self._pending: dict[str, _Pending] = {}
        self._scans = 0

    def update(self, paths: Iterable[str], now: float) -> list[str]:
        """Record the paths found by a scan at ``now``; return those to read, oldest first."""
        self._scans += 1
        states: dict[str, _FileState] = {path: state for path in paths if (state := _file_state(path))}
        for removed in (self._done.keys() | self._pending.keys()) - states.keys():
            self._pending.pop(removed, None)
            if last_state := self._done.pop(removed, None):
                self._removed[removed] = last_state
        for returned in self._removed.keys() & states.keys():
            self._done[returned] = self._removed.pop(returned)
        for oldest in list(itertools.islice(self._removed, max(0, len(self._removed) - _MAX_REMOVED))):
            del self._removed[oldest]
        ready = []
        for path, state in states.items():
            if self._done.get(path) == state:
                continue
            pending = self._pending.setdefault(path, _Pending(state, self._scans, now))
            if pending.state != state:
                pending.state, pending.since = state, now
            elif pending.scan != self._scans and state.size:
                ready.append(path)
        return sorted(ready, key=lambda path: (*self._age(path), natural(path)))

    def record_read(self, path: str, *, is_whole: bool, now: float) -> bool:
        """Record that ``path`` was read; return False if it must be read again later."""
        pending = self._pending[path]
        if is_whole or now - pending.since > _UNFINISHED_SECONDS:
            self._done[path] = self._pending.pop(path).state
            return True
        return False

    def _age(self, path: str) -> tuple[int, int]:
        pending = self._pending[path]
        return pending.scan, pending.state.modified_ns


class WatchedFolder(Source):
    """The frames of the images that appear in a folder, or match a glob; never ends.

    A slow reader loses no image: the files stay on disk. An image that never decodes is logged, skipped and counted.
    """

    live = True
    overflow: Overflow | None = "wait"
    """A full queue blocks the source: images on disk can wait, and none may be dropped."""

    def __init__(
        self,
        pattern: str,
        *,
        suffixes: frozenset[str],
        camera: str,
        reader: ImageReader | None = None,
        begin: Literal["new", "all"] = "new",
        scan_seconds: float = _SCAN_SECONDS,
    ) -> None:
        """Create the source; ``begin="all"`` also reads existing images."""
        self.camera = camera
        self.uri = shown(pattern)
        self._pattern = pattern
        self._suffixes = suffixes
        self._reader = reader or ImageReader()
        self._begin = begin
        self._scan_seconds = scan_seconds
        self._tracker = NewFileTracker(())

    def __enter__(self) -> Self:
        if kind_of(self._pattern) != "folder" and not (is_pattern(self._pattern) and folder_of(self._pattern)):
            raise SourceError(f"{self.uri}: is not a folder that can be watched; use a folder, or a glob in a folder")
        existing = list(self._images()) if self._begin == "new" else []
        self._tracker = NewFileTracker(existing)
        log.info("%s: watched for new images; %d existing images are not read", self.uri, len(existing))
        return self

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield each image that appears; ``pts_seconds`` counts from the start of the source."""
        started_at, index = time.monotonic(), 0
        folder = folder_of(self._pattern)
        self.health = Health("live")
        while not stop.is_set():
            since = time.monotonic()
            for path in self._ready(since):
                if stop.is_set():
                    return
                try:
                    image = self._reader.read(path)
                except SourceError as error:
                    if self._tracker.record_read(path, is_whole=False, now=time.monotonic()):
                        log.warning("skipped: %s", error)
                        self.health = Health("live", str(error), corrupt=self.health.corrupt + 1)
                    continue
                self._tracker.record_read(path, is_whole=True, now=time.monotonic())
                captured_at = time.monotonic()
                name = name_below(path, folder)
                yield Frame(image, self.camera, index, captured_at, captured_at - started_at, source_name=name)
                index += 1
            stop.wait(max(self._scan_seconds, 4 * (time.monotonic() - since)))

    def _ready(self, now: float) -> list[str]:
        try:
            ready = self._tracker.update(self._images(), now)
        except SourceError as error:
            if self.health.state != "waiting":
                log.warning("%s; waiting until the folder can be read", error)
            self.health = Health("waiting", str(error), corrupt=self.health.corrupt, cause="not found")
            return []
        if self.health.state == "waiting":
            log.info("%s: available again", self.uri)
            self.health = Health("live", corrupt=self.health.corrupt)
        return ready

    def _images(self) -> Iterator[str]:
        """Yield the paths of the images; raises ``SourceError``."""
        if kind_of(self._pattern) == "missing" and not is_pattern(self._pattern):
            raise SourceError(f"{self.uri}: the folder no longer exists; create it again")
        for path in files_of(self._pattern):
            name = os.path.basename(path)  # noqa: PTH119
            if os.path.splitext(name)[1].lower() in self._suffixes and not name.startswith("."):  # noqa: PTH122
                yield path


def _file_state(path: str) -> _FileState | None:
    """Return the state of the file; None if it no longer exists."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return _FileState(status.st_mtime_ns, status.st_size, status.st_ino)
