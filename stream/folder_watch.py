"""A folder watched for new pictures: each is read once, when it has been written completely."""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, NamedTuple, Self

from pipeline.errors import SourceError
from pipeline.frames import Frame
from pipeline.ports import Health, Overflow
from stream.image_file import ImageReader
from stream.images import files_of, folder_of, is_pattern, name_below, natural
from stream.paths import kind_of, shown

log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 0.5
"""How long between two looks into the folder; a look that takes long, of very many files, is made less often."""
_UNFINISHED_SECONDS: Final = 10.0
"""For how long a picture that does not decode may still be in writing, though its file has not changed."""

_MOST_GONE: Final = 1_000_000
"""How many files that disappeared are remembered, in case they come back."""


class _Stamp(NamedTuple):
    """What changes when a file is written to or replaced."""

    modified_ns: int
    size: int
    node: int


@dataclass(slots=True)
class _Waiting:
    """A picture that has been seen and not yet read."""

    stamp: _Stamp
    number: int
    """Of the look that found it first: the order of appearance."""
    since: float
    """``time.monotonic()`` of the look that found it in this state first."""


class Arrivals:
    """Tells which files are new and complete: those that did not change between two looks.

    A file that is replaced or written anew is new again. One that disappears and comes back unchanged is not: a network
    drive was away for a moment.
    """

    def __init__(self, there: Iterable[str]) -> None:
        """Take the files that are there already and are not new."""
        self._done: dict[str, _Stamp] = {path: stamp for path in there if (stamp := _stamp_of(path))}
        self._gone: dict[str, _Stamp] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._looks = 0

    def look(self, paths: Iterable[str], now: float) -> list[str]:
        """Take the files that are there now; return those to be read, in order of appearance."""
        self._looks += 1
        there: dict[str, _Stamp] = {path: stamp for path in paths if (stamp := _stamp_of(path))}
        for gone in (self._done.keys() | self._waiting.keys()) - there.keys():
            self._waiting.pop(gone, None)
            if stamp_before := self._done.pop(gone, None):
                self._gone[gone] = stamp_before
        for back in self._gone.keys() & there.keys():
            self._done[back] = self._gone.pop(back)
        for oldest in list(itertools.islice(self._gone, max(0, len(self._gone) - _MOST_GONE))):
            del self._gone[oldest]
        ready = []
        for path, stamp in there.items():
            if self._done.get(path) == stamp:
                continue
            waiting = self._waiting.setdefault(path, _Waiting(stamp, self._looks, now))
            if waiting.stamp != stamp:
                waiting.stamp, waiting.since = stamp, now
            elif waiting.number != self._looks and stamp.size:
                ready.append(path)
        return sorted(ready, key=lambda path: (*self._age(path), natural(path)))

    def settle(self, path: str, *, is_whole: bool, now: float) -> bool:
        """Note that ``path`` was read; say whether that was the last word on it: a torn one may still be in writing."""
        waiting = self._waiting[path]
        if is_whole or now - waiting.since > _UNFINISHED_SECONDS:
            self._done[path] = self._waiting.pop(path).stamp
            return True
        return False

    def _age(self, path: str) -> tuple[int, int]:
        waiting = self._waiting[path]
        return waiting.number, waiting.stamp.modified_ns


class WatchedFolder:
    """Frames of the pictures that appear in a folder, or under a glob, without end.

    Pictures wait on the disk until they are read: none is lost, however slow the reader. One that never decodes is
    told, left out and counted.
    """

    live = True
    frames_total: int | None = None
    rate: float | None = None
    overflow: Overflow = "wait"
    """What its full queue does: the pictures are on the disk, and every one counts."""

    def __init__(
        self,
        pattern: str,
        *,
        suffixes: frozenset[str],
        camera: str,
        reader: ImageReader | None = None,
        begin: Literal["new", "all"] = "new",
        look_seconds: float = _LOOK_SECONDS,
    ) -> None:
        """Take what is watched; ``begin`` says whether the pictures that are there already are read, too."""
        self.camera = camera
        self.uri = shown(pattern)
        self._pattern = pattern
        self._suffixes = suffixes
        self._reader = reader or ImageReader()
        self._begin = begin
        self._look_seconds = look_seconds
        self._health = Health()
        self._arrivals = Arrivals(())

    @property
    def health(self) -> Health:
        """How it does right now; ``corrupt`` counts pictures that did not decode."""
        return self._health

    def __enter__(self) -> Self:
        if kind_of(self._pattern) != "folder" and not (is_pattern(self._pattern) and folder_of(self._pattern)):
            raise SourceError(f"{self.uri}: is no folder that can be watched; give a folder, or a glob in one")
        there = list(self._images()) if self._begin == "new" else []
        self._arrivals = Arrivals(there)
        log.info("%s: watched for pictures; %d that are there already are not read", self.uri, len(there))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Nothing is left open."""

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Give each picture that appears, until ``stop`` is set; its time is seconds since the watch began."""
        begun, index = time.monotonic(), 0
        folder = folder_of(self._pattern)
        self._health = Health("live")
        while not stop.is_set():
            since = time.monotonic()
            for path in self._ready(since):
                if stop.is_set():
                    return
                try:
                    image = self._reader.read(path)
                except SourceError as error:
                    if self._arrivals.settle(path, is_whole=False, now=time.monotonic()):
                        log.warning("left out: %s", error)
                        self._health = Health("live", str(error), corrupt=self._health.corrupt + 1)
                    continue
                self._arrivals.settle(path, is_whole=True, now=time.monotonic())
                captured_at = time.monotonic()
                name = name_below(path, folder)
                yield Frame(image, self.camera, index, captured_at, captured_at - begun, source_name=name)
                index += 1
            stop.wait(max(self._look_seconds, 4 * (time.monotonic() - since)))

    def _ready(self, now: float) -> list[str]:
        try:
            ready = self._arrivals.look(self._images(), now)
        except SourceError as error:
            if self._health.state != "waiting":
                log.warning("%s; it is looked for again", error)
            self._health = Health("waiting", str(error), corrupt=self._health.corrupt, cause="not found")
            return []
        if self._health.state == "waiting":
            log.info("%s: there again", self.uri)
            self._health = Health("live", corrupt=self._health.corrupt)
        return ready

    def _images(self) -> Iterator[str]:
        """Give the pictures that are there. Raises ``SourceError`` where the folder cannot be read."""
        if kind_of(self._pattern) == "nothing" and not is_pattern(self._pattern):
            raise SourceError(f"{self.uri}: there is no such folder any more")
        for path in files_of(self._pattern):
            name = os.path.basename(path)  # noqa: PTH119
            if os.path.splitext(name)[1].lower() in self._suffixes and not name.startswith("."):  # noqa: PTH122
                yield path


def _stamp_of(path: str) -> _Stamp | None:
    """Return the file's stamp; None where it has gone meanwhile."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return _Stamp(found.st_mtime_ns, found.st_size, found.st_ino)
